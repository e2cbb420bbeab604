"""A decomposition as the driver sees it: what it says of the data, and how it fits ranks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.passes.data import Data
from tdecomp.progress import Progress
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.target import Target

__all__ = ["Analysis", "Choice", "Method", "Share", "TooNarrow"]

State = TypeVar("State")

Choice = list[tuple[int, ...]]
"""A rank tuple for every unit of one input: for each matrix, or one for the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class Analysis(Generic[State]):
    """What one look at an input tells.

    Attributes
    ----------
    frontiers
        One per unit: what it can trade.
    floor
        The relative error that the precision of the input can reach.
    state, state_size
        What the fit can reuse, and how many numbers that holds.
    limits
        Where the frontiers come from a sketch: the ranks from which on it can tell nothing. Empty
        where they are exact.
    width
        Of that sketch.
    passes
        Reads of the data so far.
    """

    frontiers: list[Frontier]
    floor: float
    state: State | None = None
    state_size: int = 0
    limits: tuple[int, ...] = ()
    width: int = 0
    passes: int = 0

    def is_at_limit(self, positions: Sequence[int]) -> bool:
        """Whether one of the positions on the frontiers has a rank at its limit."""
        pairs = zip(self.frontiers, positions, strict=True)
        return bool(self.limits) and any((f.ranks[i] >= self.limits).any() for f, i in pairs)

    def growth(self, missing: float) -> float:
        """How many times as wide a sketch must be at least to win a squared error more than this.

        Singular values fall: as many ranks again win no more than those seen did, and where two
        modes are sketched, twice the width is four times as many entries of the core.
        """
        won = math.fsum(float(f.lost[0] - f.lost[-1]) for f in self.frontiers)
        modes = sum(limit == self.width for limit in self.limits)
        return (1 + missing / won) ** (1 / modes) if won > 0 and modes else 1.0


@dataclass(frozen=True, kw_only=True)
class Share:
    """What falls to one input of an error or a budget: squared error, or stored numbers.

    No rank may be above `rank_max`.
    """

    lost: float | None = None
    params: int | None = None
    rank_max: int | None = None


class TooNarrow(Exception):  # noqa: N818 - a signal to the driver, not an error
    """The ranks that `Method.spend` would choose are beyond what its sketch can tell.

    The driver looks twice as wide and asks again with these ranks.

    Attributes
    ----------
    choice
        These ranks.
    width, passes
        Of the sketch, which need not be that of the look, and the reads of the data so far.
    """

    def __init__(self, choice: Choice, *, width: int, passes: int):
        super().__init__(f"a sketch of width {width} is too narrow for {choice}")
        self.choice = choice
        self.width = width
        self.passes = passes


@dataclass(frozen=True, kw_only=True)
class Method(ABC, Generic[State]):
    """A decomposition with its options; the first line of a subclass says what it makes.

    Fields are the options of the public function, of the same names and defaults. `run` asks for a
    rank in one step (`ranks`, `fit`), and for an error or a budget in two (`look`, then `spend`).

    Attributes
    ----------
    by_modes
        Whether the option ``modes`` says which modes are compressed.
    names
        Mode names of an array.
    rounding
        Applied to every factor before the error is measured.
    """

    by_modes: ClassVar[bool] = False

    names: str | Sequence[str] | None = None
    rounding: Rounding | None = None

    @abstractmethod
    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """Sizes of the modes that a rank can cut; refuses data that the method cannot take."""

    @abstractmethod
    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """Rank tuples for a target that names ranks."""

    def takes_together(self, shape: tuple[int, ...]) -> bool:
        """Whether several arrays of this shape are best taken as one, along a mode before these.

        For a method that takes every matrix by itself, into a `LowRank`.
        """
        del shape
        return False

    @abstractmethod
    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[State]:
        """What each unit can trade, seen through a sketch of `width` where that is worth it.

        `passes` is how often the data were read before.
        """

    def glance(self, x: Data[Any]) -> Analysis[State] | None:
        """What is enough to meet an error with one input alone, where that is less than a look.

        For a method whose `spend` finds ranks by itself.
        """
        del x

    @abstractmethod
    def fit(self, x: Data[Any], choice: Choice, state: State | None, progress: Progress) -> Fit:
        """Factors of the given ranks, with what a look has left for them."""

    def literal(self, x: Data[Any], target: Target, tensor: Any) -> Any:
        """A fit of ranks given one by one, in exactly these shapes.

        What the tensor has no use for is zero; an int is cut instead.
        """
        del x, target
        return tensor

    def spend(
        self, x: Data[Any], choice: Choice, share: Share, state: State | None, progress: Progress
    ) -> Fit:
        """Factors that use a share up and do not exceed it.

        For a method whose frontiers are only estimates: it chooses ranks anew, near those given.

        Raises
        ------
        TooNarrow
            For ranks beyond what the look could tell.
        """
        del share
        return self.fit(x, choice, state, progress)
