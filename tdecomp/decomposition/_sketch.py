"""Coordinates of the two long modes of a stack, from a few passes of skinny products over it.

One slice is in memory at a time. With ``k = rank + 10`` columns a pass costs ``2 k · numbers``
flops, and everything after it is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tdecomp._xp import Array, adjoint, namespace, quick_sum_of_squares, sum_of_squares
from tdecomp.decomposition._fit import Input, raw_slices
from tdecomp.decomposition._frame import Frame
from tdecomp.errors import DataError
from tdecomp.linalg import is_cheap, left_basis, svd_randomized

__all__ = ["is_worth_sketching", "sketched_core"]

_OVERSAMPLES = 10
_SETTLED = 1e-4  # relative change of the captured energy that ends the passes
_PASSES = 17  # over the slices, at most


def is_worth_sketching(shape: tuple[int, ...], ranks: tuple[int, int]) -> bool:
    """Whether exact bases of both long modes would cost more than a few skinny products."""
    numbers = math.prod(shape)
    unfolded = ((n, numbers // n) for n in shape[-2:])
    return not any(
        is_cheap(s, rank + _OVERSAMPLES) for s, rank in zip(unfolded, ranks, strict=True)
    )


def sketched_core(x: Input, ranks: tuple[int, int], seed: int) -> tuple[Array, Frame, float]:
    """A stack in coordinates that hold nearly all of what Tucker2 of these ranks can capture.

    ``Q2`` comes from the sketch ``Σ_l Ω_lᵀ X_l`` ([halko2011]). Then by turns ``A_l = X_l Q2``
    gives ``Q1``, the leading left singular vectors of all ``A_l`` side by side, and
    ``B_l = Q1ᵀ X_l`` gives ``Q2``, until the captured energy ``Σ‖Q1ᵀ X_l Q2‖²`` changes by less
    than 1e-4 of itself. Three passes are the least.

    Parameters
    ----------
    x
        ``(..., out, in)`` or a stack.
    ranks
        Of ``out`` and ``in``.
    seed
        Ω is drawn in numpy, a generator for every slice, keyed by the seed and its position.

    Returns
    -------
    core : ``(..., k1, k2)``
        ``Q1ᵀ X_l Q2``.
    frame
        The bases, as lifts of the last two modes.
    energy
        ``‖X‖²``.

    Raises
    ------
    DataError
        NaN or Inf, seen in the sketch.
    """
    k1, k2 = (rank + _OVERSAMPLES for rank in ranks)
    sketch, energy = _sketch(x, k2, seed)
    xp = namespace(sketch)
    q2 = xp.linalg.qr(adjoint(sketch), mode="reduced")[0]  # (in, k2)
    passes, captured = 1, 0.0
    while True:
        a = _side_by_side(m @ q2 for m in raw_slices(x))  # (out, sites k2)
        q1 = _leading(a, k1)
        half = sum_of_squares(adjoint(q1) @ a)
        projected = [adjoint(q1) @ m for m in raw_slices(x)]  # (k1, in) each
        q2 = _leading(_side_by_side(adjoint(p) for p in projected), k2)
        core = xp.stack([p @ q2 for p in projected])  # (sites, k1, k2)
        captured, passes = sum_of_squares(core), passes + 2
        if captured - half <= _SETTLED * captured or passes >= _PASSES:
            break
    n = len(x.shape)
    core = xp.reshape(core, (*x.shape[:-2], *core.shape[-2:]))
    lift = {n - 2: q1, n - 1: adjoint(q2).T}
    return core, Frame(lift, {k: adjoint(q) for k, q in lift.items()}), energy


def _sketch(x: Input, width: int, seed: int) -> tuple[Array, float]:
    """``Σ_l Ω_lᵀ X_l``, ``(width, in)``, and ``‖X‖²``."""
    total, energy = None, 0.0
    for site, matrix in enumerate(raw_slices(x)):
        xp = namespace(matrix)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(site,)))
        drawn = rng.standard_normal((width, matrix.shape[0]), dtype=np.float32)
        part = xp.asarray(drawn, dtype=matrix.dtype, device=matrix.device) @ matrix
        total = part if total is None else total + part
        energy += quick_sum_of_squares(matrix)
    assert total is not None
    if not math.isfinite(energy) or not bool(
        namespace(total).all(namespace(total).isfinite(total))
    ):
        raise DataError("the array to decompose contains NaN or Inf")
    return total, energy


def _leading(matrix: Array, width: int) -> Array:
    """Leading left singular vectors; of a wide matrix by a sketch with two power steps."""
    if matrix.shape[1] > 4 * (width + _OVERSAMPLES):
        return svd_randomized(matrix, width, n_oversamples=_OVERSAMPLES, n_power_iter=2)[0]
    return left_basis(matrix, 0)[0][:, :width]


def _side_by_side(parts: Iterable[Array]) -> Array:
    blocks = list(parts)
    return namespace(blocks[0]).concat(blocks, axis=1)
