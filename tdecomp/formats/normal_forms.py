"""Normal forms: the one representative of a tensor's many equal factorisations.

The normal form of a Tucker tensor, with orthonormal factors, is `to_tucker`.
"""

from __future__ import annotations

import operator
from functools import reduce

from tdecomp._xp import Array, double, float64_scope, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.cp import CP
from tdecomp.formats.slices import take
from tdecomp.formats.tt import TT
from tdecomp.tensor import mode_product

__all__ = ["canonical", "normalised"]


def canonical(tt: TT, center: int = -1) -> TT:
    """The same TT with orthonormal cores on both sides of `center`.

    Parameters
    ----------
    tt
        Plain TT or MPO.
    center
        The core that keeps the norm: the last (-1, the default) gives the left-canonical form, 0
        the right-canonical, any other a mixed one.

    Returns
    -------
    TT
        Cores before `center`, unfolded as ``(r_k · n, r_{k+1})``, have orthonormal columns; those
        after it, unfolded as ``(r_k, n · r_{k+1})``, orthonormal rows. No bond grows; bonds wider
        than either side of their core shrink. ``norm()`` is that of the centre core.

    Notes
    -----
    Two sweeps of QR ([oseledets2011], Algorithm 2 without the truncation). Exact to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> cores = np.ones((1, 3, 2)), np.ones((2, 4, 2)), np.ones((2, 5, 1))
    >>> left = canonical(TT((("layer",), ("out",), ("in",)), cores))
    >>> bool(np.allclose(np.tensordot(left.cores[1], left.cores[1], ([0, 1], [0, 1])), np.eye(2)))
    True
    """
    d = len(tt.cores)
    if not -d <= center < d:
        raise ArgumentError(f"no core {center} in a TT of {d} cores: give 0 to {d - 1}")
    center %= d
    cores = list(tt.cores)
    for k in range(center):
        cores[k], carry = _orthonormal(cores[k])
        cores[k + 1] = mode_product(cores[k + 1], carry, 0)
    for k in range(d - 1, center, -1):
        flipped, carry = _orthonormal(_flip(cores[k]))
        cores[k] = _flip(flipped)
        cores[k - 1] = mode_product(cores[k - 1], carry, cores[k - 1].ndim - 1)
    return TT(tt.axes, tuple(cores), tt.output)


def normalised(cp: CP) -> CP:
    """The same CP with unit columns, fixed signs and the strongest term first.

    Returns
    -------
    CP
        Every column has norm 1 (or 0 where its term vanishes); weights are not negative and sorted
        from large to small; in all factors but the last the entry of largest magnitude of each
        column is positive, and the last factor carries the sign of the term.

    Notes
    -----
    Norms are taken in float64. Real factors only: a complex CP has phases instead of signs.

    Examples
    --------
    >>> import numpy as np
    >>> t = normalised(CP(("out", "in"), np.ones(1), (np.full((4, 1), -1.0), np.full((4, 1), 3.0))))
    >>> t.weights.tolist(), t.factors[0].ravel().tolist(), t.factors[1].ravel().tolist()
    ([12.0], [0.5, 0.5, 0.5, 0.5], [-0.5, -0.5, -0.5, -0.5])
    """
    xp = namespace(cp.weights)
    if xp.isdtype(cp.weights.dtype, "complex floating"):
        raise ArgumentError("normalised fixes signs: it needs a real CP, this one is complex")
    with float64_scope(cp.weights):
        norms = [_norms(f) for f in cp.factors]
        signs = [_signs(f) for f in cp.factors[:-1]]
        total = reduce(operator.mul, signs, _signs(cp.weights[None, :]))
        weights = reduce(operator.mul, norms, double(xp.abs(cp.weights)))
        order = xp.argsort(weights, descending=True)
        columns = [int(k) for k in order]
        factors = [
            xp.astype(double(f) / xp.where(n > 0, n, xp.ones_like(n))[None, :], f.dtype)
            * xp.astype(sign, f.dtype)[None, :]
            for f, n, sign in zip(cp.factors, norms, [*signs, total], strict=True)
        ]
        return CP(
            cp.modes,
            xp.astype(take(weights, 0, columns), cp.weights.dtype),
            tuple(take(f, 1, columns) for f in factors),
        )


def _norms(factor: Array) -> Array:
    xp = namespace(factor)
    wide = double(factor)
    return xp.sqrt(xp.sum(wide * wide, axis=0))


def _signs(factor: Array) -> Array:
    """Sign of the entry of largest magnitude of every column; 1 for a zero column."""
    xp = namespace(factor)
    extremes = xp.max(factor, axis=0) + xp.min(factor, axis=0)
    ones = xp.ones_like(extremes)
    return xp.where(extremes < 0, -ones, ones)


def _orthonormal(core: Array) -> tuple[Array, Array]:
    """Core with orthonormal columns and the matrix that goes into the next core's bond."""
    xp = namespace(core)
    q, r = xp.linalg.qr(xp.reshape(core, (-1, core.shape[-1])), mode="reduced")
    return xp.reshape(q, (*core.shape[:-1], q.shape[1])), r


def _flip(core: Array) -> Array:
    """The core with its bonds exchanged."""
    xp = namespace(core)
    return xp.permute_dims(core, (core.ndim - 1, *range(1, core.ndim - 1), 0))
