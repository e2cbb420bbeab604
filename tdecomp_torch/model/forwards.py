"""Whether a module does with its input what its kind says: found out on a few numbers.

A class may inherit from Linear, Conv2d or Embedding and have a forward of its own: a router that
also chooses, a table that scales, a convolution that normalises its weight. An adapter and a merge
agree only where the output is the product with the weight, plus the bias, times one number.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp_torch.model.kinds import Kind

__all__ = ["factors_of", "is_plain"]

_ROWS = 6  # of the weight that is tried: more cost time and tell no more
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TOO_MUCH = 2**24  # numbers in what is tried


def is_plain(module: nn.Module, own: type[nn.Module] | None) -> bool:
    """Whether a module runs the forward of the class it is known by: nothing need be tried."""
    same = own is not None and all(
        getattr(type(module), name, None) is getattr(own, name, None)
        for name in ("forward", "_conv_forward")
    )
    return same and getattr(module, "max_norm", None) is None


def factors_of(module: nn.Module, kind: Kind) -> dict[torch.dtype, float] | None:
    """What a module multiplies its product with, by the dtype of its weight; None if it does more.

    Tried on a copy with other weights, so that neither numbers nor devices of the module matter.
    """
    found = {}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng([]):
        for dtype in _DTYPES:
            try:
                factor = _factor(module, kind, dtype)
            except Exception:  # whatever a foreign forward raises on such an input
                factor = None
            if factor is not None:
                found[dtype] = factor
            elif dtype in (torch.float64, torch.float32):
                return None
    return found


def _factor(module: nn.Module, kind: Kind, dtype: torch.dtype) -> float | None:
    twin = _twin(module, kind, dtype)
    inputs = kind.probes(module, dtype)
    forward: Callable[[Tensor], Any] = lambda x: type(module).forward(twin, x)  # pyright: ignore
    factor = _of_ones(twin, kind, forward, inputs[0])
    for x in inputs:
        output = forward(x)
        tokens, w = kind.tokens(twin, x), kind.matrix(twin)
        product = w.T[tokens] if kind.looks_up else tokens @ w.T
        bias = kind.bias(twin)
        expected = factor * product.double() + (0 if bias is None else bias.double())
        rows = kind.rows(twin, output).double()
        close = 32 * torch.finfo(dtype).eps * (1 + expected.abs().max())
        if rows.shape != expected.shape or not (rows - expected).abs().max() <= close:
            return None
        if kind.restored(twin, rows, output).shape != output.shape or output.dtype != dtype:
            return None
    return factor


def _of_ones(twin: Any, kind: Kind, forward: Callable[[Tensor], Any], x: Tensor) -> float:
    """The factor of a table: what it gives for ones, which is exact in every dtype; else 1."""
    if not kind.looks_up:
        return 1.0
    own = twin.weight
    twin._parameters["weight"] = torch.ones_like(own)
    factor = float(forward(x).flatten()[0])
    twin._parameters["weight"] = own
    return factor


def _twin(module: nn.Module, kind: Kind, dtype: torch.dtype) -> Any:
    """A copy without hooks, on the CPU, with few rows of other numbers for its weight."""
    twin: Any = copy.copy(module)
    state = {**twin.__dict__}
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        state[name] = OrderedDict()
    state["_buffers"] = {k: _moved(v, dtype) for k, v in module._buffers.items()}
    state["_parameters"] = {k: _moved(v, dtype) for k, v in module._parameters.items()}
    stored = kind.stored(module)
    axis = 1 if kind.turned and not kind.looks_up else 0
    shape = list(stored.shape)
    shape[axis] = min(shape[axis], _ROWS)
    if stored.numel() // stored.shape[axis] * shape[axis] > _TOO_MUCH:
        raise ValueError
    state["_parameters"]["weight"] = 3 * _numbers(*shape, dtype=dtype)
    if state["_parameters"].get("bias") is not None:
        state["_parameters"]["bias"] = _numbers(shape[axis], dtype=dtype)
    for name in ("out_features", "out_channels", "nf", "num_embeddings"):
        if name in state:
            state[name] = shape[axis]
    if kind.looks_up and state.get("padding_idx") is not None:
        state["padding_idx"] = 0
    object.__setattr__(twin, "__dict__", state)
    return twin


def _moved(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if value is None or not value.is_floating_point():
        return value
    return value.detach().to("cpu", value.dtype if value.dim() == 0 else dtype)


def _numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)
