"""To an MPO over chosen splits of the two matrix modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdecomp._xp import Array, namespace, tol
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.convert import split_core, to_tucker
from tdecomp.formats.equations import fresh
from tdecomp.formats.tt import TT
from tdecomp.tensor import mode_product

__all__ = ["to_mpo"]


def to_mpo(fmt: Format, *, out: Sequence[int] = (8, 96), inp: Sequence[int] = (8, 96)) -> TT:
    """Any format as a matrix product operator over splits of its last two modes, exactly.

    ``X[.., (o1 o2 ..), (i1 i2 ..)] = ··· G₁[:, o1, i1, :] G₂[:, o2, i2, :] ···``; the modes before
    them come first in the chain, a core each, as in `tdecomp.mpo`.

    Parameters
    ----------
    fmt
        Any format of two or more modes.
    out, inp
        Factors of the last two sizes, slowest first, equally many.

    Returns
    -------
    TT
        Right-orthonormal behind the first core, with the smallest bonds that hold the tensor to
        about ``tol(dtype, 1)`` of its norm.

    Raises
    ------
    ArgumentError
        If the factors do not multiply to the sizes.

    Notes
    -----
    The bases of `to_tucker` are split by QR and multiplied into the chain one core at a time;
    then singular values below rounding are dropped from right to left ([oseledets2011], Algorithm
    2). No intermediate has more numbers than the dense tensor. Not under ``jax.jit``: the bonds
    depend on the values.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.formats import Tucker
    >>> w = np.kron(np.diag([1.0, 2.0]), np.ones((3, 5)))
    >>> t = to_mpo(Tucker(("out", "in"), w, (None, None)), out=(2, 3), inp=(2, 5))
    >>> t.modes, t.rank
    (('(o1 o2)', '(i1 i2)'), (1, 1, 1))
    """
    out, inp = tuple(out), tuple(inp)
    if len(out) != len(inp) or min((*out, *inp), default=0) < 1:
        raise ArgumentError(f"out={out} and inp={inp} must be equally many sizes, 1 or more each")
    if (math.prod(out), math.prod(inp)) != tuple(fmt.shape[-2:]):
        raise ArgumentError(
            f"out={out} and inp={inp} multiply to {math.prod(out)} x {math.prod(inp)}, the last two"
            f" modes have the sizes {tuple(fmt.shape[-2:])}: choose factors of these sizes"
        )
    sites = fmt.modes[:-2]
    tucker = to_tucker(fmt)
    *shared, left, right = tucker.factors
    carry, cores = tucker.core[None, ...], []
    for factor in shared:
        core, carry = _peeled(carry, 2)
        cores.append(core if factor is None else mode_product(core, factor, 1))
    rows, columns = _basis_cores(left, out), _basis_cores(right, inp)
    for k, (o, i) in enumerate(zip(out, inp, strict=True)):
        both = _opened(carry, 2, columns[k], i)  # (b, r, i, s')
        both = _opened(both, 1, rows[k], o)  # (b, o, r', i, s')
        both = namespace(both).permute_dims(both, (0, 1, 3, 2, 4))
        core, carry = _peeled(both, 3)
        cores.append(core)
    cores[-1] = mode_product(cores[-1], carry[:, 0, :].T, 3)  # the last carry is (b, 1, 1)
    o_names, i_names = (tuple(fresh([f"{s}{k + 1}" for k in range(len(out))], sites)) for s in "oi")
    output = (o_names, i_names) if len(out) > 1 else (*o_names, *i_names)
    axes = (*((m,) for m in sites), *zip(o_names, i_names, strict=True))
    return TT(axes, tuple(_trimmed(cores)), (*sites, *output))


def _basis_cores(basis: Array | None, sizes: tuple[int, ...]) -> Sequence[Array | None]:
    """A basis ``(n1 n2 .., r)`` as cores ``(r, n1, r')``, ``(r', n2, r'')``, ..; or Nones."""
    if basis is None:
        return [None] * len(sizes)
    rows = basis.T
    return split_core(namespace(rows).reshape(rows, (rows.shape[0], *sizes, 1)))


def _opened(x: Array, axis: int, core: Array | None, n: int) -> Array:
    """`x` with an axis ``r`` as ``(n, r')``, through a core ``(r, n, r')`` or as it lies."""
    xp = namespace(x)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    if core is not None:
        x = mode_product(x, xp.reshape(core, (core.shape[0], -1)).T, axis)
    return xp.reshape(x, (*before, n, x.shape[axis] // n, *after))


def _peeled(x: Array, n: int) -> tuple[Array, Array]:
    """The first `n` axes with orthonormal columns, and the rest in that basis."""
    xp = namespace(x)
    q, r = xp.linalg.qr(xp.reshape(x, (math.prod(x.shape[:n]), -1)), mode="reduced")
    width = q.shape[1]
    return xp.reshape(q, (*x.shape[:n], width)), xp.reshape(r, (width, *x.shape[n:]))


def _trimmed(cores: Sequence[Array]) -> list[Array]:
    """Cores of a left-orthonormal chain without the bonds that carry only rounding."""
    kept = list(cores)
    for k in range(len(kept) - 1, 0, -1):
        core = kept[k]
        xp = namespace(core)
        u, s, vh = xp.linalg.svd(xp.reshape(core, (core.shape[0], -1)), full_matrices=False)
        rank = max(1, int(xp.sum(xp.astype(s > tol(s.dtype, 1) * s[0], xp.int64))))
        kept[k] = xp.reshape(vh[:rank, :], (rank, *core.shape[1:]))
        carry = u[:, :rank] * xp.astype(s[:rank], u.dtype)[None, :]
        kept[k - 1] = mode_product(kept[k - 1], carry.T, kept[k - 1].ndim - 1)
    return kept
