"""Taking an adapter off that was never whole: its injection failed, or a file does not fit it."""

from __future__ import annotations

from collections.abc import Mapping

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tdecomp_torch.peft.factors import SharedFactors
from tdecomp_torch.peft.layers import TensorLayer
from tdecomp_torch.peft.names import ROOM

__all__ = ["take_back"]


def take_back(model: nn.Module, name: str, flags: Mapping[str, bool]) -> None:
    """Make a model what it was before an adapter was put on it.

    Parameters
    ----------
    model
        Beneath PEFT's.
    name
        Of the adapter, of which any part may be there.
    flags
        Name of every parameter there was before -> whether it was trained.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, TensorLayer) and not {*module.adapted} - {name}:
            module.take_off()
            _put(model, path, module.base_layer)
        elif isinstance(module, TensorLayer) and name in module.adapted:
            module.delete_adapter(name)
        elif isinstance(module, AuxiliaryTrainingWrapper) and module._adapters == {name}:
            _put(model, path, module.original_module)
        elif isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters:
            module.delete_adapter(name, [n for n in module.active_adapters if n != name])
    room = getattr(model, ROOM, None)
    if isinstance(room, SharedFactors):
        room.delete_adapter(name)
        if not room.attached:
            delattr(model, ROOM)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(path, parameter.requires_grad))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
