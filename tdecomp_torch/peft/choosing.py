"""Which modules a configuration means: by PEFT's rules where it names them, else by our own."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils.other import get_pattern_key
from torch import nn

from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack.select import ALL_LINEAR, Chooser
from tdecomp_torch.attached import Attached
from tdecomp_torch.decomposed import DecomposedStart
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.targets import chosen_sites
from tdecomp_torch.peft.config import TensorAdapterConfig
from tdecomp_torch.preparing import Chosen, prepare
from tdecomp_torch.training.schedule import Schedule

__all__ = ["made"]

_USUAL_RANK = 8


def made(
    model: nn.Module, config: TensorAdapterConfig, name: str, *, empty: bool = False
) -> Attached | None:
    """The adapter that a configuration asks for, not on the model yet; None if it names nothing.

    Its `target_modules` are then those that were found, so that a saved configuration says them.
    `empty`: a file is about to bring all numbers.

    Raises
    ------
    ArgumentError, SiteError
        Modules that cannot be adapted, sizes that do not fit; the model has not changed.
    """
    inventory = Inventory(model)
    paths = _paths(model, inventory, config)
    if not paths:
        return None
    targets = "|".join(map(re.escape, paths))  # a regex for whole paths: these and no others
    chosen = Chosen(targets, None, None, config.patterns)
    if config.rank is None and _needs_rank(config):
        config.rank = _USUAL_RANK
    asked = config.asked(_ranks(config, paths), seed=_drawn_seed(), empty=empty)
    attached = prepare(inventory, config.spec, asked, chosen=chosen, name=name)
    attached.schedule.move_to(config.step)
    config.follow(_StepOf(attached.schedule))
    if attached.spec != config.spec:  # a start may change what stands beside ΔW
        config.method = attached.spec
    if asked.request is not None:
        config.rank = _found_ranks(attached)
    return attached


@dataclass
class _StepOf:
    """The step that a schedule is at."""

    schedule: Schedule

    def __call__(self) -> float:
        return self.schedule.at_step


def _drawn_seed() -> int:
    """A seed that follows from torch's."""
    return int(torch.randint(1 << 31, (1,), device="cpu"))


def _needs_rank(config: TensorAdapterConfig) -> bool:
    """Whether nothing else says how large the ranks are."""
    return bool(config.spec.open_ranks()) and not isinstance(config.start, DecomposedStart)


def _paths(model: nn.Module, inventory: Inventory, config: TensorAdapterConfig) -> list[str]:
    """Plain names of the modules that are meant."""
    named = config.target_modules
    experts = _experts(inventory, config)
    if named is None and experts:
        return experts
    if named is None or (isinstance(named, str) and named.lower() == ALL_LINEAR):
        _name_targets(model, inventory, config)
    plain = {id(module): path for path, module in inventory.modules.items()}
    found = []
    for key, module in model.named_modules():
        if key and ".base_layer" not in key and check_target_module_exists(config, key):
            base = getattr(module, "base_layer", module)
            if id(base) in plain:
                found.append(plain[id(base)])
    return [*found, *experts]


def _experts(inventory: Inventory, config: TensorAdapterConfig) -> list[str]:
    """Plain names of the parameters that are meant.

    Raises
    ------
    SiteError
        A name that matches none, or a parameter that does not hold several matrices.
    """
    found: dict[str, None] = {}
    for name in sorted(config.target_parameters or ()):
        chosen = Chooser.of([name])
        own = [path for path in inventory.experts if chosen(path)]
        if not own:
            other = next(filter(chosen, inventory.parameters), None)
            shape = "" if other is None else f": {other} is {inventory.parameters[other].shape}"
            raise SiteError(
                f"target_parameters={name!r} matches no parameter of several experts, (expert,"
                f" out, in){shape}; name what is a module in target_modules"
            )
        found |= dict.fromkeys(own)
    return list(found)


def _name_targets(model: nn.Module, inventory: Inventory, config: TensorAdapterConfig) -> None:
    """Write the modules that are meant by default, or by ``all-linear``, into a configuration."""
    every, layers = config.target_modules, config.layers_to_transform
    survey = chosen_sites(
        inventory,
        targets=every,
        exclude=config.exclude_modules,
        layers=[layers] if isinstance(layers, int) else layers,
        patterns=config.patterns,
        spec=config.spec,
    )
    paths = {site.module for site in survey.sites}
    if every is not None:  # PEFT leaves out the head
        paths &= {name.replace(".base_layer", "") for name in _linear(config, model)}
    keys = {id(module): key for key, module in model.named_modules()}
    config.target_modules = {  # pyright: ignore[reportAttributeAccessIssue]
        keys[id(inventory.modules[path])].removesuffix(".base_layer") for path in paths
    }


def _linear(config: Any, model: nn.Module) -> Collection[str]:
    """What ``all-linear`` is to PEFT."""
    found: Any = _maybe_include_all_linear_layers(config, model)
    return found.target_modules


def _ranks(config: TensorAdapterConfig, paths: Sequence[str]) -> dict[str, int] | None:
    """Rank by path where a pattern says so; None where none does."""
    if not config.rank_pattern:
        return None
    if not isinstance(config.rank, int):
        raise ArgumentError("rank_pattern goes with a rank for all other weights: give rank=8")
    ranks = {}
    for path in paths:
        key = get_pattern_key([*config.rank_pattern], path)
        ranks[path] = config.rank_pattern.get(key, config.rank)
    return ranks


def _found_ranks(attached: Attached) -> dict[str, int]:
    """The rank of every weight, as `attach` takes it again."""
    return {
        site.path: max(bound.ranks.values())
        for grid, bound in zip(attached.grids, attached.groups, strict=True)
        for site in grid.sites
        if bound.ranks
    }
