"""What truncating a tensor costs at most, and tensors on which it costs that much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import sympy

from tdecomp.errors import ArgumentError

__all__ = [
    "hosvd_factor",
    "sequential_sum",
    "tail",
    "train_family",
    "tt_svd_factor",
    "tucker_family",
]


def hosvd_factor(n_truncated: int) -> sympy.Expr:
    """Most that a truncated HOSVD is off, as a multiple of the best possible: ``√N``.

    N is the number of truncated modes; sequential truncation has the same bound, Tucker2 is N = 2.
    Both errors squared are at most the sum over modes of the discarded tails, each of which no
    tensor of these ranks can beat.

    Source: De Lathauwer, De Moor and Vandewalle [delathauwer2000svd], property 10; Vannieuwenhoven,
    Vandebril and Meerbergen [vannieuwenhoven2012].

    >>> hosvd_factor(2)
    sqrt(2)
    """
    return sympy.sqrt(n_truncated)


def tt_svd_factor(order: int) -> sympy.Expr:
    """The same of TT-SVD: ``√(N - 1)`` for a tensor of N modes, one truncation for each bond.

    Source: Oseledets [oseledets2011], corollary 2.4.
    """
    return sympy.sqrt(order - 1)


def tail(x: np.ndarray, modes: Sequence[int], rank: int) -> float:
    """``Σ_{j > r} σ_j²`` of the unfolding with `modes` as rows."""
    rest = [k for k in range(x.ndim) if k not in modes]
    rows = math.prod(x.shape[k] for k in modes)
    s = np.linalg.svd(x.transpose(*modes, *rest).reshape(rows, -1), compute_uv=False)
    return float(np.sum(s[rank:] ** 2))


def sequential_sum(x: np.ndarray, ranks: Sequence[int], order: Sequence[int]) -> float:
    """Squared error of a sequentially truncated HOSVD: exactly the sum of the tails on the way.

    Each projection leaves the energy of its tail behind, orthogonal to what goes on.

    Source: Vannieuwenhoven, Vandebril and Meerbergen [vannieuwenhoven2012].
    """
    total = 0.0
    for mode in order:
        total += tail(x, [mode], ranks[mode])
        rows = np.moveaxis(x, mode, 0)
        u = np.linalg.svd(rows.reshape(len(rows), -1), full_matrices=False)[0][:, : ranks[mode]]
        x = np.moveaxis(np.tensordot(u.T, rows, axes=1), 0, mode)
    return total


def tucker_family(n_truncated: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """A tensor on which HOSVD of rank 2 in its last N modes is off by ``√(N / (1 + gap))``.

    Every truncated mode has three directions. Index 1 of each has energy 1 in an entry of its own,
    index 2 of all of them share one entry of energy ``1 + gap``: it is cheaper to drop index 2
    everywhere (``1 + gap`` in all), but each mode on its own drops index 1, and N is lost. The
    singular values are apart by `gap`: no tie is broken.

    Returns
    -------
    tensor, better
        ``(N + 2, 3, .., 3)`` with one untruncated mode in front, and a tensor of ranks 2 that is
        off by ``√(1 + gap)``.

    Notes
    -----
    Derived here.
    """
    _check_gap(gap)
    x = np.zeros((n_truncated + 2, *[3] * n_truncated))
    x[(0, *[0] * n_truncated)] = 4
    for k in range(n_truncated):
        x[(1 + k, *(int(k == j) for j in range(n_truncated)))] = 1
    better = x.copy()
    x[(n_truncated + 1, *[2] * n_truncated)] = math.sqrt(1 + gap)
    return x, better


def train_family(order: int, gap: float, strong: float = 1e3) -> tuple[np.ndarray, np.ndarray]:
    """A tensor on which TT-SVD of rank 2 is off by almost ``√((N - 1) / (1 + gap))``.

    Bond k has a direction of energy 1 of its own: the entry with index 1 on both sides of it and 0
    elsewhere, which at every other bond shares its row or column with the strong entry ``0 .. 0``.
    Index 2 everywhere is one entry of energy ``1 + gap``. Dropping it would do for all bonds, but
    TT-SVD drops one direction for each. No tie is broken.

    Returns
    -------
    tensor, better
        ``(3, .., 3)``, and what is left of it without index 2: a train of ranks 2, up to
        ``O(1 / strong²)`` in energy.

    Notes
    -----
    Derived here.
    """
    _check_gap(gap)
    x = np.zeros([3] * order)
    x[(0,) * order] = strong
    for k in range(order - 1):
        x[tuple(int(j in (k, k + 1)) for j in range(order))] = 1
    better = x.copy()
    x[(2,) * order] = math.sqrt(1 + gap)
    return x, better


def _check_gap(gap: float) -> None:
    if not 0 < gap < 1:
        raise ArgumentError(f"gap={gap} must be between 0 and 1")
