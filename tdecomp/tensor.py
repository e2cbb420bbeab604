"""Unfoldings and mode products of dense tensors, arranged so that BLAS sees contiguous operands."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from functools import reduce

from array_api_compat import device

from tdecomp._threads import threads_by_size
from tdecomp._xp import Array, adjoint, double, namespace

__all__ = ["gram", "mode_product", "promoted", "unfold", "widened"]

_SHORT = 64  # numbers of a row that is multiplied whole, zeros and all
_TILE = 1 << 22  # numbers widened to float64 at a time: 32 MiB


def promoted(arrays: Sequence[Array]) -> list[Array]:
    """`arrays` in the dtype that all of them fit in: torch multiplies no mixed matrices."""
    xp = namespace(*arrays)
    dtype = xp.result_type(*arrays)
    return [x if x.dtype == dtype else xp.astype(x, dtype) for x in arrays]


def unfold(x: Array, mode: int) -> Array:
    """Mode-`mode` unfolding in C order: ``(n, product of the other sizes)``.

    >>> import numpy as np
    >>> unfold(np.arange(6).reshape(3, 2), 1).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """
    xp = namespace(x)
    return xp.reshape(xp.moveaxis(x, mode, 0), (x.shape[mode], -1))


@threads_by_size
def mode_product(x: Array, matrix: Array, mode: int) -> Array:
    """Product with a matrix along one mode: ``y[.., r, ..] = Σ_n matrix[r, n] x[.., n, ..]``.

    Parameters
    ----------
    x
        Tensor, any order.
    matrix
        ``(r, n)`` with ``n = x.shape[mode]``.
    mode
        Position of the mode.

    Returns
    -------
    Array
        As `x` with size ``r`` at `mode`. No permuted copy of `x` is made when it is C-contiguous.
    """
    xp = namespace(x, matrix)
    x, matrix = promoted([x, matrix])
    before, n, after = _split(x.shape, mode)
    shape = (*x.shape[:mode], matrix.shape[0], *x.shape[mode + 1 :])
    if before > after > 0 and n * after <= _SHORT:  # many small products as one
        if after > 1:
            matrix = _kron_eye(matrix, after)
        return xp.reshape(xp.reshape(x, (before, n * after)) @ matrix.T, shape)
    if after == 1:
        return xp.reshape(xp.reshape(x, (before, n)) @ matrix.T, shape)
    return xp.reshape(matrix @ xp.reshape(x, (before, n, after)), shape)


def gram(x: Array, mode: int) -> Array:
    """Gram matrix of an unfolding, ``X Xᴴ`` of shape ``(n, n)``, accumulated in float64.

    Float32 data keep singular values down to about 1e-7 of the largest; only a tile of `x` is
    widened at a time.
    """
    xp = namespace(x)

    def squared(tile: Array) -> Array:
        rows = xp.reshape(double(xp.permute_dims(tile, (1, 0, 2))), (tile.shape[1], -1))
        return rows @ adjoint(rows)

    return reduce(operator.add, map(squared, _tiles(xp.reshape(x, _split(x.shape, mode)))))


def widened(x: Array, mode: int, n: int) -> Array:
    """`x` with zeros behind the entries of a mode, so that it has the size `n`; or as it is."""
    missing = n - x.shape[mode]
    if missing <= 0:
        return x
    xp, shape = namespace(x), (*x.shape[:mode], missing, *x.shape[mode + 1 :])
    return xp.concat([x, xp.zeros(shape, dtype=x.dtype, device=device(x))], axis=mode)


def _kron_eye(matrix: Array, n: int) -> Array:
    """``matrix ⊗ 1``: ``(r, m) -> (r n, m n)``."""
    xp = namespace(matrix)
    eye = xp.eye(n, dtype=matrix.dtype, device=device(matrix))
    wide = matrix[:, None, :, None] * eye[None, :, None, :]
    return xp.reshape(wide, (matrix.shape[0] * n, matrix.shape[1] * n))


def _split(shape: tuple[int, ...], mode: int) -> tuple[int, int, int]:
    return math.prod(shape[:mode]), shape[mode], math.prod(shape[mode + 1 :])


def _tiles(x: Array) -> Iterator[Array]:
    """Pieces of ``(before, n, after)`` of at most a tile, cut along `before` and `after`."""
    before, n, after = x.shape
    columns = max(1, min(after, _TILE // n))
    rows = max(1, _TILE // (n * columns)) if columns == after else 1
    for i in range(0, before, rows):
        for j in range(0, after, columns):
            yield x[i : min(i + rows, before), :, j : min(j + columns, after)]
