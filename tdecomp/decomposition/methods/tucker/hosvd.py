"""HOSVD: one basis per mode from the SVD of its unfolding, sequentially truncated or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import permutations

import numpy as np

from tdecomp._xp import Array, adjoint, namespace, to_numpy
from tdecomp.decomposition.which import Which
from tdecomp.linalg import left_basis
from tdecomp.passes.pieces import PIECE
from tdecomp.progress import Progress, silent
from tdecomp.tensor import mode_product

__all__ = [
    "Bases",
    "bases_of",
    "core_energy",
    "exact_basis",
    "leading",
    "leading_bases",
    "project",
    "sequential_bases",
    "truncated_bases",
]

Bases = dict[int, Array]
"""One ``(n, r)`` basis per compressed mode, by position."""

Basis = Callable[[Array, int, int], tuple[Array, Array]]
"""``(x, mode, rank)``: left singular vectors, `rank` or more, and singular values."""


def exact_basis(x: Array, mode: int, rank: int) -> tuple[Array, Array]:
    """All left singular vectors and singular values of an unfolding."""
    del rank
    return left_basis(x, mode)


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
    basis: Basis = exact_basis,
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


def truncated_bases(
    x: Array, rank: Mapping[int, int], which: Which, progress: Progress = silent
) -> tuple[Bases, dict[int, np.ndarray]]:
    """`sequential_bases`, or `leading_bases` where a rank of 0 would leave nothing to look at."""
    if 0 in rank.values():
        return leading_bases(x, rank, progress)
    return sequential_bases(x, rank, progress, which.basis)


def leading_bases(
    x: Array, rank: Mapping[int, int], progress: Progress = silent
) -> tuple[Bases, dict[int, np.ndarray]]:
    """Leading vectors of the full HOSVD, every one from the whole tensor."""
    bases, spectra = bases_of(x, list(rank), progress)
    return {k: leading(u, rank[k]) for k, u in bases.items()}, spectra


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
    shape = tuple(core.shape)
    free = min(modes, default=len(shape))  # leading modes that are all summed over
    blocks = namespace(core).reshape(core, (math.prod(shape[:free]), *shape[free:]))
    rows = max(1, PIECE // math.prod(shape[free:]))
    rest = tuple(k - free + 1 for k in range(free, len(shape)) if k not in modes)
    total = np.zeros(tuple(shape[k] for k in range(len(shape)) if k in modes))
    for start in range(0, blocks.shape[0], rows):
        block = to_numpy(blocks[start : min(start + rows, blocks.shape[0]), ...])
        total += (np.abs(block).astype(np.float64) ** 2).sum(axis=(0, *rest))
    return total


def _cheapest_order(shape: tuple[int, ...], ranks: Mapping[int, int]) -> tuple[int, ...]:
    """Order of the modes with the fewest flops."""
    if len(ranks) > 5:  # 120 orders at most: beyond that, smallest ratio first
        return tuple(sorted(ranks, key=lambda k: ranks[k] / shape[k]))
    return min(permutations(ranks), key=partial(_flops, shape, ranks))


def _flops(shape: tuple[int, ...], ranks: Mapping[int, int], order: Sequence[int]) -> float:
    """Of Gram, eigenproblem and projection, mode after mode."""
    total, sizes = 0.0, list(shape)
    for mode in order:
        n, numbers = sizes[mode], math.prod(sizes)
        total += n * numbers + 10.0 * n**3 + 2.0 * ranks[mode] * numbers
        sizes[mode] = ranks[mode]
    return total
