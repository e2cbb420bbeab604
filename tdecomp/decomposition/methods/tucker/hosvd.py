"""HOSVD: one basis per mode from the SVD of its unfolding, sequentially truncated or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np

from tdecomp._xp import Array, adjoint, to_numpy
from tdecomp.linalg import left_basis
from tdecomp.progress import Progress, silent
from tdecomp.tensor import mode_product

__all__ = ["bases_of", "core_energy", "leading", "project", "sequential_bases"]

Bases = dict[int, Array]
"""One ``(n, r)`` basis per compressed mode, by position."""


def bases_of(
    x: Array, modes: Sequence[int], progress: Progress = silent
) -> tuple[Bases, dict[int, np.ndarray]]:
    """Full HOSVD bases of the given modes, and the singular values of their unfoldings."""
    bases, spectra = {}, {}
    for i, mode in enumerate(modes):
        bases[mode], s = left_basis(x, mode)
        spectra[mode] = to_numpy(s)
        progress((i + 1) / len(modes))
    return bases, spectra


def sequential_bases(
    x: Array,
    ranks: Mapping[int, int],
    progress: Progress = silent,
    basis: Callable[[Array, int, int], tuple[Array, Array]] = lambda x, mode, _: left_basis(
        x, mode
    ),
) -> tuple[Bases, dict[int, np.ndarray]]:
    """Sequentially truncated HOSVD: each mode is projected before the next is looked at.

    With exact bases (the default) the squared error is exactly the sum of the tails discarded along
    the way, at most the number of modes times the best possible ([vannieuwenhoven2012]). The order
    of the modes is the one with the fewest flops.
    """
    bases, spectra = {}, {}
    for i, mode in enumerate(_cheapest_order(tuple(x.shape), ranks)):
        u, s = basis(x, mode, ranks[mode])
        bases[mode] = leading(u, ranks[mode])
        spectra[mode] = to_numpy(s)
        x = project(x, {mode: bases[mode]})
        progress((i + 1) / len(ranks))
    return bases, spectra


def leading(u: Array, rank: int) -> Array:
    """The first `rank` columns, all if there are fewer."""
    return u[:, : min(rank, u.shape[1])]


def project(x: Array, bases: Mapping[int, Array]) -> Array:
    """``X ×_k U_kᴴ`` over the given modes, the strongest reduction first."""
    for mode in sorted(bases, key=lambda k: bases[k].shape[1] / bases[k].shape[0]):
        x = mode_product(x, adjoint(bases[mode]), mode)
    return x


def core_energy(core: Array, modes: Sequence[int]) -> np.ndarray:
    """Squares of a core in float64, summed over all modes but the given ones."""
    if modes and min(modes) > 0:
        rest = [m - 1 for m in modes]
        return sum(core_energy(core[i, ...], rest) for i in range(core.shape[0]))  # type: ignore[return-value]
    squares = np.abs(to_numpy(core)).astype(np.float64) ** 2
    return squares.sum(axis=tuple(k for k in range(squares.ndim) if k not in modes))


def _cheapest_order(shape: tuple[int, ...], ranks: Mapping[int, int]) -> tuple[int, ...]:
    """Order of the modes with the fewest flops: Gram, eigenproblem and projection of each step."""

    def flops(order: tuple[int, ...]) -> float:
        total, sizes = 0.0, list(shape)
        for mode in order:
            n, numbers = sizes[mode], math.prod(sizes)
            total += n * numbers + 10.0 * n**3 + 2.0 * ranks[mode] * numbers
            sizes[mode] = ranks[mode]
        return total

    if len(ranks) > 5:  # 120 orders at most: beyond that, smallest ratio first
        return tuple(sorted(ranks, key=lambda k: ranks[k] / shape[k]))
    return min(permutations(ranks), key=flops)
