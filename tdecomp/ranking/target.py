"""What is asked for: ranks, an error or a number of stored numbers."""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from tdecomp.errors import ArgumentError

__all__ = ["Rank", "Target"]

Rank = int | tuple[int, ...] | Mapping[str, int]


@dataclass(frozen=True)
class Target:
    """Exactly one of `rank`, `error` (relative) and `budget` (stored numbers), checked.

    With an error or a budget, no rank may be above `rank_max`.
    """

    rank: Rank | None = None
    error: float | None = None
    budget: int | None = None
    rank_max: int | None = None

    def __post_init__(self):
        if isinstance(self.rank, np.ndarray):
            entries = self.rank.tolist()
            object.__setattr__(self, "rank", tuple(entries) if self.rank.ndim else entries)
        given = [n for n in ("rank", "error", "budget") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ArgumentError(
                f"give exactly one of rank, error and budget, got {' and '.join(given) or 'none'}"
            )
        if self.error is not None and not (isinstance(self.error, Real) and 0 < self.error < 1):
            raise ArgumentError(f"error={self.error!r} must lie between 0 and 1")
        if self.budget is not None and not (
            isinstance(self.budget, Real) and 0 < self.budget < math.inf
        ):
            raise ArgumentError(
                f"budget={self.budget!r} must be a positive number of stored numbers"
            )
        if self.rank_max is not None:
            self._check_cap(self.rank_max)
        for r in _entries(self.rank):
            if not isinstance(r, int | np.integer) or r < 1:
                raise ArgumentError(
                    f"rank={self.rank!r}: every rank must be a whole number, 1 or more"
                )

    def _check_cap(self, most: Any) -> None:
        if not isinstance(most, int | np.integer) or most < 1:
            raise ArgumentError(f"rank_max={most!r} must be a whole number, 1 or more")
        if self.rank is not None:
            raise ArgumentError(
                f"rank_max={most} goes with error= or budget=: rank={self.rank!r} says the ranks"
            )

    @property
    def is_even(self) -> bool:
        """Whether one number stands for all ranks: it is cut to what every mode allows."""
        return isinstance(self.rank, int | np.integer)

    def check_reach(self, largest: int) -> None:
        """Refuse a rank that no mode of any input can have."""
        if isinstance(self.rank, int | np.integer) and self.rank > largest:
            raise ArgumentError(
                f"rank {self.rank} is above every mode: the largest has size {largest}"
            )

    def ranks_of(self, modes: Sequence[str], sizes: Sequence[int]) -> tuple[int, ...]:
        """Rank of each of `modes`: an int means ``min(rank, size)`` everywhere."""
        if isinstance(self.rank, int | np.integer):
            return tuple(min(int(self.rank), n) for n in sizes)
        if isinstance(self.rank, Mapping):
            if unknown := [name for name in self.rank if name not in modes]:
                raise ArgumentError(
                    f"rank names {unknown[0]!r}; the compressed modes are {' '.join(modes)}"
                )
            ranks = tuple(int(self.rank.get(m, n)) for m, n in zip(modes, sizes, strict=True))
        else:
            ranks = tuple(int(r) for r in _entries(self.rank))
        if len(ranks) != len(modes):
            raise ArgumentError(f"rank={self.rank!r} needs {len(modes)} entries: {' '.join(modes)}")
        for mode, r, n in zip(modes, ranks, sizes, strict=True):
            if r > n:
                raise ArgumentError(f"rank {r} is above the size {n} of the mode {mode!r}")
        return ranks


def _entries(rank: Rank | None) -> tuple[int, ...]:
    if rank is None:
        return ()
    if isinstance(rank, Mapping):
        return tuple(rank.values())
    return tuple(rank) if isinstance(rank, Sequence) else (rank,)
