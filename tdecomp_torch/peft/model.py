"""The method as PEFT runs it: adapters are made as everywhere, and put where PEFT looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.integrations import skip_init_on_device
from torch import nn

from tdecomp._brief import brief_count
from tdecomp.errors import ArgumentError, SiteError
from tdecomp_torch.attached import AdaptedModule, Attached
from tdecomp_torch.handle import Adapter
from tdecomp_torch.model.vocabulary import Vocabulary
from tdecomp_torch.peft.choosing import made
from tdecomp_torch.peft.config import TensorAdapterConfig
from tdecomp_torch.peft.factors import SharedFactors, UnlikeFactorsError
from tdecomp_torch.peft.layers import TensorExperts, TensorLayer, layer_for
from tdecomp_torch.peft.names import PREFIX, ROOM
from tdecomp_torch.peft.shaking import shake
from tdecomp_torch.peft.undoing import take_back
from tdecomp_torch.peft.weighted import check_summable, fill_with_sum, summed_ranks
from tdecomp_torch.plainly import plainly

__all__ = ["TensorAdapterModel", "adapter_of"]


class TensorAdapterModel(BaseTuner):
    """A model with tensor adapters; made by ``get_peft_model``."""

    prefix = PREFIX
    tuner_layer_cls = (TensorLayer, SharedFactors)  # pyright: ignore[reportAssignmentType]
    target_module_mapping: dict[str, list[str]] = {}

    _waiting: Attached | None
    """The adapter that is being put on."""
    _empty: bool
    """Whether a file is about to bring its numbers."""
    _vocabulary: Vocabulary
    """Of the model, as it is before an adapter is put on it."""
    _flags: dict[str, bool]
    """Which parameters were trained before the last adapter came, by name."""

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Called once, before the first adapter is made."""
        super()._pre_injection_hook(model, config, adapter_name)
        self.register_load_state_dict_pre_hook(_check_loaded)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Make an adapter and put it on; where that fails, the model is as it was before."""
        del state_dict  # names of shared factors do not tell modules: the configuration does
        config: Any = self.peft_config[adapter_name]
        empty = low_cpu_mem_usage or nn.Linear(1, 1).weight.is_meta  # as PEFT is loading
        attached = self._made(model, config, adapter_name, empty)
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        vars(self).update(
            _waiting=attached, _empty=empty, _flags=flags, _vocabulary=Vocabulary(model)
        )
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        except Exception:
            take_back(model, adapter_name, self._flags)
            raise
        finally:
            del self._waiting, self._vocabulary

    @skip_init_on_device
    @plainly()
    def _made(
        self, model: nn.Module, config: TensorAdapterConfig, name: str, empty: bool
    ) -> Attached | None:
        attached = made(model, config, name, empty=empty)
        if attached is not None and not config.init_weights:
            shake(attached)
        return attached

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        """The configuration names its modules by now."""
        del model_config
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Put the adapter on one module."""
        attached = self._waiting
        if attached is None:
            raise ArgumentError(
                f"{current_key} cannot be adapted: name Linear, Conv1D, Conv2d or"
                " Embedding modules in target_modules"
            )
        room = _room(self.model)
        if adapter_name not in room.attached:
            config: Any = peft_config
            room.add(attached, empty=self._empty, waiting=config.is_for_a_file)
        own = _of_module(attached, getattr(target, "base_layer", target))
        if not own:
            return  # its rank is 0
        if isinstance(target, TensorLayer):
            target.add(attached, own)
        else:
            layer = layer_for(own[0])
            layer.add(attached, own)
            layer.hold(self._vocabulary, own[0].path)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Put the adapter on the modules that hold experts; names of their parameters."""
        del low_cpu_mem_usage
        attached = self._waiting
        found = [t for t in attached.targets if t.kind.by_weight] if attached else []
        keys = {id(module): key for key, module in model.named_modules()}
        for number in dict.fromkeys(id(target.module) for target in found):
            key = keys[number].removesuffix(".base_layer")
            if not key:
                raise SiteError(
                    f"{found[0].path} is a parameter of the model itself, whose module PEFT cannot"
                    " replace: use tdecomp_torch.attach"
                )
            parent, _, name = key.rpartition(".")
            owner = model.get_submodule(parent)
            self._create_and_replace(
                peft_config, adapter_name, getattr(owner, name), name, owner, key
            )
        paths, told = [target.path for target in found], self.targeted_parameter_names
        told += [path for path in paths if path not in told]  # PEFT 0.19 and 0.20 look there
        return paths

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """As everywhere; a module of experts has no `weight` that PEFT could hand on."""
        if isinstance(child, TensorExperts):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def check_loaded(self, state: Mapping[str, Any], prefix: str) -> None:
        """Refuse numbers of other factors; an adapter that waits for its own is taken off again.

        Raises
        ------
        UnlikeFactorsError
            Names the first factor that differs.
        """
        room = getattr(self.model, ROOM, None)
        if not isinstance(room, SharedFactors):
            return
        try:
            room.check_loaded(state, f"{prefix}model.{ROOM}.")
        except UnlikeFactorsError as error:
            if error.adapter in room.waiting:
                take_back(self.model, error.adapter, self._flags)
                self.peft_config.pop(error.adapter, None)
                if not self.peft_config and hasattr(self.model, "peft_config"):
                    del self.model.peft_config
            raise

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Say which adapters act; two that do not add up are refused before any is switched."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        _room(self.model).check_sum(names)
        super().set_adapter(adapter_name, inference_mode)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """No: `Adapter.save_lora` writes exact pairs, and PEFT's conversion names it."""
        del adapter_name
        return False

    def _check_merge_allowed(self) -> None:
        """Refuse before any weight is written what would be refused at one of them."""
        super()._check_merge_allowed()
        for layer in self.model.modules():
            if isinstance(layer, TensorLayer):
                layer.check_writable()

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """The plain model, with the adapters merged or without them."""
        room = getattr(self.model, ROOM, None)
        layers = [module for module in self.model.modules() if isinstance(module, TensorLayer)]
        plain = super()._unload_and_optionally_merge(*args, **kwargs)
        if room is not None:
            for one in (room, *layers):
                one.take_off()
            delattr(self.model, ROOM)
        return plain

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Factors are float32, or of the dtype of their weights without `autocast_adapter_dtype`.

        A dtype that the configuration names is kept.
        """
        config: Any = self.peft_config[adapter_name]
        attached = _room(self.model).attached.get(adapter_name)
        if attached is None or config.dtype is not None:
            return
        dtype = attached.targets[0].kind.stored(attached.targets[0].module).dtype
        if not autocast_adapter_dtype:
            attached.pool.to(dtype)
        elif next(attached.pool.parameters()).dtype in (torch.float16, torch.bfloat16):
            attached.pool.float()

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "exact",
    ) -> None:
        """Add the adapter whose ΔW is the weighted sum of those of others, exactly.

        Its ranks are the sums of theirs. It does not act yet, and is not trained.

        Parameters
        ----------
        adapters, weights
            Of one method on the same weights, whose ΔW is one product of trained factors: LoRA,
            LoTR, TensLoRA, LoRTA, FacT, trains.
        adapter_name
            New.
        combination_type
            ``"exact"``, the only one.

        Raises
        ------
        ArgumentError
            No adapter of the method is the sum; the message says why, and what to do instead.
        """
        room = _room(self.model)
        if combination_type != "exact":
            raise ArgumentError(f"combination_type={combination_type!r}: expected 'exact'")
        if adapter_name in self.peft_config:
            raise ArgumentError(f"there is an adapter {adapter_name!r} already: give another name")
        if not adapters or len(adapters) != len(weights):
            raise ArgumentError(
                f"{brief_count(len(adapters), 'adapter')} and {brief_count(len(weights), 'weight')}"
                " are given: expected a weight for each, and one adapter or more"
            )
        if unknown := [name for name in adapters if name not in room.attached]:
            raise ArgumentError(f"there is no adapter {unknown[0]!r} to be added up")
        parts = [room.attached[name] for name in adapters]
        check_summable(parts)
        config: Any = copy(self.peft_config[adapters[0]])
        config.method, config.rank, config.rank_pattern = parts[0].spec, summed_ranks(parts), {}
        config.start, config.given, config.step = None, None, parts[0].schedule.at_step
        self.peft_config[adapter_name] = config
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        fill_with_sum(room.attached[adapter_name], parts, weights)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what would otherwise be passed over without a word."""
        del args
        if kwargs.get("adapter_names") is not None:
            raise ArgumentError(
                "adapter_names= (an adapter for every example) is for LoRA: write the adapters as"
                " LoRA with adapter_of(model, name).save_lora(folder), or train one adapter with"
                " tasks=[...], whose task may differ by example"
            )
        yield


def _check_loaded(tuner: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Called before a state is loaded; a function, so that copies of a model have their own."""
    tuner.check_loaded(state, prefix)


def adapter_of(model: nn.Module, name: str | None = None) -> Adapter:
    """The handle of an adapter that PEFT put on a model: exports, ΔW, tasks, schedules, groups.

    Switching, merging, saving and deleting are PEFT's own.

    Parameters
    ----------
    model
        A ``PeftModel``, or a model with adapters injected.
    name
        Of the adapter; default is the first that acts.

    Raises
    ------
    ArgumentError
        There is none of that name.
    """
    rooms = [module for module in model.modules() if isinstance(module, SharedFactors)]
    if not rooms:
        raise ArgumentError("no tensor adapter is on this model: make it with get_peft_model")
    room = rooms[0]
    names = list(room.attached)
    wanted = name if name is not None else next(iter(room.active_adapters or names), None)
    if wanted not in room.attached:
        raise ArgumentError(f"no adapter {wanted!r} is on this model: it has {', '.join(names)}")
    return Adapter(room.attached[wanted])


def _room(model: nn.Module) -> SharedFactors:
    """What holds the factors of all adapters on a model."""
    room = getattr(model, ROOM, None)
    if room is None:
        room = SharedFactors()
        model.add_module(ROOM, room)
    if not isinstance(room, SharedFactors):
        raise ArgumentError(f"the model has a {ROOM!r} of its own, which is where factors would go")
    return room


def _of_module(attached: Attached, module: nn.Module) -> tuple[AdaptedModule, ...]:
    """The module as an adapter knows it; empty if it leaves it out."""
    return tuple(target for target in attached.targets if target.module is module)
