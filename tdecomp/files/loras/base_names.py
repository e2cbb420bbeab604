"""What a base checkpoint calls the weight of a module that an adapter names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import numpy as np

from tdecomp.files.checkpoint import Checkpoint, open_checkpoint
from tdecomp.files.loaded_names import BASE_PREFIXES, loaded_names
from tdecomp.files.peft_config import facts

__all__ = ["WeightFinder", "WeightReader", "alike", "sites_of", "tensors_by_site", "weights_of"]

WeightReader = Callable[[], np.ndarray]
"""Reads a weight as it is stored."""

WeightFinder = Callable[[str], WeightReader | None]
"""Module -> what reads its weight; None where that is not known."""


def alike(name: str) -> str:
    """A name of a module, whatever stands between its parts."""
    return name.replace(".", "_")


def sites_of(tensors: Iterable[str], base: Checkpoint) -> dict[str, str]:
    """Names of modules in the loaded model, as adapters use them -> tensors of a checkpoint."""
    modules = {tensor.removesuffix(".weight"): tensor for tensor in tensors}
    names = loaded_names(modules, facts(base.config))
    return {names[module]: tensor for module, tensor in modules.items()}


def tensors_by_site(base: Checkpoint) -> Callable[[str], str | None]:
    """Module of an adapter -> its weight in a checkpoint; None where there is none.

    A module is known by its name in the loaded model and in the checkpoint, with and without what a
    model with a head has in front of its layers, and behind the name of a network (``unet``).
    """
    weights = [name for name in base.floats if name.endswith(".weight")]
    loaded = sites_of(weights, base)
    prefix = BASE_PREFIXES.get(str(facts(base.config).get("model_type")), "")
    known = {alike(site): tensor for site, tensor in loaded.items()}
    for tensor in weights:
        known.setdefault(alike(tensor.removesuffix(".weight")), tensor)
    for site, tensor in loaded.items():
        if prefix:
            known.setdefault(alike(site.removeprefix(f"{prefix}.")), tensor)
            known.setdefault(alike(f"{prefix}.{site}"), tensor)

    def find(site: str) -> str | None:
        names = (site, site.partition(".")[2])  # the second without the network's name
        return next((known[alike(name)] for name in names if alike(name) in known), None)

    return find


def weights_of(base: str | os.PathLike[str] | None) -> WeightFinder:
    """Module of an adapter -> what reads its weight in the base; None where it has none."""
    if base is None:
        return lambda site: None
    checkpoint = open_checkpoint(base)
    find = tensors_by_site(checkpoint)

    def weight(site: str) -> WeightReader | None:
        tensor = find(site)
        return None if tensor is None else lambda: checkpoint.read(tensor)

    return weight
