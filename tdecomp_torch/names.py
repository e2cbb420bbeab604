"""Names of a model's modules and parameters, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from tdecomp_torch.pool import FactorPool

__all__ = ["named", "parameters_of", "pools_of"]

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters, tied ones under each of their names; no factors of adapters."""
    inside = {id(p) for pool in pools_of(model) for p in pool.parameters()}
    return {
        _plain(path): parameter
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) not in inside
    }


def pools_of(model: nn.Module) -> dict[FactorPool, str]:
    """Factors of every adapter on the model or on a part of it, and the path of that part."""
    return {
        m: _plain(path.rpartition(".")[0])
        for path, m in model.named_modules()
        if isinstance(m, FactorPool)
    }


def named(prefix: str, names: Iterable[str]) -> list[str]:
    """Names in a part of a model as names in the whole of it."""
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPED)
