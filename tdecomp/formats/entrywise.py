"""The entrywise product of two formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tdecomp.errors import ArgumentError
from tdecomp.formats import pairs
from tdecomp.formats.base import Factored, Format
from tdecomp.formats.cp import CP
from tdecomp.formats.lowrank import LowRank
from tdecomp.formats.network import Network, as_network
from tdecomp.formats.slices import take
from tdecomp.formats.sum import Sum
from tdecomp.formats.tt import TT
from tdecomp.formats.tucker import Tucker
from tdecomp.formats.tucker2 import Tucker2

__all__ = ["hadamard"]


def hadamard(a: Format, b: Format) -> Format:
    """Entrywise product ``X[i, j, ...] = a[i, j, ...] · b[i, j, ...]`` of any two formats, exactly.

    Returns
    -------
    Format
        Of two tensors of one format (CP, `LowRank`, Tucker, Tucker2 of the same two modes, TT of
        the same chain): that format, its ranks the products of both ranks. Of a `Sum`: the sum of
        the products of its parts. Otherwise a `Network` of the factors of both over the modes of
        `a`; what only `b` splits comes out split.

    Notes
    -----
    Ranks ``r`` and ``s`` of one format give ``r s`` columns and the product of both cores
    in numbers. A network stores only the sum of both counts and does no arithmetic; for the cheap
    form of two tensors of one format write ``hadamard(a.to_network(), b.to_network())``. A split
    axis meets a plain one of the same size; all other modes must agree by name.

    Examples
    --------
    >>> import numpy as np
    >>> t = CP(("out", "in"), np.ones(2), (np.ones((3, 2)), np.ones((4, 2))))
    >>> hadamard(t, t).rank, str(hadamard(t.to_network(), t).equation)
    (4, 'out r, in r, r, out r_, in r_, r_ -> out in')
    """
    if not (isinstance(a, Format) and isinstance(b, Format)):
        raise ArgumentError(f"expected two formats, got {type(a).__name__} and {type(b).__name__}")
    products = [_product(x, y) for x in a._summands() for y in b._summands()]
    return products[0] if len(products) == 1 else Sum(tuple(products))


def _product(a: Factored, b: Factored) -> Format:
    alike = type(a) is type(b) and a.modes == b.modes and a.shape == b.shape
    within = _WITHIN[type(a)](a, b) if alike and type(a) in _WITHIN else None
    if within is not None:
        return within
    left, right = as_network(a), as_network(b)
    equation, arrays = pairs.elementwise(
        (left.equation, left.tensors), (right.equation, right.tensors)
    )
    return Network(equation, tuple(arrays))


def _factor_by_factor(a: Factored, b: Factored) -> Format | None:
    """Column-wise Kronecker products of the arrays of one equation; None for two equations."""
    if a.equation != b.equation:
        return None
    mine, theirs = a.arrays, b.arrays
    arrays = pairs.kronecker(a.equation, list(mine.values()), list(theirs.values()))
    return None if arrays is None else a.with_arrays(dict(zip(mine, arrays, strict=True)))


def _tucker(a: Tucker, b: Tucker) -> Format | None:
    return _factor_by_factor(*a.equally_opened(b))


def _low_rank(a: LowRank, b: LowRank) -> LowRank:
    """All pairs of columns within each site."""
    sites = range(a.n_sites)
    crossed = [(i, j) for site in sites for i in a.columns(site) for j in b.columns(site)]
    first, second = [i for i, _ in crossed], [j for _, j in crossed]
    u, v = pairs.promoted([a.u, b.u])
    s, t = pairs.promoted([a.s, b.s])
    vh, wh = pairs.promoted([a.vh, b.vh])
    return LowRank(
        a.modes,
        a.sites,
        tuple(r * q for r, q in zip(a.ranks, b.ranks, strict=True)),
        take(u, 1, first) * take(v, 1, second),
        take(s, 0, first) * take(t, 0, second),
        take(vh, 0, first) * take(wh, 0, second),
    )


_WITHIN: dict[type[Format], Callable[[Any, Any], Format | None]] = {
    CP: _factor_by_factor,
    LowRank: _low_rank,
    TT: _factor_by_factor,
    Tucker: _tucker,
    Tucker2: _factor_by_factor,
}
"""Products that stay in a format; None where these two do not."""
