"""To CP, where a small exact one is known."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce, singledispatch

from array_api_compat import device

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats._base import Format
from tdecomp.formats._equations import fresh
from tdecomp.formats.cp import CP
from tdecomp.formats.lowrank import LowRank
from tdecomp.formats.network import Network
from tdecomp.formats.sum import Sum
from tdecomp.modes import flatten, parse_modes

__all__ = ["plain_names", "to_cp"]


@singledispatch
def to_cp(fmt: Format) -> CP:
    """The tensor as a CP, where one of a known small rank holds it exactly.

    Returns
    -------
    CP
        `LowRank`: rank ``Σ ranks``, each column belongs to one site. A `Network` whose equation is
        that of a CP: its own factors. A `Sum` of these: the columns of all parts. Any tensor of one
        or two modes: the columns of `pair`. A split axis ``(o1 o2)`` becomes the mode ``o1_o2``.

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
        f"a {type(fmt).__name__} over {' '.join(fmt.modes)} is no CP of a known small rank:"
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
    if len(fmt.rank) != 1 or any(not isinstance(axis, str) for axis in fmt.equation.output):
        return to_cp.dispatch(Format)(fmt)
    (r,) = set(flatten(fmt.equation.terms[0])) - set(fmt.modes) or {""}
    factors = {m: [x for t, x in _terms(fmt) if set(t) == {m, r}] for m in fmt.modes}
    weights = [x for t, x in _terms(fmt) if t == (r,)]
    used = len(weights) + sum(len(own) for own in factors.values())
    if used != len(fmt.tensors) or any(not own for own in factors.values()):
        return to_cp.dispatch(Format)(fmt)
    columns = [reduce(operator.mul, factors[m]) for m in fmt.modes]
    xp = namespace(*fmt.tensors)
    ones = xp.ones(fmt.rank, dtype=xp.result_type(*fmt.tensors), device=device(fmt.tensors[0]))
    return CP(fmt.modes, reduce(operator.mul, weights, ones), tuple(columns))


@to_cp.register
def _(fmt: Sum) -> CP:
    if len(fmt.modes) in (1, 2):
        return _of_matrix(fmt)
    total, *rest = (to_cp(part) for part in fmt.parts)
    for part in rest:
        total = total._plus(part)
        assert total is not None  # a CP and a CP of the same modes
    return total


def plain_names(modes: Sequence[str]) -> tuple[str, ...]:
    """Names of modes with split axes as one name, ``(o1 o2)`` as ``o1_o2``."""
    names: list[str] = []
    for mode in modes:
        others = [*names, *(m for m in modes if m != mode)]
        names += fresh(["_".join(flatten(parse_modes(mode)))], others)
    return tuple(names)


def _of_matrix(fmt: Format) -> CP:
    """Through the factors of the only matrix; a vector is one column."""
    modes = plain_names(fmt.modes)
    if len(modes) == 1:
        columns = (fmt.to_dense()[:, None],)
    else:
        left, right = fmt.pair(0)
        columns = (left, right.T)
    like = columns[0]
    ones = namespace(like).ones(like.shape[1:], dtype=like.dtype, device=device(like))
    return CP(modes, ones, columns)


def _terms(fmt: Network) -> list[tuple[tuple[str, ...], Array]]:
    """Names and arrays of the terms; matrices with the mode first."""
    found = []
    for term, x in zip(fmt.equation.terms, fmt.tensors, strict=True):
        names = flatten(term)
        turned = len(names) == 2 and names[1] in fmt.modes
        found.append((names[::-1], x.T) if turned else (names, x))
    return found
