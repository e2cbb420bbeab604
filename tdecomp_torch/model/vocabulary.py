"""The vocabulary of a model: its tables are not resized while an adapter is on them.

transformers resizes one table in place, and then the next, of whatever has their name: it would
fail halfway, or leave factors of the length that the vocabulary had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tdecomp.errors import SiteError

__all__ = ["Vocabulary"]

_RESIZE = "resize_token_embeddings"
_TABLES = ("get_input_embeddings", "get_output_embeddings", "get_per_layer_input_embeddings")


class Vocabulary:
    """What words go in by and out of a model, and of every model inside of it.

    Parameters
    ----------
    model
        Of any kind: of one that cannot resize its vocabulary nothing is known.
    """

    def __init__(self, model: nn.Module):
        owners = [m for m in model.modules() if callable(getattr(type(m), _RESIZE, None))]
        self._tables = [(owner, tuple(_tables(owner))) for owner in owners]

    def hold(self, path: str, module: nn.Module) -> list[Any]:
        """Let no model resize a module, if that is one of its tables, or tied to one.

        Returns
        -------
        list
            Handles that end it.
        """
        return [
            _hold(owner, _Hold(path, module))
            for owner, tables in self._tables
            if _is_one_of(module, tables)
        ]


@dataclass(frozen=True, eq=False)
class _Hold:
    """A table that an adapter is on."""

    path: str
    module: nn.Module

    def check(self, rows: int) -> None:
        """Refuse another number of rows.

        Raises
        ------
        SiteError
            Says what to do.
        """
        if (now := _rows(self.module)) != rows:
            raise SiteError(
                f"{self.path} cannot be resized from {now} to {rows} rows under its adapter: take"
                " the adapter off (in PEFT merge_and_unload, or unload to drop it; else merge and"
                " detach, or detach), resize, and attach anew"
            )


@dataclass
class _Resizing:
    """In the place of ``resize_token_embeddings`` of one model while adapters are on its tables."""

    owner: nn.Module
    before: Callable[..., Any] | None
    holds: list[_Hold] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Resize, unless that changes a table that is held."""
        rows = _asked(_rows(self.owner.get_input_embeddings()), *args, **kwargs)  # pyright: ignore[reportCallIssue]
        for hold in self.holds if rows else ():
            hold.check(rows)
        resize = self.before or getattr(type(self.owner), _RESIZE).__get__(self.owner)
        return resize(*args, **kwargs)


@dataclass(frozen=True)
class _Handle:
    resizing: _Resizing
    hold: _Hold

    def remove(self) -> None:
        """Let it be resized again."""
        resizing, own = self.resizing, self.resizing.owner.__dict__
        if self.hold in resizing.holds:
            resizing.holds.remove(self.hold)
        if not resizing.holds and own.get(_RESIZE) is resizing:
            del own[_RESIZE]
            if resizing.before is not None:
                own[_RESIZE] = resizing.before


def _hold(owner: nn.Module, hold: _Hold) -> _Handle:
    """Put what looks first in the instance of a model, before the method of its class."""
    resizing = owner.__dict__.get(_RESIZE)
    if not isinstance(resizing, _Resizing):
        resizing = owner.__dict__[_RESIZE] = _Resizing(owner, resizing)
    resizing.holds.append(hold)
    return _Handle(resizing, hold)


def _tables(owner: nn.Module) -> Iterator[nn.Module]:
    """What the words of a model go in by, and out."""
    for name in _TABLES:
        table = None
        with suppress(Exception):  # a model without words, which may say so in any way
            table = getattr(owner, name)()
        if isinstance(table, nn.Module):
            yield table


def _is_one_of(module: nn.Module, tables: Iterable[nn.Module]) -> bool:
    """Whether a module, or its weight, is one of the tables: also below what PEFT put there."""
    weight = getattr(module, "weight", None)
    return any(
        module is table or (weight is not None and weight is getattr(table, "weight", None))
        for table in tables
    )


def _rows(table: Any) -> int:
    """Words that a table has, also one that is quantised."""
    for name in ("num_embeddings", "out_features"):
        if isinstance(rows := getattr(table, name, None), int):
            return rows
    return len(table.weight)


def _asked(
    rows: int,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    *_: Any,
    **__: Any,
) -> int:
    """Rows that are asked for, with the arguments of transformers; 0 for a look at the table."""
    if new_num_tokens is None and pad_to_multiple_of is None:
        return 0
    asked = rows if new_num_tokens is None else new_num_tokens
    return asked if not pad_to_multiple_of else -(-asked // pad_to_multiple_of) * pad_to_multiple_of
