"""Singular values and vectors of matrices and unfoldings, exact to the working precision.

Float32 data go through Gram matrices accumulated in float64; float64 data through LAPACK's SVD,
because a Gram matrix would lose everything below 1e-8 of the largest singular value.
"""

from __future__ import annotations

import math

from tdecomp._xp import Array, adjoint, namespace
from tdecomp.tensor import gram, unfold

__all__ = ["left_basis", "singular_values", "truncated_svd"]


def left_basis(x: Array, mode: int) -> tuple[Array, Array]:
    """Left singular vectors and singular values of the mode-`mode` unfolding.

    Returns
    -------
    u : ``(n, k)``
        Orthonormal columns, strongest first, ``k = min(n, product of the other sizes)``.
    s : ``(k,)``
        Singular values, float64 for float32 input.

    Notes
    -----
    Every leading part of ``u`` minimises ``‖X − u uᴴ X‖`` over bases of its width: the HOSVD factor
    of this mode ([delathauwer2000svd]).
    """
    xp = namespace(x)
    n = x.shape[mode]
    width = min(n, max(1, math.prod(x.shape) // n))
    if _is_double(x):
        u, s, _ = _svd(xp, _reduce(xp, unfold(x, mode)))
        return u[:, :width], s[:width]
    values, u = xp.linalg.eigh(gram(x, mode))
    s = xp.sqrt(xp.clip(xp.flip(values), min=0.0))
    return xp.astype(xp.flip(u, axis=1)[:, :width], x.dtype), s[:width]


def singular_values(x: Array) -> Array:
    """Singular values of a matrix, largest first, in float64."""
    xp = namespace(x)
    if _is_double(x):
        return xp.linalg.svdvals(x)
    values = xp.linalg.eigvalsh(gram(x, 0 if x.shape[0] <= x.shape[1] else 1))
    return xp.sqrt(xp.clip(xp.flip(values), min=0.0))


def truncated_svd(x: Array, rank: int) -> tuple[Array, Array, Array]:
    """Best rank-`rank` approximation ``u · diag(s) · vh`` of a matrix.

    Parameters
    ----------
    x
        ``(out, in)``.
    rank
        Between 0 and ``min(out, in)``.

    Returns
    -------
    u, s, vh : ``(out, rank)``, ``(rank,)``, ``(rank, in)``
        In the dtype of `x`; signs are LAPACK's.

    Notes
    -----
    Optimal by [eckart1936]. Below a quarter of full rank the basis of the shorter side comes from a
    Gram matrix in float64 and only a ``(rank, long)`` matrix is decomposed.

    >>> import numpy as np
    >>> u, s, vh = truncated_svd(np.diag([3.0, 2.0, 1.0]), 2)
    >>> s.tolist()
    [3.0, 2.0]
    """
    xp = namespace(x)
    if rank == 0:
        return x[:, :0], xp.zeros((0,), dtype=x.dtype, device=x.device), x[:0, :]
    if _is_double(x) or 4 * rank > min(x.shape):
        u, s, vh = _svd(xp, x)
        return u[:, :rank], s[:rank], vh[:rank, :]
    if x.shape[0] > x.shape[1]:
        u, s, vh = truncated_svd(x.T, rank)
        return vh.T, s, u.T
    basis = left_basis(x, 0)[0][:, :rank]  # (out, rank)
    w, s, vh = _svd(xp, adjoint(basis) @ x)
    return basis @ w, s, vh


def _svd(xp, x: Array) -> tuple[Array, Array, Array]:
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    return u, s, vh


def _reduce(xp, matrix: Array) -> Array:
    """A matrix of the same left singular vectors and values, no wider than it is tall."""
    if matrix.shape[1] <= matrix.shape[0]:
        return matrix
    return adjoint(xp.linalg.qr(adjoint(matrix), mode="reduced")[1])


def _is_double(x: Array) -> bool:
    xp = namespace(x)
    return x.dtype in (xp.float64, xp.complex128)
