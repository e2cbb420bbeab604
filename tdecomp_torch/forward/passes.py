"""One forward pass of a whole model: what is computed for its layers on the way."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ByThread", "Pass", "Ready", "is_checkpointed"]


@dataclass(frozen=True)
class Ready:
    """Operands of one term: a tensor for all sites, or one per site."""

    sources: tuple[Tensor | Sequence[Tensor], ...]

    def at(self, site: int) -> list[Tensor]:
        """Those of one site."""
        return [s if isinstance(s, Tensor) else s[site] for s in self.sources]


@dataclass(frozen=True)
class StandingReady:
    """Operands of a group, and what they are views of: they stand while that is where it was.

    Attributes
    ----------
    factors
        With the address of each.
    blocks
        Products of every term.
    ready
        The operands.
    stays
        Whether all of them follow what is written to the factors, as views do.
    """

    factors: tuple[tuple[Tensor, int], ...]
    blocks: tuple[Tensor, ...]
    ready: list[Ready]
    stays: bool

    @classmethod
    def of(
        cls, factors: Mapping[str, Tensor], blocks: Sequence[Sequence[Tensor]], ready: list[Ready]
    ) -> StandingReady:
        """Operands that were made now."""
        flat = tuple(block for own in blocks for block in own)
        stays = all(map(_is_plain, factors.values()))
        if not stays:
            return cls((), flat, ready, stays=False)
        owned = {x.untyped_storage().data_ptr() for x in (*factors.values(), *flat)}
        first = [s if isinstance(s, Tensor) else s[0] for own in ready for s in own.sources]
        stays = all(_is_plain(x) and x.untyped_storage().data_ptr() in owned for x in first)
        return cls(tuple((x, x.data_ptr()) for x in factors.values()), flat, ready, stays)

    def holds(self, factors: Mapping[str, Tensor], blocks: Sequence[Sequence[Tensor]]) -> bool:
        """Whether these would be made of the same again."""
        if not self.stays:
            return False
        flat = [block for own in blocks for block in own]
        return all(a is b for a, b in zip(flat, self.blocks, strict=True)) and all(
            x is y and x.data_ptr() == at
            for x, (y, at) in zip(factors.values(), self.factors, strict=True)
        )


def _is_plain(x: Tensor) -> bool:
    """Whether this is a tensor with memory of its own, and no wrapper."""
    wrapped: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    plain = type(x) in (Tensor, nn.Parameter) and not x.is_meta
    return plain and not wrapped.is_functorch_wrapped_tensor(x)


class Pass:
    """What one forward pass of the whole model computes for its layers.

    Attributes
    ----------
    ready
        Operands of every group and term, made ahead; None outside of a pass.
    with_grad
        Whether they have a gradient.
    first
        The last first product of every group and term, and what it was made from.
    dropped
        The last input after dropout, before it, and the sites that read it.
    """

    def __init__(self):
        self.ready: list[list[Ready]] | None = None
        self.with_grad = False
        self.first: dict[tuple[int, int], tuple[Tensor, Any, Tensor]] = {}
        self.dropped: tuple[Tensor, Tensor, set[tuple[int, int]]] | None = None


class ByThread(threading.local):
    """Every thread's own pass."""

    def __init__(self):
        self.now = Pass()


def is_checkpointed() -> bool:
    """Whether tensors saved for backward are intercepted, as activation checkpointing does.

    The forward is then repeated during backward, one layer at a time, and must do the same: every
    layer computes its own products.
    """
    if torch.compiler.is_compiling():
        return False
    look: Any = _look_at_hooks()
    return look is not None and look(False) is not None


@cache
def _look_at_hooks() -> Any:
    """Torch's own view of the hooks in force; None in a version that has none."""
    autograd = getattr(torch._C, "_autograd", None)
    return getattr(autograd, "_top_saved_tensors_default_hooks", None)
