"""pyttb's functions by ours."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyttb  # pyright: ignore
from pyttb import cp_als, hosvd  # pyright: ignore

import tdecomp as td
from tdecomp import formats
from tests.bench.shims.stand_ins import LeftToPeer, ours, put_everywhere

__all__ = ["put_in_place"]

_LEAST = 1e-14  # relative error below which we refuse, and theirs only warns


def put_in_place() -> None:
    """Ours in the place of theirs."""
    put_everywhere("pyttb", hosvd, _hosvd)
    put_everywhere("pyttb", cp_als, _cp_als)


def _hosvd(given: SimpleNamespace) -> Any:
    if given.dimorder is not None:
        raise LeftToPeer("the order of the modes is not an option here")
    if given.ranks is None and given.tol >= 1:
        raise LeftToPeer("errors of 1 and above are not asked for here")
    size = {"rank": given.ranks} if given.ranks is not None else {"error": max(given.tol, _LEAST)}
    fit = ours(td.hosvd, given.input_tensor.double(), sequential=given.sequential, **size)
    if given.ranks is None and fit.error > given.tol:
        warnings.warn(f"the error is {fit.error:.2g}", UserWarning, stacklevel=2)
    found = ours(formats.to_tensorly, formats.to_tucker(fit.tensor))
    return pyttb.ttensor(pyttb.tensor(found.core), list(found.factors))


def _cp_als(given: SimpleNamespace) -> Any:
    if given.dimorder is not None or given.optdims is not None:
        raise LeftToPeer("the order of the updates is not an option here")
    x = _array(given.input_tensor)
    init: Any = {"random": "random", "nvecs": "hosvd"}.get(str(given.init), given.init)
    if isinstance(init, pyttb.ktensor):
        init = td.CP([f"m{k}" for k in range(init.ndims)], init.weights, init.factor_matrices)
    steps = {"n_iter_max": given.maxiters, "tol": given.stoptol}
    fit = ours(td.cp, x, rank=given.rank, init=init, **steps)
    tensor, size = fit.tensor, given.input_tensor.norm()
    found = pyttb.ktensor([np.array(f) for f in tensor.factors], np.array(tensor.weights))
    output = {
        "params": {name: getattr(given, name) for name in _PARAMETERS},
        "iters": len(fit.trace.errors),
        "normresidual": fit.error * size,
        "fit": 1 - fit.error if size else 0.0,  # theirs of zeros is what is left of them
    }
    return found, given.init, output


_PARAMETERS = ("stoptol", "maxiters", "dimorder", "optdims", "printitn", "fixsigns")


def _array(tensor: Any) -> Any:
    """A tensor as we take it: dense ones as arrays, Tucker tensors as they are."""
    if isinstance(tensor, pyttb.ttensor):
        names = [f"m{k}" for k in range(tensor.ndims)]
        return td.Tucker(names, tensor.core.double(), tuple(tensor.factor_matrices))
    if isinstance(tensor, pyttb.sumtensor):
        raise LeftToPeer("sums of tensors of several kinds")
    return tensor.full().double()
