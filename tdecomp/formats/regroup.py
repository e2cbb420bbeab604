"""A train over other modes: one split in several, neighbours joined, all in C order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tdecomp._xp import Array, namespace, tol
from tdecomp.errors import ArgumentError
from tdecomp.formats.legs import Legs, name_legs, read_legs
from tdecomp.formats.normal_forms import canonical
from tdecomp.formats.tt import TT
from tdecomp.tensor import mode_product

__all__ = ["regroup"]

_MOST = 1 << 28  # numbers of a core that modes are joined to


def regroup(tt: TT, shape: Sequence[Any], *, names: Any = None) -> TT:
    """The train of ``reshape(X, shape)``: modes split and joined, without forming the tensor.

    Parameters
    ----------
    tt
        A train with its modes in the order of the chain, or an MPO ``(o1 i1) (o2 i2) ..`` over
        ``(o1 o2 ..) (i1 i2 ..)``, whose two sides are reshaped each.
    shape
        New sizes, ``(2,) * 12``; for an MPO pairs, ``[(2, 2)] * 6``. They multiply to the old ones.
    names
        Of the new modes, by default m0, m1, ...; for an MPO ``"(o1 i1) (o2 i2)"``.

    Returns
    -------
    TT
        Exact to rounding, left-orthonormal, the last core with the norm. New bonds are as narrow as
        they can be to about ``tol(dtype, 1)`` of ``‖X‖``: to an error or a rank, round it with
        `tdecomp.tt_round`.

    Raises
    ------
    ArgumentError
        If the sizes do not multiply to the old ones, the modes are not in the order of the chain,
        or too many modes would have to be joined at once.

    Notes
    -----
    Where products of the first old and of the first new sizes agree, the chain is cut; what lies
    between two cuts is one core on the way, split from the left by SVD ([oseledets2011]). Sizes
    that never agree, ``(3, 4)`` and ``(4, 3)``, thus make one core of them all. Not under
    ``jax.jit``: the bonds depend on the values.

    Examples
    --------
    >>> import numpy as np
    >>> line = TT("x", (np.arange(16.0)[None, :, None],))
    >>> regroup(line, (2,) * 4)
    TT(m0 2, m1 2, m2 2, m3 2; rank 1,2,2,2,1; 24 numbers; f64)
    >>> regroup(regroup(line, (2,) * 4), (16,)).to_dense()[:3].round(12).tolist()
    [0.0, 1.0, 2.0]
    """
    old, new = _legs_of(tt), read_legs("shape", shape)
    _check(tt, old, new)
    axes, output = name_legs(len(new), len(new[0]), names)
    waiting, cores, carry = list(canonical(tt, 0).cores), [], None
    for count, legs in _segments(old, new):
        joined = _joined(waiting[:count], carry)
        del waiting[:count]
        more, carry = _split(joined, legs, last=not waiting)
        cores += more
    return TT(axes, tuple(cores), output)


def _legs_of(tt: TT) -> Legs:
    counts = {len(names) for names in tt.axes}
    chain = tuple(zip(*tt.axes, strict=True)) if len(counts) == 1 else ()
    in_order = tuple(axis[0] if len(axis) == 1 else axis for axis in chain)
    flat = tuple(names[0] for names in tt.axes) if counts == {1} else in_order
    if tt.output != flat:
        raise ArgumentError(
            f"the modes {' '.join(tt.modes)} are not those of the chain"
            f" {' '.join(' '.join(names) for names in tt.axes)} in its order: make a train of them"
            " with to_tt first"
        )
    return tuple(tuple(core.shape[1:-1]) for core in tt.cores)


def _check(tt: TT, old: Legs, new: Legs) -> None:
    totals = [tuple(map(math.prod, zip(*legs, strict=True))) for legs in (old, new)]
    if totals[0] != totals[1]:
        raise ArgumentError(
            f"{_written(new)} multiplies to {_sizes(totals[1])}, this train over"
            f" {' '.join(tt.modes)} of {_written(old)} to {_sizes(totals[0])}"
        )


def _written(legs: Legs) -> str:
    return f"({', '.join(map(_sizes, legs))})"


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _segments(old: Legs, new: Legs) -> list[tuple[int, Legs]]:
    """How many old cores make which new ones, between places where the products agree."""
    grown = lambda sizes, more: tuple(a * b for a, b in zip(sizes, more, strict=True))
    none = (1,) * len(old[0])
    found: list[tuple[int, Legs]] = []
    i = j = taken = 0
    first, second, start = none, none, 0
    while i < len(old) or j < len(new):
        if j == len(new) or (i < len(old) and math.prod(first) <= math.prod(second)):
            first, i, taken = grown(first, old[i]), i + 1, taken + 1
        else:
            second, j = grown(second, new[j]), j + 1
        if first == second and taken and j > start:
            found.append((taken, new[start:j]))
            taken, start = 0, j
    if taken or start < len(new):  # sizes of 1 at the end
        count, legs = found.pop()
        found.append((count + taken, (*legs, *new[start:])))
    return found


def _joined(cores: Sequence[Array], carry: Array | None) -> Array:
    """Neighbours as one core ``(r, sizes of every leg, s)``, with what the left ones left over."""
    first, *rest = cores
    numbers = math.prod(n for core in cores for n in core.shape[1:-1])
    if numbers * first.shape[0] * cores[-1].shape[-1] > _MOST:
        raise ArgumentError(
            f"modes of {_written(tuple(tuple(c.shape[1:-1]) for c in cores))} would be joined to"
            f" one core of {numbers:.3g} rows: choose sizes whose products agree more often"
        )
    total = first if carry is None else mode_product(first, carry, 0)
    for core in rest:
        xp = namespace(total, core)
        order = total.ndim - 2
        legs = tuple(a * b for a, b in zip(total.shape[1:-1], core.shape[1:-1], strict=True))
        both = xp.tensordot(total, core, axes=1)  # (r, a.., b.., s)
        places = [k for leg in range(1, order + 1) for k in (leg, leg + order)]
        both = xp.permute_dims(both, (0, *places, 2 * order + 1))
        total = xp.reshape(both, (total.shape[0], *legs, core.shape[-1]))
    return total


def _split(core: Array, legs: Legs, *, last: bool) -> tuple[list[Array], Array | None]:
    """Left-orthonormal cores of these sizes, and what goes on to the right of them.

    Everything to the left and right of the core is orthonormal, so that what is cut off of it is
    cut off of the tensor.
    """
    xp, order, d = namespace(core), len(legs[0]), len(legs)
    sizes = [n for leg in zip(*legs, strict=True) for n in leg]
    opened = xp.reshape(core, (core.shape[0], *sizes, core.shape[-1]))
    places = [1 + leg * d + k for k in range(d) for leg in range(order)]
    rest = xp.permute_dims(opened, (0, *places, len(sizes) + 1))
    bond, end, cores = core.shape[0], core.shape[-1], []
    for k, leg in enumerate(legs):
        rest = xp.reshape(rest, (bond * math.prod(leg), -1))
        if k == d - 1 and last:
            return [*cores, xp.reshape(rest, (bond, *leg, end))], None
        if k == d - 1:
            u, rest = xp.linalg.qr(rest, mode="reduced")
        else:
            u, rest = _cut(rest)
        cores.append(xp.reshape(u, (bond, *leg, u.shape[1])))
        bond = u.shape[1]
    return cores, rest


def _cut(matrix: Array) -> tuple[Array, Array]:
    """Orthonormal columns and the rest of a matrix, without what is rounding."""
    xp = namespace(matrix)
    u, s, vh = xp.linalg.svd(matrix, full_matrices=False)
    kept = max(1, int(xp.sum(xp.astype(s > tol(s.dtype, 1) * s[0], xp.int64))))
    return u[:, :kept], xp.astype(s[:kept], vh.dtype)[:, None] * vh[:kept, :]
