"""Conversions to Tucker, Tucker2 and TT that lose nothing, without forming the dense tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce, singledispatch

from array_api_compat import device

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.cp import CP
from tdecomp.formats.into_cp import to_cp
from tdecomp.formats.lowrank import LowRank
from tdecomp.formats.network import Network, as_network
from tdecomp.formats.sum import Sum
from tdecomp.formats.tt import TT
from tdecomp.formats.tucker import Tucker
from tdecomp.formats.tucker2 import Tucker2
from tdecomp.modes import flatten, parse_modes, positions, write_axis
from tdecomp.tensor import mode_product, promoted, unfold

__all__ = ["split_core", "to_tt", "to_tucker", "to_tucker2"]


@singledispatch
def to_tucker(fmt: Format) -> Tucker:
    """Any format as Tucker with orthonormal factors: the normal form of a Tucker tensor too.

    ``A_n = Q_n R_n`` for every array that alone carries a mode; the core is what remains, a dense
    tensor of the reduced sizes.

    Returns
    -------
    Tucker
        Modes where this saves nothing (as long as the rest of their array is wide) or that several
        arrays carry have no factor. ``norm()`` is that of the core.

    Notes
    -----
    Exact to rounding. The arrays that share a split axis are contracted to one array, see
    `Network.joined`; its name stays, ``"(o1 o2)"``. The core has ``Π min(n, R)`` entries
    for a CP of rank ``R``, and the bonds' product for a TT; for a `Sum` the ranks of its parts add
    up, to at most the sizes of the modes.

    Examples
    --------
    >>> import numpy as np
    >>> cp = CP(("layer", "out", "in"), np.ones(2), (np.ones((5, 2)), np.eye(3, 2), np.eye(4, 2)))
    >>> to_tucker(cp).rank
    (2, 2, 2)
    """
    network = as_network(fmt).joined()
    tensors = list(network.tensors)
    factors: list[Array | None] = []
    for mode in network.modes:
        where = [k for k, term in enumerate(network.equation.terms) if mode in term]
        factor = None
        if len(where) == 1:
            (k,) = where
            factor, tensors[k] = _qr_along(tensors[k], network.equation.terms[k].index(mode))
        factors.append(factor)
    core = Network(network.equation, tuple(tensors)).to_dense()
    return Tucker(fmt.modes, core, tuple(factors))


@to_tucker.register
def _(fmt: Sum) -> Tucker:
    parts = [to_tucker(part) for part in fmt.parts]
    cores = promoted([part.core for part in parts])
    factors = []
    for k, n in enumerate(fmt.shape):
        basis, own = _joint_basis([part.factors[k] for part in parts], n)
        factors.append(basis)
        cores = [
            core if f is None else mode_product(core, f, k)
            for core, f in zip(cores, own, strict=True)
        ]
    return Tucker(fmt.modes, reduce(operator.add, promoted(cores)), tuple(factors))


def to_tucker2(fmt: Format, compressed: tuple[str, str] = ("out", "in")) -> Tucker2:
    """Any format as Tucker2: `to_tucker` with a basis for the two `compressed` modes only.

    A TT in the chain ``out, layer, in`` becomes the Tucker2 with its bonds as ranks.
    """
    tucker = to_tucker(fmt)
    where = positions(tucker.modes, compressed)
    tucker = tucker.opened([m for k, m in enumerate(tucker.modes) if k not in where])
    left, right = (_basis(tucker, k) for k in where)
    return Tucker2(tucker.modes, tucker.core, left, right, compressed)


def _basis(tucker: Tucker, position: int) -> Array:
    """Factor of a mode, ``(n, r)``: the identity where it is not compressed."""
    factor, core = tucker.factors[position], tucker.core
    if factor is not None:
        return factor
    xp = namespace(core)
    return xp.eye(core.shape[position], dtype=core.dtype, device=device(core))


@singledispatch
def to_tt(fmt: Format, chain: str | Sequence[str] | None = None) -> TT:
    """Any format as a TT with one mode on each core.

    Parameters
    ----------
    fmt
        Any format; the dense axes keep their order. A split axis is one mode of the chain.
    chain
        Order of the modes along the chain, ``"out layer in"``. By default that of the modes; for
        `Tucker2` the first basis, all uncompressed modes together on one core, the second basis:
        the same numbers (LoTR's layout).

    Notes
    -----
    CP and `LowRank` of total rank ``R`` get bonds ``R`` with diagonal cores. The others go through
    `to_tucker` and QR of the core, without truncation; the first cores are then left-orthonormal.

    Examples
    --------
    >>> import numpy as np
    >>> t = Tucker2(("layer", "out", "in"), np.ones((5, 1, 2)), np.ones((3, 1)), np.ones((4, 2)))
    >>> to_tt(t).axes, to_tt(t).rank, to_tt(t).modes
    ((('out',), ('layer',), ('in',)), (1, 1, 2, 1), ('layer', 'out', 'in'))
    """
    tucker = to_tucker(fmt)
    inner = tucker._permute(_order(fmt, chain))
    cores = []
    for core, factor in zip(
        split_core(inner.core, (1, *inner.core.shape, 1)), inner.factors, strict=True
    ):
        cores.append(core if factor is None else mode_product(core, factor, 1))
    return TT(tuple((m,) for m in inner.modes), tuple(cores), fmt.modes)


@to_tt.register
def _(fmt: Tucker2, chain: str | Sequence[str] | None = None) -> TT:
    first, last = fmt.compressed
    middle = tuple(m for m in fmt.modes if m not in fmt.compressed)
    if chain is not None or not middle:
        return to_tt(fmt.to_tucker(), chain)
    xp = namespace(fmt.core)
    core = xp.permute_dims(fmt.core, positions(fmt.modes, (first, *middle, last)))
    return TT(
        ((first,), middle, (last,)),
        (
            fmt.left[None, :, :],
            core,
            fmt.right.T[:, :, None],
        ),  # (1, out, r), (r, .., s), (s, in, 1)
        fmt.modes,
    )


@to_tt.register
def _(fmt: CP, chain: str | Sequence[str] | None = None) -> TT:
    order = _order(fmt, chain)
    modes = tuple(fmt.modes[k] for k in order)
    first, *rest = (fmt.factors[k] for k in order)
    xp = namespace(fmt.weights)
    if not rest:
        column = mode_product(first, fmt.weights[None, :], 1)  # (n, 1)
        return TT((modes,), (column[None, :, :],), fmt.modes)
    eye = xp.eye(fmt.rank, dtype=fmt.weights.dtype, device=device(fmt.weights))
    cores = [
        (first * fmt.weights[None, :])[None, :, :],  # (1, n, R)
        *(f.T[:, :, None] * eye[:, None, :] for f in rest[:-1]),  # (R, n, R)
        rest[-1].T[:, :, None],  # (R, n, 1)
    ]
    return TT(tuple((m,) for m in modes), tuple(cores), fmt.modes)


@to_tt.register
def _(fmt: TT, chain: str | Sequence[str] | None = None) -> TT:
    order = tuple(fmt.modes[k] for k in _order(fmt, chain))
    if flatten(fmt.axes) != order or fmt.output != fmt.modes:
        return to_tt.dispatch(Format)(fmt, chain)
    cores = tuple(piece for core in fmt.cores for piece in split_core(core))
    return TT(tuple((m,) for m in order), cores, fmt.modes)


@to_tt.register
def _(fmt: Sum, chain: str | Sequence[str] | None = None) -> TT:
    parts = [to_tt(part, chain or fmt.modes) for part in fmt.parts]
    total = parts[0]
    for part in parts[1:]:
        total = total._plus(part)
        assert total is not None  # one chain
    return total


@to_tt.register
def _(fmt: LowRank, chain: str | Sequence[str] | None = None) -> TT:
    return to_tt(to_cp(fmt), chain)


def _qr_along(x: Array, axis: int) -> tuple[Array | None, Array]:
    """Orthonormal basis ``(n, r)`` of one axis and `x` in it; None where ``r`` would be ``n``."""
    xp = namespace(x)
    rows = unfold(x, axis)
    if rows.shape[0] <= rows.shape[1]:
        return None, x
    q, r = xp.linalg.qr(rows, mode="reduced")  # (n, r), (r, rest)
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    return q, xp.moveaxis(xp.reshape(r, (r.shape[0], *rest)), 0, axis)


def _joint_basis(
    factors: Sequence[Array | None], n: int
) -> tuple[Array | None, Sequence[Array | None]]:
    """Orthonormal basis of all columns and every factor in it: ``(n, r)`` and ``(r, r_i)``.

    None and the factors themselves where the basis would be the whole mode.
    """
    held = [f for f in factors if f is not None]
    widths = [f.shape[1] for f in held]
    if len(held) < len(factors) or sum(widths) >= n:
        return None, factors
    held = promoted(held)
    xp = namespace(*held)
    q, r = xp.linalg.qr(xp.concat(held, axis=1), mode="reduced")  # (n, r), (r, Σ r_i)
    ends = [sum(widths[:k]) for k in range(len(widths) + 1)]
    return q, [r[:, slice(*ends[k : k + 2])] for k in range(len(widths))]


def split_core(core: Array, shape: Sequence[int] | None = None) -> list[Array]:
    """A core ``(r, n1, n2, .., s)``, or read so, as a chain of cores of one mode each, by QR.

    All but the last are left-orthonormal; the bonds between them are as wide as the sizes allow.
    """
    xp = namespace(core)
    (bond, *sizes, last), rest, cores = shape or core.shape, core, []
    for n in sizes[:-1]:
        flat = xp.reshape(rest, (bond * n, -1))  # (r n, rest)
        q, rest = xp.linalg.qr(flat, mode="reduced")  # (r n, s), (s, rest)
        cores.append(xp.reshape(q, (bond, n, q.shape[1])))  # (r, n, s)
        bond = q.shape[1]
    return [*cores, xp.reshape(rest, (bond, sizes[-1], last))]


def _order(fmt: Format, chain: str | Sequence[str] | None) -> tuple[int, ...]:
    """Positions of the modes along the chain."""
    if not fmt.modes:
        raise ArgumentError("a tensor without modes is not a TT: it is the number `to_dense` gives")
    named = map(write_axis, parse_modes(chain)) if isinstance(chain, str) else chain or fmt.modes
    order = positions(fmt.modes, named)
    if len(order) != len(fmt.modes):
        raise ArgumentError(f"the chain {chain!r} must name all modes {' '.join(fmt.modes)}")
    return order
