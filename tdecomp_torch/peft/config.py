"""What a user asks PEFT for: the configuration of an adapter, in memory and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType

from tdecomp.adapters import Spec
from tdecomp.adapters import method as row_of
from tdecomp.adapters.from_weights import FROM_WEIGHTS
from tdecomp.errors import ArgumentError, TdecompError
from tdecomp_torch.forward.tasks import checked_tasks
from tdecomp_torch.peft.card import tell_import
from tdecomp_torch.peft.names import METHOD
from tdecomp_torch.preparing import Asked, check_alpha

__all__ = ["TensorAdapterConfig"]

_GIVEN = "given"
"""Kind of the factors whose numbers a user gives."""
_FROM_ELSEWHERE = {_GIVEN, *FROM_WEIGHTS} - {"weight"}
"""Kinds of those that need more than a seed to be made."""


@dataclass
class TensorAdapterConfig(PeftConfig):
    """An adapter of the language on a model, as PEFT configures it.

    Parameters
    ----------
    method
        A row of the catalogue by name, a `tdecomp.adapters.Spec`, or what its ``to_json`` gave.
    rank, r
        As in `tdecomp_torch.attach`; ``r`` is another name for a whole number. Without one a method
        that leaves a rank open has 8, as everywhere in PEFT.
    alpha, dropout, shared_dropout, rank_dropout, share, patterns, tasks, dtype, tokens
        As in `tdecomp_torch.attach`. Dtypes may be named as text: ``"float32"``.
    seed
        Of random factors; default is a number of torch's generator, as everywhere in PEFT.
    start, given
        As in `tdecomp_torch.attach`. A saved configuration is without `start` and has the names of
        what was given only, as the numbers are in the file beside it: until that is loaded, those
        are NaN.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT. Without `target_modules`: what `attach` takes by default.
    target_parameters
        Names of parameters that hold the matrices of several experts, or ends of their paths; those
        of one layer are weights of the site mode ``expert``. Their adapted weights are formed in
        every forward pass. Without `target_modules` nothing else is adapted.
    rank_pattern
        Regex or end of a module path -> rank of these, for methods that share no factors between
        weights.
    step
        How many steps were trained, for methods with a schedule; kept up by the adapter.
    init_weights
        False: factors that start as zeros or ones are made random, so that the adapter acts at
        once; for tests.

    Raises
    ------
    ArgumentError
        An unknown method, a specification that cannot be read, values that cannot be.

    Examples
    --------
    >>> config = TensorAdapterConfig(method="lotr", r=8, target_modules=["q_proj", "v_proj"])
    >>> config.rank, config.to_dict()["method"]["name"]
    (8, 'lotr')
    """

    method: str | Mapping[str, Any] | Spec = "lotr"
    rank: Any = None
    alpha: float | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0
    share: Sequence[str] | None = None
    patterns: Sequence[str] = ()
    tasks: Sequence[str] = ()
    seed: int | None = None
    dtype: torch.dtype | str | None = None
    tokens: int = 1024
    start: Any = None
    given: Mapping[str, Any] | list[str] | None = None
    init_weights: bool = True
    step: float = 0.0
    target_parameters: list[str] | None = None
    library: str = "tdecomp_torch.peft"
    r: InitVar[int | None] = None

    def __post_init__(self, r: int | None = None):
        super().__post_init__()
        self.peft_type = PeftType(METHOD)
        if r is not None and self.rank is not None and r != self.rank:
            raise ArgumentError(
                f"r={r!r} and rank={self.rank!r} are given, which is the same thing"
            )
        self.rank = r if self.rank is None else self.rank
        if isinstance(self.method, Mapping):
            self.method = _spec_of(self.method)
        if not isinstance(self.method, str | Spec):
            raise ArgumentError(
                f"method={self.method!r} must be the name of a row of the catalogue or a Spec"
            )
        for what in ("target_modules", "exclude_modules", "target_parameters"):
            if isinstance(getattr(self, what), list | tuple):
                setattr(self, what, set(getattr(self, what)))
        if isinstance(self.patterns, str) or not isinstance(self.patterns, Collection):
            raise ArgumentError(
                f"patterns={self.patterns!r} must be a list, such as ['blocks.{{layer}}.{{proj}}']"
            )
        checked_tasks(self.asked().tasks, fold=False)
        check_alpha(self.spec, self.alpha)

    @property
    def spec(self) -> Spec:
        """The method."""
        return row_of(self.method) if isinstance(self.method, str) else self.method  # pyright: ignore[reportArgumentType,reportReturnType]

    def asked(self, rank: Any = None, *, seed: int = 0, empty: bool = False) -> Asked:
        """The same for `tdecomp_torch`.

        Parameters
        ----------
        seed
            Where none is configured.
        rank
            In place of the configured one.
        empty
            A file is about to bring all numbers: nothing is made of the weights.
        """
        named = [*self.given] if isinstance(self.given, list) else []
        made = [f.name for f in self.spec.expanded.factors if f.init.kind in _FROM_ELSEWHERE]
        return Asked(
            rank=self.rank if rank is None else rank,
            alpha=self.alpha,
            dropout=self.dropout,
            shared_dropout=self.shared_dropout,
            rank_dropout=self.rank_dropout,
            share=self.share,
            dtype=_dtype_of(self.dtype),
            seed=seed if self.seed is None else self.seed,
            given={} if self.given is None or named else self.given,  # pyright: ignore[reportArgumentType]
            absent=made if empty else named,
            start=self.start,
            tokens=self.tokens,
            tasks=self.tasks,
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a saved configuration, as in PEFT."""
        found = super().from_pretrained(*args, **kwargs)
        found.__dict__["_from_a_file"] = True
        return found

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration, and into the card beside it what to import."""
        super().save_pretrained(save_directory, **kwargs)
        tell_import(Path(save_directory))

    @property
    def is_for_a_file(self) -> bool:
        """Whether a file will bring the numbers of the adapter, as far as this tells."""
        return self.inference_mode or self.__dict__.get("_from_a_file", False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the method as its equation, without what factors started from."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        given = [f.name for f in self.spec.factors if f.init.kind == _GIVEN]
        own = {"method": self.spec.to_json(), "start": None, "given": given or None}
        return plain | own | {"step": self._trained()}

    def follow(self, at_step: Callable[[], float]) -> None:
        """Let a saved configuration say the step that its adapter is at."""
        self.__dict__["_at_step"] = at_step

    def _trained(self) -> float:
        at_step = self.__dict__.get("_at_step")
        return self.step if at_step is None else at_step()


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def _spec_of(plain: Mapping[str, Any]) -> Spec:
    try:
        return Spec.from_json(dict(plain))
    except (TdecompError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError(
            f"the method of this configuration cannot be read ({error}): give the name of a row, a"
            " Spec, or what its to_json gave"
        ) from error


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(dtype, str) and not isinstance(found, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r} is not one of torch: give 'float32', for example")
    return found
