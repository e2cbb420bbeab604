"""Decisions that rounding must not make: what is as good as nothing, and what is as good as equal.

Another machine, another number of threads or another library computes the same singular values to
rounding only. Where data are exactly of a lower rank, or symmetric, choices would otherwise hang
on that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["SAME", "coarse", "first_least", "without_rounding"]

SAME = 1e-4  # relative difference up to which two errors or two gains are called equal
_BITS = 39  # of the 52 of a float64: what is left tells 1e-4 apart


def without_rounding(energy: np.ndarray, floor: float) -> np.ndarray:
    """Squares, largest first, with zeros for the smallest that hold `floor`² / 4 of all together.

    Along the last axis, where there are more.

    What lies there is below the error that the precision can reach (`tdecomp._xp.floor`): noise
    of the computation, which may well be another on another machine.

    >>> without_rounding(np.array([4.0, 1.0, 1e-31]), 1e-14).tolist()
    [4.0, 1.0, 0.0]
    """
    energy = np.asarray(energy, dtype=np.float64)
    tails = np.cumsum(energy[..., ::-1], axis=-1)[..., ::-1]
    total = np.sum(energy, axis=-1, keepdims=True)
    return np.where(tails > (floor / 2) ** 2 * total, energy, 0.0)


def coarse(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of some numbers of 0 or more, equal where those are nearly equal.

    >>> keys = coarse(np.array([1.0, 1.0 + 1e-9, 1.01]))
    >>> bool(keys[0] == keys[1] < keys[2])
    True
    """
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    return (bits + (1 << (_BITS - 1))) >> _BITS


def first_least(values: Sequence[float], nothing: float = 0.0) -> int:
    """Position of the first value that is as good as the least one, or as good as `nothing`.

    >>> first_least([1.00001, 1.0, 2.0]), first_least([1e-30, 1e-32], nothing=1e-28)
    (0, 0)
    """
    least = max(min(values), nothing) * (1 + SAME)
    return next(i for i, value in enumerate(values) if value <= least)
