"""TensorLy's functions by ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorly
from tensorly import cp_tensor, tt_matrix, tt_tensor, tucker_tensor
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import _cp, _nn_cp, _tr_als, _tt, _tucker
from tensorly.metrics import factors as congruence
from tensorly.tr_tensor import TRTensor
from tensorly.tt_matrix import TTMatrix
from tensorly.tt_tensor import TTTensor
from tensorly.tucker_tensor import TuckerTensor

import tdecomp as td
from tdecomp import formats
from tests.bench.shims.stand_ins import LeftToPeer, ours, put_everywhere

__all__ = ["put_in_place"]


def put_in_place() -> None:
    """Ours in the place of theirs."""
    stand_ins: dict[Callable[..., Any], Callable[[SimpleNamespace], Any]] = {
        _cp.parafac: _parafac,
        _nn_cp.non_negative_parafac: _nonnegative,
        _nn_cp.non_negative_parafac_hals: _hals,
        _tucker.tucker: _tucker_of_all,
        _tucker.partial_tucker: _partial_tucker,
        _tt.tensor_train: _tensor_train,
        _tt.tensor_train_matrix: _tensor_train_matrix,
        _tr_als.tensor_ring_als: _ring,
        congruence.congruence_coefficient: _congruence,
        cp_tensor.cp_to_tensor: _dense("cp_tensor", CPTensor),
        tucker_tensor.tucker_to_tensor: _dense("tucker_tensor", TuckerTensor),
        tt_tensor.tt_to_tensor: _dense("factors", TTTensor),
        tt_matrix.tt_matrix_to_tensor: _matrix_to_tensor,
    }
    for original, replacement in stand_ins.items():
        # what is not here (PARAFAC2) goes its own way, with its own steps
        put_everywhere("tensorly", original, replacement, but=["tensorly.decomposition._parafac2"])


def _seed(random_state: Any) -> int | None:
    if random_state is None:
        return None
    return int(tensorly.check_random_state(random_state).randint(2**31 - 1))


def _iteration(given: SimpleNamespace) -> dict[str, Any]:
    return {
        "n_iter_max": given.n_iter_max,
        "tol": given.tol or 0.0,
        "random_state": _seed(given.random_state),
    }


def _parafac(given: SimpleNamespace) -> Any:
    _leave(given, orthogonalise=False, sparsity=None, l2_reg=0)
    given.weights = given.mask
    fit, cp = _cp_of(given, line_search=given.linesearch)
    if given.callback is not None:
        for error in _errors(fit):
            given.callback(cp, error)
    return (cp, _errors(fit)) if given.return_errors else cp


def _nonnegative(given: SimpleNamespace) -> Any:
    given.weights = given.mask
    fit, cp = _cp_of(given, nonnegative=True)
    return (cp, _errors(fit)) if given.return_errors else cp


def _hals(given: SimpleNamespace) -> Any:
    _leave(given, sparsity_coefficients=None, exact=False, nn_modes="all")
    given.weights = None
    fit, cp = _cp_of(given, nonnegative=True)
    return (cp, _errors(fit)) if given.return_errors else cp


def _leave(given: SimpleNamespace, **unset: Any) -> None:
    """To the peer, what asks for an option we do not have."""
    for name, value in unset.items():
        if getattr(given, name) != value:
            raise LeftToPeer(f"{name} is not here")


def _cp_of(given: SimpleNamespace, **options: Any) -> tuple[td.Fit, CPTensor]:
    if given.n_iter_max < 1:
        raise LeftToPeer("no sweeps at all are not here")
    if np.iscomplexobj(given.tensor):
        raise LeftToPeer("CP of complex tensors is not here")
    start = {"svd": "hosvd", "random": "random"}.get(given.init) if _named(given.init) else None
    held = None if _named(given.init) else formats.from_tensorly(CPTensor(given.init))
    if held is not None and held.shape != tuple(given.tensor.shape):
        raise LeftToPeer("starts of another size are not here")
    names = [f"m{k}" for k in range(given.tensor.ndim)]
    fixed = [names[k] for k in given.fixed_modes or ()]
    options |= {"fixed": fixed or None, "weights": given.weights, **_iteration(given)}
    fit = ours(td.cp, given.tensor, rank=given.rank, init=held or start, **options)
    return fit, _as_theirs(fit.tensor, given, held if fixed else None)


def _named(init: Any) -> bool:
    return isinstance(init, str)


def _as_theirs(cp: td.CP, given: SimpleNamespace, held: Any) -> CPTensor:
    """Weights in a factor unless asked for, and fixed columns as they were given."""
    fixed = list(given.fixed_modes or ()) if held is not None else []
    weights, factors = np.asarray(cp.weights), [np.asarray(f) for f in cp.factors]
    if fixed:
        pair = (
            td.CP([f"m{k}" for k in fixed], None, [factors[k] for k in fixed])
            for factors in (held.factors, cp.factors)
        )
        order = list(ours(formats.match_factors, *pair).permutation)
        weights, factors = weights[order], [f[:, order] for f in factors]
    for k in fixed:
        columns = np.asarray(held.factors[k])
        weights = weights * (columns * factors[k]).sum(0) / (columns**2).sum(0)
        factors[k] = columns
    if given.normalize_factors:
        return CPTensor((weights, factors))
    free = next(k for k in range(len(factors)) if k not in fixed)
    factors[free] = factors[free] * weights
    return CPTensor((np.ones_like(weights), factors))


def _errors(fit: td.Fit) -> list[float]:
    return list(fit.trace.errors) or [fit.error]


def _tucker_of_all(given: SimpleNamespace) -> Any:
    _leave(given, fixed_factors=None)
    fit = _tucker_fit(given, given.rank, None)
    found = ours(formats.to_tensorly, fit.tensor)
    return (found, _errors(fit)) if given.return_errors else found


def _partial_tucker(given: SimpleNamespace) -> Any:
    modes = list(range(given.tensor.ndim)) if given.modes is None else list(given.modes)
    fit = _tucker_fit(given, given.rank, modes)
    found = ours(formats.to_tensorly, fit.tensor)
    return (found.core, [found.factors[k] for k in modes]), _errors(fit)


def _tucker_fit(given: SimpleNamespace, rank: Any, modes: list[int] | None) -> td.Fit:
    init: Any = {"svd": "hosvd"}.get(given.init, given.init) if _named(given.init) else given.init
    if not _named(init):
        if not isinstance(init[1], list | tuple):
            raise LeftToPeer("starts without a core are not here")
        rank = [factor.shape[1] for factor in init[1]]  # theirs reads no other from here on
        held = dict(zip(modes or range(given.tensor.ndim), init[1], strict=True))
        names = [f"m{k}" for k in range(given.tensor.ndim)]
        init = td.Tucker(names, init[0], tuple(map(held.get, range(given.tensor.ndim))))
    sizes = given.tensor.shape if modes is None else [given.tensor.shape[k] for k in modes]
    rank = tuple(sizes) if rank is None else rank if isinstance(rank, int) else tuple(rank)
    options = {"modes": modes, "init": init, "weights": given.mask, **_iteration(given)}
    return ours(td.tucker, given.tensor, rank=rank, **options)


def _tensor_train(given: SimpleNamespace) -> Any:
    rank = given.rank
    if not isinstance(rank, int):  # theirs cuts bonds that no train can have, ours refuses them
        sizes = given.input_tensor.shape
        most = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(len(sizes) + 1)]
        rank = tuple(min(pair) for pair in zip(rank, most, strict=True))
    fit = ours(td.tensor_train, given.input_tensor, rank=rank)
    return ours(formats.to_tensorly, fit.tensor)


def _tensor_train_matrix(given: SimpleNamespace) -> Any:
    shape = given.tensor.shape
    out, inp = shape[: len(shape) // 2], shape[len(shape) // 2 :]
    matrix = given.tensor.reshape(int(np.prod(out)), -1)
    fit = ours(td.mpo, matrix, out=out, inp=inp, rank=given.rank)
    return ours(formats.to_tensorly, fit.tensor)


def _ring(given: SimpleNamespace) -> Any:
    if given.ls_solve not in ("lstsq", "normal_eq"):
        raise LeftToPeer("the name of its solver")
    d = given.tensor.ndim
    rank = [given.rank] * d if isinstance(given.rank, int) else list(given.rank)[:d]
    terms = ", ".join(f"b{k} m{k} b{(k + 1) % d}" for k in range(d))
    equation = f"{terms} -> {' '.join(f'm{k}' for k in range(d))}"
    bonds = {f"b{k}": r for k, r in enumerate(rank)}
    fit = ours(td.als, given.tensor, equation, rank=bonds, **_iteration(given))
    ring = TRTensor(list(fit.tensor.arrays.values()))
    if given.callback is not None:
        for error in _errors(fit):
            given.callback(ring, np.asarray(error))
    return ring


def _congruence(given: SimpleNamespace) -> Any:
    if not given.absolute_value:
        raise LeftToPeer("congruences with signs are not here")
    pair = []
    for matrices in (given.matrix1, given.matrix2):
        each = list(matrices) if isinstance(matrices, list | tuple) else [matrices]
        pair.append(td.CP([f"m{k}" for k in range(len(each))], None, each))
    found = ours(formats.match_factors, *pair)
    return found.score, list(found.permutation)


def _dense(argument: str, kind: Callable[[Any], Any]) -> Callable[[SimpleNamespace], Any]:
    """The dense tensor of one of their objects, or of what makes one."""

    def dense(given: SimpleNamespace) -> Any:
        asked = (
            getattr(given, name, None) for name in ("mask", "skip_factor", "transpose_factors")
        )
        if any(option not in (None, False) for option in asked):
            raise LeftToPeer("a part of the product")
        tensor = getattr(given, argument)
        tensor = tensor if isinstance(tensor, kind) else kind(tensor)  # pyright: ignore
        return ours(formats.from_tensorly, tensor).to_dense()

    return dense


def _matrix_to_tensor(given: SimpleNamespace) -> Any:
    tt = given.tt_matrix
    tt = tt if isinstance(tt, TTMatrix) else TTMatrix(tt)
    fmt = ours(formats.from_tensorly, tt)
    sizes = [core.shape[1:3] for core in fmt.cores]
    return fmt.to_dense().reshape([m for m, _ in sizes] + [n for _, n in sizes])
