"""The factors of all adapters on a model, each once: a layer of PEFT that adapts nothing itself.

PEFT walks over its layers to switch, freeze, cast, move, delete and save adapters. One of them
holds what all others share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import Attached
from tdecomp_torch.making.installing import watch_model
from tdecomp_torch.model.gathering import is_part
from tdecomp_torch.model.guest import Guest
from tdecomp_torch.peft.names import POOLS

__all__ = ["SharedFactors", "UnlikeFactorsError"]


class UnlikeFactorsError(ArgumentError):
    """Numbers of other factors than an adapter has."""

    def __init__(self, adapter: str, text: str):
        super().__init__(text)
        self.adapter = adapter


class SharedFactors(Guest, BaseTunerLayer):
    """The factors of every adapter by name, and the adapters themselves.

    Attributes
    ----------
    attached
        Every adapter by name.
    waiting
        Names of adapters whose numbers a file is to bring.
    """

    adapter_layer_names = (POOLS,)
    other_param_names = ("attached",)
    in_features = out_features = 0

    def __init__(self):
        super().__init__()
        self.tdecomp_factors = nn.ModuleDict()
        self.attached: dict[str, Attached] = {}
        self.waiting: set[str] = set()
        self._active_adapter = []
        self.register_load_state_dict_pre_hook(_check_loaded)

    @property
    def merged_adapters(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Adapters that are in the weights."""
        return [name for name, own in self.attached.items() if own.pool.state.merged]

    @property
    def weight(self) -> torch.Tensor:
        """None: there is no layer beneath."""
        raise AttributeError("weight")

    @property
    def bias(self) -> torch.Tensor:
        """None, as `weight`."""
        raise AttributeError("bias")

    def add(self, attached: Attached, *, empty: bool = False, waiting: bool = False) -> None:
        """Hold the factors of an adapter; its layers are not hooked.

        Parameters
        ----------
        attached
            Not on its model yet.
        empty
            Without values, which a file will bring.
        waiting
            A file is to bring the values, also where there are some.
        """
        pool = attached.pool
        if empty:
            for key, parameter in list(pool.named_parameters(recurse=False)):
                setattr(pool, key, nn.Parameter(parameter.detach().to("meta")))
        pool.state.active = False
        self.tdecomp_factors[attached.name] = pool
        self.attached[attached.name] = attached
        self.waiting |= {attached.name} if waiting else set()
        watch_model(attached)

    # -- what PEFT calls on every layer ------------------------------------------------------

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Say which adapters act, and train them unless `inference_mode`.

        Raises
        ------
        ArgumentError
            Two that do not add up.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.check_sum(names)
        super().set_adapter(names, inference_mode)
        for name, attached in self.attached.items():
            attached.pool.state.active = name in names

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        super().enable_adapters(enabled)
        for name, attached in self.attached.items():
            attached.pool.state.active = enabled and name in self.active_adapters

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter off; nothing of it is left."""
        if adapter_name in self.attached:
            self._unhook(adapter_name)
        self.waiting.discard(adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Remember which adapters are in the weights: nothing need be computed for them."""
        del safe_merge
        names = self.active_adapters if adapter_names is None else adapter_names
        for name in names:
            if name in self.attached:
                self.attached[name].pool.state.merged = True

    def unmerge(self) -> None:
        """They are out of the weights again."""
        for name in self.merged_adapters:
            self.attached[name].pool.state.merged = False

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Refuse it: asked of every layer by PEFT's conversion, which takes each for a weight.

        Raises
        ------
        ArgumentError
            Names what writes exact pairs.
        """
        raise ArgumentError(
            "PEFT's conversion knows no factors that weights share: adapter_of(model,"
            f" {adapter_name!r}).save_lora(folder) writes the adapter as a LoRA, exactly or with"
            " max_rank="
        )

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Factors lie where the first of their weights does."""
        attached = self.attached.get(adapter_name)
        if attached is not None:
            where = device or next(iter(attached.targets[0].module.parameters())).device
            if where.type != "meta" and not any(p.is_meta for p in attached.pool.parameters()):
                attached.pool.to(where)

    def take_off(self) -> None:
        """Unhook the model from every adapter."""
        for name in self.attached:
            self._unhook(name)

    def _unhook(self, name: str) -> None:
        attached = self.attached[name]
        for handle in attached.handles:
            handle.remove()
        attached.handles.clear()
        attached.standing = None

    def check_loaded(self, state: Mapping[str, Any], prefix: str) -> None:
        """Refuse numbers of other factors than those that a configuration asks for.

        Raises
        ------
        UnlikeFactorsError
            Names the first factor that differs.
        """
        pools = f"{prefix}{POOLS}."
        inside = {key.removeprefix(pools): v for key, v in state.items() if key.startswith(pools)}
        stray = {
            key: v for key, v in inside.items() if "." not in key
        }  # of no adapter that PEFT saw
        for name, attached in self.attached.items():
            start = f"{name}."
            given = {
                key.removeprefix(start): v for key, v in inside.items() if key.startswith(start)
            }
            given = given or stray
            own = dict(attached.pool.named_parameters())
            asked = {key: tuple(p.shape) for key, p in own.items() if not is_part(p)}
            found = {key: tuple(given[key].shape) for key in given if key in asked}
            for key, shape in asked.items() if given else ():
                if found.get(key, () if not found else shape) != shape:
                    here = f"is {found[key]} in the file" if key in found else "is not in the file"
                    raise UnlikeFactorsError(
                        name,
                        f"the factor {key!r} of the adapter {name!r} {here}, and the configuration"
                        f" ({attached.spec.name}) asks for {shape}: adapter_config.json is that of"
                        " another adapter or was changed (method, rank, target_modules, tasks)",
                    )
            if given:
                self.waiting.discard(name)

    def check_sum(self, names: list[str]) -> None:
        """Refuse adapters that cannot act together.

        Raises
        ------
        ArgumentError
            Names two that do not add up.
        """
        present = [self.attached[name] for name in names if name in self.attached]
        for one in present if len(present) > 1 else ():
            if all(target.hook.adds for target in one.targets):
                continue
            own = {target.path for target in one.targets}
            for other in present:
                both = own & {target.path for target in other.targets}
                if other is not one and both:
                    raise ArgumentError(
                        f"{one.name!r} ({one.spec.name}) does not add to {min(both)} but changes or"
                        f" replaces its weight, and cannot act together with {other.name!r}: set"
                        " one of them only"
                    )


def _check_loaded(room: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Called before a state is loaded; a function, so that copies of a model have their own."""
    room.check_loaded(state, prefix)
