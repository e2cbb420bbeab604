"""torchTT's functions and the methods of its class by ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchtt  # pyright: ignore
from torchtt import _decomposition, _extras  # pyright: ignore

import tdecomp as td
from tdecomp import formats
from tests.bench.shims.stand_ins import LeftToPeer, ours, put_everywhere, put_in_class

__all__ = ["put_in_place"]

_LEAST = 1e-14  # relative error below which we refuse, and theirs keeps everything


def put_in_place() -> None:
    """Ours in the place of theirs."""
    functions: dict[Callable[..., Any], Callable[[SimpleNamespace], Any]] = {
        _decomposition.to_tt: _to_tt,
        _decomposition.mat_to_tt: _mat_to_tt,
        _decomposition.round_tt: _round_tt,
        _decomposition.lr_orthogonal: lambda given: _orthogonal(given, -1),
        _decomposition.rl_orthogonal: lambda given: _orthogonal(given, 0),
        _extras.zeros: lambda given: _filled(given, td.TT.zeros),
        _extras.ones: lambda given: _filled(given, td.TT.ones),
        _extras.eye: _eye,
        _extras.dot: _dot,
        _extras.reshape: _reshape,
        _extras.permute: _permute,
    }
    for original, replacement in functions.items():
        put_everywhere("torchtt", original, replacement)
    put_in_class(
        torchtt.TT,
        {
            "full": lambda given: ours(_format(given.self).to_dense),
            "__add__": lambda given: _theirs(ours(td.TT.__add__, *_alike(given))),
            "__sub__": lambda given: _theirs(ours(td.TT.__sub__, *_alike(given))),
            "__mul__": _times,
            "__rmul__": _times,
            "__neg__": lambda given: _theirs(ours(td.TT.__neg__, _format(given.self))),
            "__getitem__": _at,
            "norm": _norm,
            "sum": _sum,
            "mprod": _mode_products,
            "apply_mask": lambda given: ours(
                td.TT.entries, _format(given.self), np.asarray(given.indices)
            ),
            "qtt_to_tens": lambda given: _theirs(
                ours(formats.regroup, _plain(given.self), given.original_shape)
            ),
        },
    )


def _format(tensor: Any) -> td.TT:
    return _train(tensor.cores)


def _train(cores: Any) -> td.TT:
    """Their cores as our train; the modes of a matrix in the order of their dense tensor."""
    if not cores:
        raise LeftToPeer("a train without modes is not here")
    d = range(len(cores))
    if cores[0].ndim == 3:
        return td.TT(tuple((f"m{k}",) for k in d), tuple(cores))
    out, in_ = (tuple(f"{name}{k}" for k in d) for name in ("o", "i"))
    return td.TT(tuple(zip(out, in_, strict=True)), tuple(cores), (*out, *in_))


def _plain(tensor: Any) -> td.TT:
    if tensor.is_ttm:
        raise LeftToPeer("of matrices")
    return _format(tensor)


def _matrix(tensor: Any) -> td.TT:
    fmt = _format(tensor)
    return td.TT(fmt.axes, fmt.cores, tuple(zip(*fmt.axes, strict=True)))


def _theirs(fmt: Any) -> Any:
    return torchtt.TT([core.resolve_conj() for core in fmt.cores])


def _to_tt(given: SimpleNamespace) -> Any:
    shape = list(given.A.shape) if given.N is None else list(given.N)
    fit = _to_error(td.tensor_train, given.A.reshape(shape), given.eps, given.rmax)
    return list(fit.tensor.cores), list(fit.tensor.rank)


def _mat_to_tt(given: SimpleNamespace) -> Any:
    rows, columns = list(given.M), list(given.N)
    matrix = given.A.reshape(int(np.prod(rows)), -1)
    fit = _to_error(td.mpo, matrix, given.eps, given.rmax, out=rows, inp=columns)
    return list(fit.tensor.cores), list(fit.tensor.rank)


def _to_error(method: Callable[..., Any], x: Any, eps: float, cap: Any, **options: Any) -> Any:
    """To an error under a cap of the bonds, which goes before the error in theirs."""
    cap = max(cap) if isinstance(cap, list) else cap
    cap = None if cap == sys.maxsize else int(cap)
    try:
        return ours(method, x, error=max(float(eps), _LEAST), rank_max=cap, **options)
    except td.NotReached as missed:
        return missed.best


def _round_tt(given: SimpleNamespace) -> Any:
    tt = _to_error(td.tt_round, _train(given.tt_cores), given.eps, given.Rmax)
    return list(tt.cores), list(tt.rank)


def _orthogonal(given: SimpleNamespace, center: int) -> Any:
    tt = ours(formats.canonical, _train(given.tt_cores), center)
    return list(tt.cores), list(tt.rank)


def _filled(given: SimpleNamespace, make: Callable[..., td.TT]) -> Any:
    if not given.shape:
        raise LeftToPeer("a train without modes is not here")
    like = torch.empty(0, dtype=given.dtype, device=given.device)
    return _theirs(ours(make, given.shape, like=like))


def _eye(given: SimpleNamespace) -> Any:
    like = torch.empty(0, dtype=given.dtype, device=given.device)
    return _theirs(ours(td.TT.eye, given.shape, like=like))


def _alike(given: SimpleNamespace) -> tuple[td.TT, td.TT]:
    """Two trains of the same sizes: theirs also adds numbers and spreads sizes of 1."""
    if not isinstance(given.other, torchtt.TT):
        raise LeftToPeer("a number added to every entry is not here")
    if given.self.shape != given.other.shape:
        raise LeftToPeer("broadcasting is not here")
    return _format(given.self), _format(given.other)


def _times(given: SimpleNamespace) -> Any:
    if isinstance(given.other, torchtt.TT):
        return _theirs(formats.to_tt(ours(formats.hadamard, *_alike(given))))
    return _theirs(ours(td.TT.__mul__, _format(given.self), given.other))


def _at(given: SimpleNamespace) -> Any:
    fmt, index = _plain(given.self), given.index
    each = index if isinstance(index, tuple) else (index,)
    if not all(i is Ellipsis or isinstance(i, int | slice) for i in each):
        raise LeftToPeer("axes of size 1 are not made by slicing here")
    found = ours(td.TT.__getitem__, fmt, index)
    return _theirs(found) if isinstance(found, td.TT) else found.to_dense()


def _norm(given: SimpleNamespace) -> Any:
    size = ours(td.TT.norm, _format(given.self))
    return size**2 if given.squared else size


def _sum(given: SimpleNamespace) -> Any:
    if given.index is not None:
        raise LeftToPeer("sums over some modes")
    fmt = _plain(given.self)
    return ours(td.TT.inner, td.TT.ones(fmt.shape, like=fmt.cores[0]), fmt)


def _mode_products(given: SimpleNamespace) -> Any:
    fmt: Any = _plain(given.self)
    one = isinstance(given.mode, int)
    pairs = zip(
        [given.factor_matrices] if one else given.factor_matrices,
        [given.mode] if one else given.mode,
        strict=True,
    )
    for matrix, mode in pairs:
        fmt = ours(formats.mode_product, fmt, matrix, mode)
    return _theirs(fmt)


def _dot(given: SimpleNamespace) -> Any:
    if given.axis is not None:
        raise LeftToPeer("products over some modes")
    return ours(td.TT.inner, _format(given.b), _format(given.a))


def _reshape(given: SimpleNamespace) -> Any:
    fmt = _matrix(given.tens) if given.tens.is_ttm else _format(given.tens)
    tt = ours(formats.regroup, fmt, given.shape)
    return _theirs(tt)


def _permute(given: SimpleNamespace) -> Any:
    fmt = _plain(given.input).permute(list(given.dims))
    return _theirs(ours(formats.to_tt, fmt))
