"""To CP, where a small exact one is known."""

from __future__ import annotations

import operator
from functools import reduce, singledispatch

from array_api_compat import device

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.cp import CP
from tdecomp.formats.lowrank import LowRank
from tdecomp.formats.network import Network
from tdecomp.formats.sum import Sum
from tdecomp.modes import flatten

__all__ = ["to_cp"]


@singledispatch
def to_cp(fmt: Format) -> CP:
    """The tensor as a CP, where one of a known small rank holds it exactly.

    Returns
    -------
    CP
        `LowRank`: rank ``Σ ranks``, each column belongs to one site. A `Network` whose equation is
        that of a CP: its own factors. A `Sum` of these: the columns of all parts. Any tensor of one
        or two modes: the columns of `pair`. A split axis is one mode of its name, ``"(o1 o2)"``.

    Raises
    ------
    ArgumentError
        For everything else, which is no CP of a known small rank: fit one with `tdecomp.cp`.

    Examples
    --------
    >>> import numpy as np
    >>> u, s, vh = np.ones((3, 2)), np.ones(2), np.ones((2, 4))
    >>> cp = to_cp(LowRank(("layer", "out", "in"), (2,), (1, 1), u, s, vh))
    >>> cp.rank, cp.factors[0].tolist()
    (2, [[1.0, 0.0], [0.0, 1.0]])
    """
    if len(fmt.modes) in (1, 2):
        return _of_matrix(fmt)
    raise ArgumentError(
        f"a {type(fmt).__name__} over {' '.join(fmt.modes)} is not a CP of a known small rank:"
        " fit one with tdecomp.cp"
    )


@to_cp.register
def _(fmt: CP) -> CP:
    return fmt


@to_cp.register
def _(fmt: LowRank) -> CP:
    return CP(fmt.modes, fmt.s, (*fmt.owners, fmt.u, fmt.vh.T))


@to_cp.register
def _(fmt: Network) -> CP:
    network = fmt.joined()
    columns: dict[tuple[str, ...], list[Array]] = {(): [], **{(m,): [] for m in fmt.modes}}
    for term, x in zip(network.equation.terms, network.tensors, strict=True):
        own = tuple(n for n in flatten(term) if n in fmt.modes)
        ranks = [n for n in flatten(term) if n not in fmt.modes]
        if own not in columns or not ranks:
            return to_cp.dispatch(Format)(fmt)
        columns[own].append(x if term[-1] in ranks else x.T)
    weights, *factors = columns.values()
    if len(network.rank) != 1 or not all(factors):
        return to_cp.dispatch(Format)(fmt)
    xp = namespace(*fmt.tensors)
    ones = xp.ones(network.rank, dtype=xp.result_type(*fmt.tensors), device=device(fmt.tensors[0]))
    product = lambda arrays, *first: reduce(operator.mul, [*first, *arrays])
    return CP(fmt.modes, product(weights, ones), tuple(map(product, factors)))


@to_cp.register
def _(fmt: Sum) -> CP:
    if len(fmt.modes) in (1, 2):
        return _of_matrix(fmt)
    total, *rest = (to_cp(part) for part in fmt.parts)
    for part in rest:
        total = total._plus(part)
        assert total is not None  # a CP and a CP of the same modes
    return total


def _of_matrix(fmt: Format) -> CP:
    """Through the factors of the only matrix; a vector is one column."""
    if len(fmt.modes) == 1:
        columns = (fmt.to_dense()[:, None],)
    else:
        left, right = fmt.pair(0)
        columns = (left, right.T)
    like = columns[0]
    ones = namespace(like).ones(like.shape[1:], dtype=like.dtype, device=device(like))
    return CP(fmt.modes, ones, columns)
