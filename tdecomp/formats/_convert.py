"""Conversions between formats that lose nothing, without forming the dense tensor.

Towards CP only `LowRank` is exact; fit the others with `tdecomp.cp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats._base import Format
from tdecomp.formats._slices import indicator
from tdecomp.formats.cp import CP
from tdecomp.formats.lowrank import LowRank
from tdecomp.formats.network import Network
from tdecomp.formats.tt import TT
from tdecomp.formats.tucker import Tucker
from tdecomp.formats.tucker2 import Tucker2
from tdecomp.modes import positions
from tdecomp.tensor import mode_product, unfold

__all__ = ["to_cp", "to_tt", "to_tucker", "to_tucker2"]


def to_tucker(fmt: Format) -> Tucker:
    """Any format as Tucker with orthonormal factors: the normal form of a Tucker tensor too.

    ``A_n = Q_n R_n`` for every array that alone carries a mode; the core is what remains, a dense
    tensor of the reduced sizes.

    Returns
    -------
    Tucker
        Modes where this saves nothing (as long as the rest of their array is wide), that several
        arrays carry or that are split have no factor. ``norm()`` is that of the core.

    Notes
    -----
    Exact to rounding. The core has ``Π min(n, R)`` entries for a CP of rank ``R``, and the bonds'
    product for a TT.

    Examples
    --------
    >>> import numpy as np
    >>> cp = CP(("layer", "out", "in"), np.ones(2), (np.ones((5, 2)), np.eye(3, 2), np.eye(4, 2)))
    >>> to_tucker(cp).rank
    (2, 2, 2)
    """
    network = fmt.to_network()
    tensors = list(network.tensors)
    factors: list[Array | None] = []
    for axis in network.equation.output:
        where = [k for k, term in enumerate(network.equation.terms) if axis in term]
        factor = None
        if len(where) == 1:
            (k,) = where
            factor, tensors[k] = _qr_along(tensors[k], network.equation.terms[k].index(axis))
        factors.append(factor)
    core = Network(network.equation, tuple(tensors)).to_dense()
    return Tucker(fmt.modes, core, tuple(factors))


def to_tucker2(fmt: Format, compressed: tuple[str, str] = ("out", "in")) -> Tucker2:
    """Any format as Tucker2: `to_tucker` with a basis for the two `compressed` modes only.

    A TT in the chain ``out, layer, in`` becomes the Tucker2 with its bonds as ranks.
    """
    tucker = to_tucker(fmt)
    where = positions(tucker.modes, compressed)
    tucker = tucker.opened([m for k, m in enumerate(tucker.modes) if k not in where])
    xp, core = namespace(tucker.core), tucker.core
    left, right = (
        xp.eye(core.shape[k], dtype=core.dtype, device=core.device) if f is None else f
        for k, f in ((k, tucker.factors[k]) for k in where)
    )
    return Tucker2(tucker.modes, core, left, right, compressed)


@singledispatch
def to_tt(fmt: Format, chain: Sequence[str] | None = None) -> TT:
    """Any format as a TT with one mode on each core.

    Parameters
    ----------
    fmt
        Any format; the dense axes keep their order.
    chain
        Order of the modes along the chain. By default that of the modes; for `Tucker2` the first
        basis, all uncompressed modes together on one core, the second basis: the same numbers
        (LoTR's layout).

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
    _refuse_splits(fmt)
    tucker = to_tucker(fmt)
    inner = tucker._permute(_order(fmt, chain))
    cores = []
    for core, factor in zip(_qr_chain(inner.core), inner.factors, strict=True):
        cores.append(core if factor is None else mode_product(core, factor, 1))
    return TT(tuple((m,) for m in inner.modes), tuple(cores), fmt.modes)


@to_tt.register
def _(fmt: Tucker2, chain: Sequence[str] | None = None) -> TT:
    first, last = fmt.compressed
    middle = tuple(m for m in fmt.modes if m not in fmt.compressed)
    if chain is not None or not middle:
        return to_tt(fmt.to_tucker(), chain)
    xp = namespace(fmt.core)
    core = xp.permute_dims(fmt.core, positions(fmt.modes, (first, *middle, last)))
    return TT(
        ((first,), middle, (last,)),
        (fmt.left[None, :, :], core, fmt.right.T[:, :, None]),
        fmt.modes,
    )


@to_tt.register
def _(fmt: CP, chain: Sequence[str] | None = None) -> TT:
    order = _order(fmt, chain)
    modes = tuple(fmt.modes[k] for k in order)
    first, *rest = (fmt.factors[k] for k in order)
    xp = namespace(fmt.weights)
    if not rest:
        return TT((modes,), ((first @ fmt.weights)[None, :, None],), fmt.modes)
    eye = xp.eye(fmt.rank, dtype=fmt.weights.dtype, device=fmt.weights.device)
    cores = [
        (first * fmt.weights[None, :])[None, :, :],
        *(f.T[:, :, None] * eye[:, None, :] for f in rest[:-1]),
        rest[-1].T[:, :, None],
    ]
    return TT(tuple((m,) for m in modes), tuple(cores), fmt.modes)


@to_tt.register
def _(fmt: LowRank, chain: Sequence[str] | None = None) -> TT:
    return to_tt(to_cp(fmt), chain)


@singledispatch
def to_cp(fmt: Format) -> CP:
    """A `LowRank` as CP of rank ``Σ ranks``: each column belongs to one site.

    Raises
    ------
    ArgumentError
        For the other formats, which are no CP of a known small rank: fit one with `tdecomp.cp`.
    """
    raise ArgumentError(
        f"a {type(fmt).__name__} is no CP of a known small rank: fit one with tdecomp.cp"
    )


@to_cp.register
def _(fmt: CP) -> CP:
    return fmt


@to_cp.register
def _(fmt: LowRank) -> CP:
    owner = [site for site, rank in enumerate(fmt.ranks) for _ in range(rank)]
    index = np.unravel_index(np.asarray(owner, dtype=np.int64), fmt.sites) if fmt.sites else ()
    sites = (
        indicator([int(i) for i in own], n, fmt.u).T
        for own, n in zip(index, fmt.sites, strict=True)
    )
    return CP(fmt.modes, fmt.s, (*sites, fmt.u, fmt.vh.T))


def _qr_along(x: Array, axis: int) -> tuple[Array | None, Array]:
    """Orthonormal basis ``(n, r)`` of one axis and `x` in it; None where ``r`` would be ``n``."""
    xp = namespace(x)
    rows = unfold(x, axis)
    if rows.shape[0] <= rows.shape[1]:
        return None, x
    q, r = xp.linalg.qr(rows, mode="reduced")
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    return q, xp.moveaxis(xp.reshape(r, (r.shape[0], *rest)), 0, axis)


def _qr_chain(core: Array) -> list[Array]:
    """A dense tensor as TT cores ``(r, n, r')`` of full bonds."""
    xp = namespace(core)
    cores, bond, rest = [], 1, core
    for n in core.shape[:-1]:
        q, rest = xp.linalg.qr(xp.reshape(rest, (bond * n, -1)), mode="reduced")
        cores.append(xp.reshape(q, (bond, n, q.shape[1])))
        bond = q.shape[1]
    return [*cores, xp.reshape(rest, (bond, core.shape[-1], 1))]


def _order(fmt: Format, chain: Sequence[str] | None) -> tuple[int, ...]:
    """Positions of the modes along the chain."""
    order = positions(fmt.modes, chain or fmt.modes)
    if len(order) != len(fmt.modes):
        raise ArgumentError(
            f"the chain {' '.join(chain or ())} must name all modes {' '.join(fmt.modes)}"
        )
    return order


def _refuse_splits(fmt: Format) -> None:
    if split := [m for m in fmt.modes if m.startswith("(")]:
        raise ArgumentError(f"the split axis {split[0]} has no core of its own in a plain TT")
