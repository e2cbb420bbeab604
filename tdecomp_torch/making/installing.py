"""Changing a model: flags, the module of factors and hooks go on, and come off again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from tdecomp.errors import ArgumentError, SiteError
from tdecomp.files.attached import START
from tdecomp.stack.select import Chooser
from tdecomp_torch.attached import Attached
from tdecomp_torch.model.gathering import check_whole
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.names import guests_of, named, parameters_of
from tdecomp_torch.model.offload import offloaded
from tdecomp_torch.model.vocabulary import Vocabulary
from tdecomp_torch.standing import Standing

__all__ = ["check_name", "chosen_parameters", "install", "uninstall", "watch_model"]


def check_name(model: nn.Module, name: str) -> None:
    """Refuse what is not a model, and a name that is not a word or that is taken."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model must be a torch module, got {type(model).__name__}")
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(f"name={name!r} must be a word of letters, digits and _")
    check_whole(model)
    if hasattr(model, _pool_name(name)):
        raise ArgumentError(
            f"there is an adapter {name!r} on this model: detach it, or give another name"
        )


def chosen_parameters(inventory: Inventory, also_train: Sequence[str]) -> list[str]:
    """Names of the parameters that are named, or that lie in modules that are."""
    if not isinstance(also_train, Collection):
        raise ArgumentError(f"also_train={also_train!r} must be names of modules or parameters")
    found: dict[str, None] = {}
    paths = list(inventory.parameters) if also_train else []
    for pattern in [also_train] if isinstance(also_train, str) else also_train:
        chooser = Chooser.of([pattern])
        own = [path for path in paths if any(map(chooser, _beginnings(path)))]
        if not own:
            raise SiteError(f"also_train={pattern!r} matches no parameter of the model")
        found |= dict.fromkeys(own)
    modules = inventory.modules
    for path in found:
        owner, _, name = path.rpartition(".")
        if owner in modules and offloaded(modules[owner], name) is not None:
            raise ArgumentError(
                f"also_train={path!r} is offloaded: what a step changes is not kept; dispatch the"
                " model so that it stays on a device"
            )
    return list(found)


def _beginnings(path: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` of the path ``a.b.c``."""
    segments = path.split(".")
    return [".".join(segments[:k]) for k in range(1, len(segments) + 1)]


def install(attached: Attached, trained: Sequence[str] = ()) -> None:
    """Freeze the model's own parameters, add the pool, hook the layers.

    Parameters
    ----------
    attached
        Not on its model yet.
    trained
        Names of parameters that are trained besides. What other adapters train stays trained.
    """
    model, pool = attached.model, attached.pool
    own, others = parameters_of(model), attached.trained_by_others()
    before = {
        name: flag
        for other, prefix in guests_of(model).items()
        for name, flag in zip(named(prefix, other.flags), other.flags.values(), strict=True)
    }
    pool.trained = tuple(trained)
    attached.shapes_besides = {name: tuple(own[name].shape) for name in trained}
    pool.flags = {name: before.get(name, p.requires_grad) for name, p in own.items()}
    kept = {*trained, *(name for names in others.values() for name in names)}
    for parameter in own.values():
        parameter.requires_grad_(False)
    for name, parameter in own.items():
        if name in kept:
            parameter.requires_grad_(True)
    watch_model(attached)
    model.add_module(_pool_name(attached.name), pool)
    vocabulary = Vocabulary(model)
    for target in attached.targets:
        attached.handles += [*target.put_on(), *vocabulary.hold(target.path, target.module)]
    if attached.settings.fold:
        _fold(attached)


def watch_model(attached: Attached) -> None:
    """Hook what looks on at every forward pass of the whole model; the layers are not hooked."""
    model, pool = attached.model, attached.pool
    attached.standing = Standing(model, pool, [(t.path, t.module) for t in attached.targets])
    attached.handles = [
        model.register_forward_pre_hook(attached.standing),
        model.register_forward_pre_hook(pool.begin),
        model.register_forward_hook(pool.end, always_call=True),
        model.register_forward_pre_hook(attached.watch.begin),
        model.register_forward_hook(attached.watch.end, always_call=True),
    ]


def uninstall(attached: Attached) -> None:
    """Take hooks and pool off the model; flags are as they were before `install`.

    The weights of a merged adapter stay as they are; a folded start is taken out of them.
    """
    if not attached.handles:
        raise ArgumentError(f"the adapter {attached.name!r} is not on a model: it was detached")
    for handle in attached.handles:
        handle.remove()
    attached.handles.clear()
    attached.standing = None
    with torch.no_grad():
        for target in attached.targets if attached.unfolded else ():
            target.weight.copy_(attached.unfolded[target.path])
    attached.unfolded.clear()
    delattr(attached.model, _pool_name(attached.name))
    others = attached.trained_by_others()
    kept = {name for names in others.values() for name in names}
    for name, parameter in parameters_of(attached.model).items():
        if not others and name in attached.pool.flags:
            parameter.requires_grad_(attached.pool.flags[name])
        elif name in attached.pool.trained and name not in kept:
            parameter.requires_grad_(False)


@torch.no_grad()
def _fold(attached: Attached) -> None:
    """Subtract what the start factors give from the weights; keep the weights and the start."""
    for key, start in attached.factors().items():
        attached.pool.register_buffer(f"{START}{key}", start.detach().clone())
    for target in attached.targets:
        attached.unfolded[target.path] = target.weight.detach().to("cpu", copy=True)
        stored = target.weight.detach()
        matrix = target.kind.as_matrix(stored).clone()  # (out, in)
        for place in target.hook.places:
            own = matrix[place.start : place.stop]
            start = target.hook.delta(place, own.device)
            own.copy_((own.double() - start.double()).to(own.dtype))
        with torch.inference_mode(stored.is_inference()), torch.no_grad():
            target.weight.copy_(target.kind.as_stored(matrix, stored))


def _pool_name(name: str) -> str:
    """Name of the submodule that holds an adapter's factors."""
    return f"tdecomp_{name}"
