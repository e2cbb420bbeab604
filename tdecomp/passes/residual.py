"""What factors leave of the data, formed and summed directly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tdecomp._threads import threads_for
from tdecomp._xp import (
    Array,
    double,
    namespace,
    quick_sum_of_squares,
    sum_of_squares,
    to_numpy,
)
from tdecomp.errors import DataError
from tdecomp.formats import Format
from tdecomp.passes.pieces import PIECE, is_cut_finely, pieces_of
from tdecomp.passes.slices import are_light, dense, each_slice
from tdecomp.progress import Progress, silent
from tdecomp.stack import Stack
from tdecomp.tasks import OfSlices, sendable

__all__ = ["measure", "relative", "residual_of_pair", "residual_of_pairs", "squares"]

_DIRECT_IN_DOUBLE = 1e-4  # below this, float32 products would round the residual itself
_ROWS = 1 << 19  # numbers of a matrix looked at together: 2 MiB of float32, so that they stay near


def relative(residual: float, energy: float) -> float:
    """Relative error from squared residual and squared norm; 0 for a zero tensor."""
    return math.sqrt(residual / energy) if energy > 0 else 0.0


def measure(
    x: Array | Stack,
    tensor: Format,
    energies: Sequence[float] | None = None,
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared residual and squared norm of every matrix, formed directly; norms may be known.

    Large matrices one at a time, smaller ones in pieces of about a million numbers, whatever the
    modes. Differences are taken in the working precision and summed in float64; where the relative
    error is below 1e-4 the products are formed in float64 too. An array of order 1 is one row.
    """
    if not isinstance(x, Stack) and (math.prod(x.shape) <= PIECE or len(x.shape) < 2):
        return _of_block(dense(x), tensor)
    if is_cut_finely(x.shape, read=isinstance(x, Stack)):
        parts, n = [], math.prod(x.shape[:-2])
        for piece, block in pieces_of(x):
            parts.append(_of_block(block, tensor[piece.index]))
            progress(piece.sites.stop / n)
        residual, energy = (np.concatenate(part) for part in zip(*parts, strict=True))
    else:
        known = None if energies is None else OfSlices(dict(enumerate(energies)))
        work = partial(_left_of, tensor, known)
        with each_slice(x, work, progress, in_turn=are_light(x)) as pairs:
            residual, energy = np.array(list(pairs), dtype=np.float64).T
    if not np.isfinite(energy).all():
        raise DataError("the array contains NaN or Inf")
    return residual, energy


@sendable
def _left_of(
    tensor: Format, energies: OfSlices[float] | None, i: int, matrix: Array
) -> tuple[float, float]:
    known = None if energies is None else energies[i]
    return residual_of_pair(matrix, *tensor.pair(i), known)


def _of_block(x: Array, tensor: Format) -> tuple[np.ndarray, np.ndarray]:
    """The same for an array that is small enough to be compared whole."""
    energy, residual = squares(x), squares(x - _like(tensor, x))
    if residual.sum() < _DIRECT_IN_DOUBLE**2 * energy.sum():
        wide = tensor.with_arrays({name: double(a) for name, a in tensor.arrays.items()})
        residual = squares(double(x) - _like(wide, x))
    return residual, energy


def _like(tensor: Format, x: Array) -> Array:
    return namespace(x).reshape(tensor.to_dense(), tuple(x.shape))


def squares(x: Array) -> np.ndarray:
    """Squared norm of every matrix, in float64."""
    xp = namespace(x)
    rows = double(xp.reshape(x, (-1, math.prod(x.shape[-2:]))))
    found = xp.vecdot(rows, rows)
    return to_numpy(xp.real(found) if xp.isdtype(rows.dtype, "complex floating") else found)


def residual_of_pairs(x: Array, left: Array, right: Array) -> tuple[np.ndarray, np.ndarray]:
    """`residual_of_pair` of many small matrices ``(sites, out, in)`` together."""
    energy, residual = squares(x), squares(x - left @ right)
    if residual.sum() < _DIRECT_IN_DOUBLE**2 * energy.sum():
        residual = squares(double(x) - double(left) @ double(right))
    return residual, energy


def residual_of_pair(
    matrix: Array, left: Array, right: Array, energy: float | None = None
) -> tuple[float, float]:
    """``‖M − L R‖²`` and ``‖M‖²``, as `measure` forms them, a few rows at a time."""
    n = matrix.shape[0]
    step = max(1, _ROWS // matrix.shape[1])
    tiles = [slice(i, min(i + step, n)) for i in range(0, n, step)]
    arrays = matrix, left, right
    plain = all(isinstance(a, np.ndarray) and a.dtype == matrix.dtype for a in arrays)
    room = np.empty((min(step, n), matrix.shape[1]), matrix.dtype) if plain else None
    residual = seen = 0.0
    with threads_for(step * matrix.shape[1] * max(1, right.shape[0] // 8)):
        for rows in tiles:
            tile = matrix[rows, :]
            if energy is None:
                seen += quick_sum_of_squares(tile)
            residual += quick_sum_of_squares(_rest(tile, left[rows, :], right, room))
    energy = seen if energy is None else energy
    if residual < _DIRECT_IN_DOUBLE**2 * energy:
        wide = double(right)
        residual = sum(
            sum_of_squares(double(matrix[rows, :]) - double(left[rows, :]) @ wide) for rows in tiles
        )
    return residual, energy


def _rest(tile: Any, left: Any, right: Any, room: np.ndarray | None) -> Array:
    """``tile − left right``, in `room` if given, of numpy: new memory would cost more than that."""
    if room is None:
        return tile - left @ right
    out = room[: tile.shape[0]]
    np.matmul(left, right, out=out)
    return np.subtract(tile, out, out=out)
