"""To and from TensorLy's objects. TensorLy is imported inside; its backend is never switched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

from array_api_compat import device

from tdecomp._xp import namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.cp import CP
from tdecomp.formats.tt import TT
from tdecomp.formats.tucker import Tucker
from tdecomp.formats.tucker2 import Tucker2
from tdecomp.modes import name_modes

__all__ = ["from_tensorly", "to_tensorly"]


@singledispatch
def to_tensorly(fmt: Format) -> Any:
    """TensorLy's object for a format, holding the same arrays where nothing has to be added.

    Returns
    -------
    CPTensor, TuckerTensor, TTTensor or TTMatrix
        `Tucker2` and uncompressed modes of `Tucker` get an identity as their factor; an MPO over
        ``((o1, o2, ..), (i1, i2, ..))`` becomes a TTMatrix. Names of modes are lost.

    Raises
    ------
    ArgumentError
        For `LowRank` and `Network`, for which TensorLy has no object: convert with `to_cp`,
        `to_tucker` or `to_tt`; and for a TT whose chain is not the order of its modes.

    Notes
    -----
    Use the result under the TensorLy backend of its arrays, ``tensorly.backend_context("pytorch")``
    for torch.
    """
    raise ArgumentError(
        f"TensorLy has no object for a {type(fmt).__name__}:"
        " convert with to_cp, to_tucker or to_tt first"
    )


@to_tensorly.register
def _(fmt: CP) -> Any:
    from tensorly.cp_tensor import CPTensor

    return CPTensor((fmt.weights, list(fmt.factors)))


@to_tensorly.register
def _(fmt: Tucker) -> Any:
    from tensorly.tucker_tensor import TuckerTensor

    xp, core = namespace(fmt.core), fmt.core
    factors = [
        xp.eye(n, dtype=core.dtype, device=device(core)) if f is None else f
        for n, f in zip(fmt.shape, fmt.factors, strict=True)
    ]
    return TuckerTensor((core, factors))


@to_tensorly.register
def _(fmt: Tucker2) -> Any:
    return to_tensorly(fmt.to_tucker())


@to_tensorly.register
def _(fmt: TT) -> Any:
    from tensorly.tt_matrix import TTMatrix
    from tensorly.tt_tensor import TTTensor

    if all(len(names) == 1 for names in fmt.axes) and fmt.output == sum(fmt.axes, ()):
        return TTTensor(list(fmt.cores))
    if all(len(names) == 2 for names in fmt.axes) and fmt.output == tuple(
        zip(*fmt.axes, strict=True)
    ):
        return TTMatrix(list(fmt.cores))
    raise ArgumentError(
        f"TensorLy has no TT with the chain {fmt.axes} for the modes {' '.join(fmt.modes)}:"
        " convert with to_tt(fmt) first"
    )


def from_tensorly(tensor: Any, names: str | Sequence[str] | None = None) -> Format:
    """A format from TensorLy's CPTensor, TuckerTensor, TTTensor or TTMatrix.

    Parameters
    ----------
    tensor
        The object; its arrays are shared, not copied.
    names
        Names of the modes, ``"layer out in"``; by default m0, m1, .... For a TTMatrix the two names
        of the matrix modes, by default ``"out in"``; the splits are ``out0 out1 ..``.

    Examples
    --------
    >>> import numpy as np
    >>> cp = CP(("out", "in"), np.ones(2), (np.eye(3, 2), np.eye(4, 2)))
    >>> from_tensorly(to_tensorly(cp), "out in").equation == cp.equation
    True
    """
    kind = type(tensor).__name__
    if kind not in _READ:
        raise ArgumentError(f"expected one of TensorLy's {', '.join(_READ)}, got a {kind}")
    return _READ[kind](tensor, names)


def _read_cp(tensor: Any, names: str | Sequence[str] | None) -> Format:
    return CP(name_modes(len(tensor.factors), names), tensor.weights, tuple(tensor.factors))


def _read_tucker(tensor: Any, names: str | Sequence[str] | None) -> Format:
    return Tucker(name_modes(len(tensor.factors), names), tensor.core, tuple(tensor.factors))


def _read_tt(tensor: Any, names: str | Sequence[str] | None) -> Format:
    modes = name_modes(len(tensor.factors), names)
    return TT(tuple((m,) for m in modes), tuple(tensor.factors))


def _read_matrix(tensor: Any, names: str | Sequence[str] | None) -> Format:
    out, in_ = name_modes(2, "out in" if names is None else names)
    d = range(len(tensor.factors))
    splits = tuple(f"{out}{k}" for k in d), tuple(f"{in_}{k}" for k in d)
    return TT(tuple(zip(*splits, strict=True)), tuple(tensor.factors), splits)


_READ: dict[str, Callable[[Any, str | Sequence[str] | None], Format]] = {
    "CPTensor": _read_cp,
    "TuckerTensor": _read_tucker,
    "TTTensor": _read_tt,
    "TTMatrix": _read_matrix,
}
