"""Weights that can be read and not be written, and what to do then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tdecomp_torch.model.gathering import is_part
from tdecomp_torch.model.kinds import Kind

__all__ = ["why_not_written"]

_ELSEWHERE = (
    "load the saved adapter on the model in full precision and merge there, or write it as a LoRA"
    " with save_lora"
)
_Reason = Callable[[Kind, Any], bool]


def _own(kind: Kind, module: Any) -> Tensor:
    return getattr(module, kind.name)


_REASONS: tuple[tuple[_Reason, str, str], ...] = (
    (lambda kind, module: kind.packed, "is quantised ({type})", _ELSEWHERE),
    (
        lambda kind, module: kind.name not in module._parameters | module._buffers,
        "has no weight of its own ({type}): it is computed from {parameters}",
        "make it plain first (torch.nn.utils.prune.remove, remove_parametrizations or"
        " remove_weight_norm), or write the adapter as a LoRA with save_lora",
    ),
    (
        lambda kind, module: _own(kind, module).is_meta,
        "is offloaded or on meta ({type})",
        "load the saved adapter on the model in memory and merge there",
    ),
    (
        lambda kind, module: (
            is_part(_own(kind, module)) or hasattr(_own(kind, module), "full_tensor")
        ),
        "is sharded ({type})",
        "load the saved adapter on the whole model and merge there",
    ),
    (
        lambda kind, module: _own(kind, module).numel() > 1 and 0 in _own(kind, module).stride(),
        "keeps several of its numbers in one place in memory ({type}, an expanded tensor)",
        "give the module a weight of its own: module.weight = nn.Parameter(module.weight.clone())",
    ),
)


def why_not_written(kind: Kind, module: nn.Module) -> tuple[str, str]:
    """Why its weight cannot be written, and what to do; both empty if it can."""
    for holds, reason, advice in _REASONS:
        if holds(kind, module):
            names = ", ".join(name for name, _ in module.named_parameters() if name != "bias")
            return reason.format(type=type(module).__name__, parameters=names), advice
    return "", ""
