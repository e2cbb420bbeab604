"""What `explore` compares: a way to store a stack, what it can trade, and its factors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from tdecomp._xp import Array
from tdecomp.decomposition.exploration.look import SPARE, Core, Look
from tdecomp.decomposition.fit import Fit
from tdecomp.formats import Format
from tdecomp.ranking.frontier import Frontier
from tdecomp.tasks import Divided, sendable

__all__ = [
    "NEVER",
    "Built",
    "Candidate",
    "FormatPairs",
    "NoPairs",
    "Pairs",
    "Ranks",
    "built_of_fit",
    "limit",
    "nothing_built",
    "spread",
]

Ranks = tuple[int, ...]

NEVER = 1 << 60
"""A rank that no choice reaches."""


class Pairs(Divided):
    """The factors of a stack, matrix by matrix."""

    def only(self, slices: Collection[int]) -> Pairs:
        """Those of some matrices, where they are not of one piece."""
        del slices
        return self

    @abstractmethod
    def pair(self, i: int, matrix: Array) -> tuple[Array, Array]:
        """``left (out, r), right (r, in)`` of the i-th matrix, which is at hand."""


@sendable
@dataclass(frozen=True)
class NoPairs(Pairs):
    """Rank 0."""

    def pair(self, i: int, matrix: Array) -> tuple[Array, Array]:
        """No columns and no rows."""
        del i
        return matrix[:, :0], matrix[:0, :]


@sendable
@dataclass(frozen=True)
class FormatPairs(Pairs):
    """A format in the coordinates of a look; it is lifted when the first pair is asked for."""

    core: Core
    tensor: Format

    @cached_property
    def lifted(self) -> Format:
        """The format in the modes of the stack."""
        return self.core.frame.up(self.tensor)

    def pair(self, i: int, matrix: Array) -> tuple[Array, Array]:
        """Of the lifted format."""
        del matrix
        return self.lifted.pair(i)


@dataclass(frozen=True, kw_only=True)
class Built:
    """One stack in one format: stored numbers, squared error from the sketches, and factors."""

    n_params: int
    lost: float
    ranks: str
    pairs: Pairs


@dataclass(frozen=True, kw_only=True)
class Candidate(ABC):
    """A way to store a stack.

    Attributes
    ----------
    part
        Which part of a `Room` its limits come from.
    name
        As it is shown.
    method
        Name of the decomposition that gives it; None: the same.
    modes
        Position of the one mode that has a shared basis; None for all that the method compresses.
    share
        Site modes that vary under one shared basis; None: all.
    """

    part: ClassVar[Literal["slices", "core", "train"]] = "core"

    name: str
    method: str | None = None
    modes: tuple[int, ...] | None = None
    share: tuple[str, ...] | None = None

    @abstractmethod
    def frontiers(self, seen: Look) -> list[Frontier]:
        """What each unit of a stack can trade, but for the constant outside the sketch."""

    @abstractmethod
    def limits(self, seen: Look) -> list[Ranks]:
        """Ranks, per unit, from which on the sketch is too narrow to be trusted."""

    @abstractmethod
    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The factors of the given ranks per unit, within `share` stored numbers."""


def limit(width: int, whole: int, spare: int = SPARE) -> int:
    """Rank from which on a sketch of this width is not trusted; none if it holds the whole."""
    return NEVER if width >= whole else width - spare + 1


def spread(ranks: Sequence[int]) -> str:
    """Ranks of many units in a few words."""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}..{high} (mean {sum(ranks) / len(ranks):.1f})"


def built_of_fit(core: Core, fit: Fit, params: int, ranks: Ranks) -> Built:
    """Factors of a core as factors of the stack."""
    lost = float(fit.residual.sum()) + core.outside
    return Built(
        n_params=params,
        lost=lost,
        ranks="×".join(map(str, ranks)),
        pairs=FormatPairs(core, fit.tensor),
    )


def nothing_built(seen: Look, n_ranks: int) -> Built:
    """Rank 0 of a stack."""
    return Built(n_params=0, lost=seen.energy, ranks="×".join("0" * n_ranks), pairs=NoPairs())


def stored(n_fixed: int, ranks: Sequence[int], sizes: Sequence[int]) -> int:
    """Numbers of a core of these ranks and of a basis for each."""
    return n_fixed * math.prod(ranks) + sum(r * n for r, n in zip(ranks, sizes, strict=True))
