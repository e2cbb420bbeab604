"""An adapter as LoRA pairs: exact where its rank allows it, else by SVD with the error stated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tdecomp.adapters import LoRAModule, lora_modules
from tdecomp.collections import AdapterPair
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.files.apart import files_in
from tdecomp.files.atomic import output_folder
from tdecomp.files.attached import START
from tdecomp.files.loras import AdapterFile
from tdecomp.files.loras.adapter_file import HeldPair
from tdecomp.files.peft_config import facts, refused
from tdecomp.files.peft_lora import write_lora
from tdecomp.files.unfused import unfused
from tdecomp.formats import Format, Network
from tdecomp.modes import Equation
from tdecomp.stack import Group
from tdecomp.stack.names import canonical
from tdecomp_torch.attached import AdaptedModule, Attached
from tdecomp_torch.forward.layer import ModuleSite
from tdecomp_torch.model.inventory import config_of
from tdecomp_torch.model.names import inner_model, modules_of, parameters_of
from tdecomp_torch.plainly import plainly

__all__ = ["save_lora", "to_file", "to_lora"]

_DENSE = Equation.parse("site out in -> site out in")


@plainly()
def to_lora(attached: Attached, *, max_rank: int | None = None) -> list[LoRAModule]:
    """LoRA pairs of every adapted module, at scale 1, in float64; of the task that acts.

    They are what the adapter adds to the weights as they were before it was attached.

    The rank of a weight is the smallest product of ranks that cuts its network between ``out`` and
    ``in``; terms of a sum add theirs. Where that is not smaller than the weight (interleaved
    trains, Kronecker and Hadamard products, circulants), and for normalised weights, the pair is
    the dense ΔW and an identity. Pairs wider than `max_rank` are recompressed by SVD, and
    `LoRAModule.departure` says what that lost.

    Raises
    ------
    ArgumentError
        `max_rank` is not a whole number above 0.
    SiteError
        For modules that no LoRA pair of matrices fits: embeddings, convolutions, and experts that
        PEFT does not take one by one.
    """
    attached.check()
    if max_rank is not None and (
        isinstance(max_rank, bool) or not isinstance(max_rank, Integral) or max_rank < 1
    ):
        raise ArgumentError(f"max_rank={max_rank!r} must be a whole number, 1 or more")
    targets = attached.acting_targets()
    for target in targets:
        if not (target.kind.is_matrix or target.kind.by_weight):
            raise SiteError(
                f"{target.path} is a {type(target.module).__name__}: LoRA pairs are written for"
                " Linear and Conv1D modules only"
            )
    groups, tensors, shapes = [], [], {}
    for member, grid in enumerate(attached.grids):
        if chosen := _acting(targets, member):
            sites = tuple(grid.sites[k] for k in chosen)
            labels = (tuple(site.path for site in sites),)
            groups.append(
                Group(name=grid.grid.name, modes=("site", "out", "in"), labels=labels, sites=sites)
            )
            tensors.append(_tensor(attached, member, chosen))
            if attached.settings.fold:  # what was taken out of the weights
                groups.append(groups[-1])
                tensors.append(_start(attached, member, chosen))
    for target in targets:
        shape = target.kind.shape(target.module)
        assert shape is not None
        shapes[target.tensor] = tuple(target.kind.stored(target.module).shape)
        if target.kind.is_matrix:
            shapes[target.tensor] = shape[::-1] if target.kind.turned else shape
    groups, shapes = unfused(groups, shapes, facts(_config(attached.model)))
    modules, left_out = lora_modules(groups, tensors, shapes, max_rank=max_rank)
    if left_out:
        raise SiteError(
            f"the experts of {left_out[0]} cannot be written as LoRA pairs for a model of this"
            " type: merge the adapter and save the model, or leave them out with exclude="
        )
    return modules


def save_lora(
    attached: Attached,
    folder: str | os.PathLike[str],
    *,
    base: str = "",
    max_rank: int | None = None,
    overwrite: bool = False,
) -> list[LoRAModule]:
    """Write a folder that PEFT and vLLM load as a LoRA; returns its pairs, as `to_lora` does.

    Modules are named as the model has them without what wraps it (`torch.compile`, DDP, PEFT).
    Modules that were trained besides (`also_train`) are in the folder whole.

    Parameters
    ----------
    attached
        Merged or not.
    folder
        Made whole or not at all.
    base
        Name of the base model for the configuration; default is the model's own.
    max_rank
        See `to_lora`.
    overwrite
        Whether an existing folder may be replaced.

    Raises
    ------
    ArgumentError, SiteError
        See `to_lora`; and for what PEFT does not adapt or cannot keep in models of this type.
    """
    pairs = to_lora(attached, max_rank=max_rank)
    modules = [replace(pair, module=canonical(pair.module)) for pair in pairs]
    model = facts(_config(attached.model))
    if lost := refused([m.module for m in modules], model):
        raise SiteError(
            f"PEFT does not adapt {lost[0]} in {model['model_type']!r} models: merge the adapter"
            " and save the model, or attach with exclude= for such modules"
        )
    name = base or str(getattr(inner_model(attached.model), "name_or_path", "") or "")
    saved = trained_modules(attached)
    inputs = files_in(str(getattr(attached.model, "name_or_path", "") or ""))
    with output_folder(Path(folder), overwrite=overwrite, inputs=inputs) as temporary:
        write_lora(temporary, modules, base=name, model=model, saved=saved, loaded=True)
    return modules


def trained_modules(attached: Attached) -> dict[str, dict[str, np.ndarray]]:
    """Whole modules with parameters that were trained besides: path -> their numbers by name.

    Raises
    ------
    SiteError
        For a parameter whose module is adapted as well, or is the model itself: PEFT cannot keep a
        copy of that.
    """
    trained = attached.trained_besides()
    ids = {id(parameter) for parameter in trained.values()}
    names = [  # tied ones under every name
        name for name, parameter in parameters_of(attached.model).items() if id(parameter) in ids
    ]
    owners = {name: name.rpartition(".")[0] for name in names}
    for name, owner in owners.items():
        inside = [t.path for t in attached.targets if f"{t.path}.".startswith(f"{owner}.")]
        if not owner or inside:
            raise SiteError(
                f"{name} is trained besides, and a LoRA folder holds whole modules only that are"
                f" not adapted: {owner or 'the model itself'} is adapted; save() keeps it"
            )
    paths = {*owners.values()}
    inner = {path for path in paths for other in paths if path.startswith(f"{other}.")}
    outer = tuple(paths - inner)
    modules = modules_of(attached.model)
    # PEFT takes every module whose path ends like one of these, so that it is kept, too
    alike = [path for path in sorted(modules) if path.endswith(outer)]
    return {path: _state(modules[path]) for path in alike}


def _state(module: nn.Module) -> dict[str, np.ndarray]:
    """The numbers of a module by plain name."""
    return {canonical(name): _numbers(value) for name, value in module.state_dict().items()}


def _numbers(value: torch.Tensor) -> np.ndarray:
    """A tensor in numpy, in float64 if it is that, else in float32."""
    precise = value.dtype == torch.float64
    return value.detach().to("cpu", torch.float64 if precise else torch.float32).numpy()


def _config(model: nn.Module) -> Mapping[str, Any]:
    """The configuration of a model, or of the one that it wraps."""
    return next(filter(None, map(config_of, model.modules())), {})


def _acting(
    targets: Sequence[AdaptedModule], member: int
) -> dict[int, tuple[AdaptedModule, ModuleSite]]:
    """The sites of a group that belong to the task that acts, and where they are."""
    places = {
        place.site: (target, place)
        for target in targets
        for place in target.hook.places
        if place.member == member
    }
    return dict(sorted(places.items()))


@torch.no_grad()
def _tensor(
    attached: Attached, member: int, places: Mapping[int, tuple[AdaptedModule, ModuleSite]]
) -> Format:
    """ΔW of some sites of a group as one format in numpy."""
    bound = attached.groups[member]
    own = attached.pool.members[member]
    if not own.adds or any(f.name not in own.keys for f in bound.factors):
        return Network(_DENSE, (_changes(places.values()),))
    arrays = {
        name: factor.detach().double().cpu().numpy()
        for name, factor in attached.pool.factors(member).items()
    }
    return bound.tensor(arrays, attached.schedule.at_step, sites=tuple(places))


@torch.no_grad()
def _start(
    attached: Attached, member: int, places: Mapping[int, tuple[AdaptedModule, ModuleSite]]
) -> Format:
    """Less what the start that was folded into the weights gives."""
    bound, pool = attached.groups[member], attached.pool
    keys = {name: START + key for name, key in pool.members[member].keys.items()}
    now = pool.factors(member)
    arrays = {
        name: getattr(pool, key, now[name]).detach().double().cpu().numpy()
        for name, key in keys.items()
    }
    return bound.tensor(arrays, sites=tuple(places)) * -1.0


def to_file(attached: Attached, name: str) -> AdapterFile:
    """The pairs of an adapter in memory, as `tdecomp.files.loras.read_adapter` gives those of one.

    Parameters
    ----------
    attached
        Merged or not.
    name
        The task.

    Raises
    ------
    ArgumentError, SiteError
        See `to_lora`.
    """
    stored = {
        canonical(m.module): HeldPair(AdapterPair(b=m.b, a=m.a, transpose=m.transpose))
        for m in to_lora(attached)
    }
    base = str(getattr(inner_model(attached.model), "name_or_path", "") or "")
    return AdapterFile(path=Path(name), name=name, scheme=None, stored=stored, base=base)


def _changes(places: Iterable[tuple[AdaptedModule, ModuleSite]]) -> np.ndarray:
    """``W' - W`` of some sites, ``(site, out, in)``."""
    found = []
    for target, place in places:
        w = target.kind.matrix(target.module)[place.start : place.stop].double()
        new = target.hook.adapted_weight(target.module, place).double()
        found.append((new - w).cpu().numpy())
    return np.stack(found)
