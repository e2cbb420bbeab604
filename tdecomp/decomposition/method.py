"""A decomposition as the driver sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tdecomp.decomposition.fit import Fit
from tdecomp.progress import Progress
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.target import Target

__all__ = ["Analysis", "Method", "Share"]


@dataclass(frozen=True)
class Analysis:
    """Frontiers of one input, the error its precision can reach, and what its fit can reuse.

    Attributes
    ----------
    state, state_size
        What the fit can reuse, and how many numbers that holds.
    limits, wider
        Where the frontiers come from a sketch: the largest ranks it can tell anything about, and a
        wider look at the input, for when one of them is chosen.
    """

    frontiers: list[Frontier]
    floor: float
    state: Any = None
    state_size: int = 0
    limits: tuple[int, ...] = ()
    wider: Callable[[Progress], Analysis] | None = None

    def is_at_limit(self, positions: Sequence[int]) -> bool:
        """Whether one of the positions on the frontiers has a rank at its limit."""
        pairs = zip(self.frontiers, positions, strict=True)
        return self.wider is not None and any((f.ranks[i] >= self.limits).any() for f, i in pairs)


@dataclass(frozen=True)
class Share:
    """What falls to one input of an error or a budget: squared error, or stored numbers."""

    lost: float | None = None
    params: int | None = None


@dataclass(frozen=True)
class Method:
    """A decomposition as the driver sees it.

    Attributes
    ----------
    sizes
        ``x -> sizes``: the modes that a rank can cut.
    analyse
        ``(x, progress) -> Analysis``: what each unit of `x` can trade.
    ranks
        ``(x, target) -> rank tuples``, one per unit, for a target that names ranks.
    fit
        ``(x, rank tuples, state, progress) -> Fit``.
    spend
        ``(x, rank tuples, share, state, progress) -> Fit``, for a method whose frontiers are only
        estimates: chooses ranks anew, near those given, to use the share up and not exceed it.
    """

    sizes: Callable[[Any], Sequence[int]]
    analyse: Callable[[Any, Progress], Analysis]
    ranks: Callable[[Any, Target], list[tuple[int, ...]]]
    fit: Callable[[Any, list[tuple[int, ...]], Any, Progress], Fit]
    spend: Callable[[Any, list[tuple[int, ...]], Share, Any, Progress], Fit] | None = None
