"""Weights that accelerate keeps elsewhere and brings for the forward pass of their module only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["computing_device", "offloaded"]


def offloaded(module: nn.Module, name: str) -> Tensor | None:
    """The values of a parameter that is on ``meta`` between passes; None if it is not offloaded.

    They may be read from a disk.
    """
    held = [hook.weights_map for hook in _hooks(module) if getattr(hook, "offload", False)]
    return next((values[name] for values in held if values is not None and name in values), None)


def computing_device(module: nn.Module) -> torch.device:
    """Where the module computes: where its parameters are, or are brought."""
    devices = [getattr(hook, "execution_device", None) for hook in _hooks(module)]
    told = next((device for device in devices if device is not None), None)
    if told is not None:
        return torch.device(told)
    return next((p.device for p in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    """Accelerate's hooks on a module, several of which may be held by one."""
    hook: Any = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))
