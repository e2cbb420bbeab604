"""Names of a model's modules and parameters, whatever it is wrapped in.

Everything that an adapter says, writes and reads goes by the names of the plain model: those
without `torch.compile`, parallel wrappers, checkpointing, PEFT, or a training module around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tdecomp.stack.names import canonical, is_adapter
from tdecomp_torch.model.guest import Guest

__all__ = [
    "guests_of",
    "inner_model",
    "modules_of",
    "named",
    "parameters_of",
    "plain_name",
]

_UNUSED = "original_module"
"""PEFT's name for a module beside the copy of it that is trained and called."""

_START = "_"
"""Before a path: a child of a plain model may have a name that wrappers give."""


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by plain name, without PEFT's own; of a wrapper only what it wraps."""
    paths, found = _plain_paths(model), {}
    for path, module in model.named_modules():
        if not is_adapter(path) and not _is_unused(path):
            found[paths[path]] = module
    return found


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters, tied ones under each of their names; no factors of adapters."""
    inside = {id(p) for guest in guests_of(model) for p in guest.parameters()}
    paths = _plain_paths(model, every=True)
    found: dict[str, nn.Parameter] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in inside and not _is_unused(path):
            owner, _, name = path.rpartition(".")
            found[named(paths.get(owner, owner), [name])[0]] = parameter
    return found


def inner_model(model: nn.Module) -> nn.Module:
    """What is wrapped: the module that the plain names start from."""
    return modules_of(model)[""]


def plain_name(model: nn.Module, name: str) -> str:
    """A name in the ``state_dict`` of a model as it is in that of the plain one."""
    return _inside(_outer(model), name)


def guests_of(model: nn.Module) -> dict[Guest, str]:
    """Factors of every adapter on the model or on a part of it, and the name of that part."""
    paths = _plain_paths(model, every=True)
    return {
        m: paths[path.rpartition(".")[0]]
        for path, m in model.named_modules()
        if isinstance(m, Guest)
    }


def named(prefix: str, names: Iterable[str]) -> list[str]:
    """Names in a part of a model as names in the whole of it."""
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _plain_paths(model: nn.Module, *, every: bool = False) -> dict[str, str]:
    """Path of every module -> plain name; `every`: of a module that has several, all of them.

    Two modules of one plain name keep their paths, unless one wraps the other.
    """
    outer = _outer(model)
    found: dict[str, str] = {}
    holder: dict[str, str] = {}
    for path, _ in model.named_modules(remove_duplicate=not every):
        found[path] = name = path if _is_unused(path) else _inside(outer, path)
        before = holder.setdefault(name, path)
        if before and path != before and not path.startswith(f"{before}."):
            found[before], found[path] = before, path
        else:
            holder[name] = path
    return found


def _is_unused(path: str) -> bool:
    return _UNUSED in path.split(".")


def _inside(outer: str, path: str) -> str:
    """Plain name of a path; that of what is wrapped is empty."""
    if not path or f"{outer}.".startswith(f"{path}."):
        return ""
    inside = path.removeprefix(f"{outer}.") if outer else path
    return canonical(f"{_START}.{inside}").removeprefix(_START).removeprefix(".")


def _outer(model: nn.Module) -> str:
    """Path of the model that training modules and nameless wrappers are put around.

    A module counts as one if it holds parameters in one child only, and that child is a configured
    model, or is known to be wrapped.
    """
    path, module = [], model
    while not _is_configured(module) and not _has_some(module.parameters(recurse=False)):
        children: list[tuple[str, Any]] = [
            (name, child)
            for name, child in module.named_children()
            if not isinstance(child, Guest) and _has_some(child.parameters())
        ]
        if len(children) != 1:
            break
        name, module_inside = children[0]
        wraps = _is_configured(module_inside) or not canonical(name) or _trains(module)
        if not wraps:
            break
        path.append(name)
        module = module_inside
    return ".".join(path)


def _has_some(parameters: Iterable[nn.Parameter]) -> bool:
    return next(iter(parameters), None) is not None


def _is_configured(module: Any) -> bool:
    """Whether this is a model of transformers, or looks like one."""
    return hasattr(getattr(module, "config", None), "to_dict")


def _trains(module: nn.Module) -> bool:
    """Whether this is one of Lightning's modules, which are around a model of any kind."""
    return any(one.__name__ == "LightningModule" for one in type(module).__mro__)
