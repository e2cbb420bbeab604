"""What PEFT puts in the place of an adapted module: the module itself, and the hooks of adapters.

The forward pass is the one of every adapter (`tdecomp_torch.forward.layer.Hook`); here is only
which of them act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from tdecomp.errors import ArgumentError, SiteError
from tdecomp_torch.attached import AdaptedModule, Attached
from tdecomp_torch.forward.layer import Hook
from tdecomp_torch.forward.lending import lend
from tdecomp_torch.merging import merged_weight, tied, write
from tdecomp_torch.model.vocabulary import Vocabulary
from tdecomp_torch.model.writing import why_not_written
from tdecomp_torch.plainly import plainly

__all__ = [
    "TensorConv2d",
    "TensorEmbedding",
    "TensorExperts",
    "TensorLayer",
    "TensorLinear",
    "layer_for",
]


class TensorLayer(nn.Module, BaseTunerLayer):
    """An adapted module.

    Attributes
    ----------
    base_layer
        The module that was there.
    adapted
        By adapter name: the module as that adapter knows it, of experts every parameter.
    homes
        By adapter name: the adapter.
    """

    other_param_names = ("adapted", "homes")

    def __init__(self, base_layer: nn.Module, target: AdaptedModule):
        super().__init__()
        self.base_layer = base_layer
        shape = target.kind.shape(target.module)
        assert shape is not None
        self.out_features, self.in_features = shape
        self.adapted: dict[str, tuple[AdaptedModule, ...]] = {}
        self.homes: dict[str, Attached] = {}
        self.merged_adapters: list[str] = []
        self._originals: dict[str, nn.Parameter | Tensor] = {}
        if target.kind.by_weight:
            self._handles: list[Any] = [lend(base_layer, self)]
        else:
            self._handles = [base_layer.register_forward_hook(self._onto, with_kwargs=True)]

    def add(self, attached: Attached, targets: Sequence[AdaptedModule]) -> None:
        """Let one more adapter act here."""
        self.adapted[attached.name], self.homes[attached.name] = tuple(targets), attached

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives; adapters act from its hook, as they do without PEFT."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return self.base_layer(*args, **kwargs)

    def _onto(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        """The output of the module with the part of every adapter that acts."""
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            targets = self.adapted.get(name)
            if targets is not None and name not in self.merged_adapters:
                changed = targets[0].hook(module, args, kwargs, output)
                output = output if changed is None else changed
        return output

    def hooks(self) -> list[Hook]:
        """Those of all adapters."""
        return [target.hook for targets in self.adapted.values() for target in targets]

    def acting(self) -> list[Hook]:
        """Those of the adapters that act."""
        if self.disable_adapters:
            return []
        return [
            target.hook
            for name in self.active_adapters
            if name in self.adapted and name not in self.merged_adapters
            for target in self.adapted[name]
        ]

    def hold(self, vocabulary: Vocabulary, path: str) -> None:
        """Keep the model from resizing the module, which it does not find behind this one."""
        self._handles += vocabulary.hold(path, self.get_base_layer())

    def take_off(self) -> None:
        """Let go of the module."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """W' - W, in the layout of the weight."""
        target, *more = self.adapted[adapter]
        if more:
            raise SiteError(
                f"{target.path} and {more[0].path} are adapted in one module: adapter_of(model)"
                ".delta(path) gives the change of each"
            )
        before = target.kind.stored(target.module).detach()
        matrix = target.kind.as_matrix(before)
        change = torch.zeros_like(matrix, dtype=torch.promote_types(matrix.dtype, torch.float32))
        for place in target.hook.places:
            rows = slice(place.start, place.stop)
            if target.hook.adds:
                change[rows] = target.hook.delta(place, matrix.device).to(change.dtype)
            else:
                new = target.hook.adapted_weight(target.module, place)
                change[rows] = new.to(change.dtype) - matrix[rows]
        return target.kind.as_stored(change, before.to(change.dtype))

    @plainly()
    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapted weight into the module; the weight that was there is kept.

        Raises
        ------
        ValueError
            With `safe_merge`: the adapted weight is not finite. Nothing is changed then.
        SiteError
            The weight cannot be written.
        """
        names = check_adapters_to_merge(self, adapter_names)
        for name in [name for name in names or () if name in self.adapted]:
            self.check_writable()
            self._check_above(name)
            merged = [merged_weight(target) for target in self.adapted[name]]
            if safe_merge and not all(bool(torch.isfinite(own).all()) for own in merged):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            for target, own in zip(self.adapted[name], merged, strict=True):
                self._write(self.homes[name], target, own)
            self.merged_adapters.append(name)

    def check_writable(self) -> None:
        """Refuse a weight that can be read only.

        Raises
        ------
        SiteError
            Says why, and what to do.
        """
        for target in (target for targets in self.adapted.values() for target in targets):
            reason, advice = why_not_written(target.kind, target.module)
            if reason:
                raise SiteError(f"{target.path} {reason}, its weight cannot be written: {advice}")

    def _write(self, attached: Attached, target: AdaptedModule, merged: Tensor) -> None:
        """In place; a weight that another module has, too, becomes one of its own."""
        parameter, name = target.weight, target.kind.name
        if tied(attached.model, [target]):
            self._originals.setdefault(name, parameter)
            target.put(nn.Parameter(merged, parameter.requires_grad))
            return
        if name not in self._originals:
            self._originals[name] = parameter.detach().to("cpu", copy=True)
        write(parameter, merged)

    def _check_above(self, name: str) -> None:
        """Refuse a merge onto another adapter that does not add up with it."""
        for other in self.merged_adapters:
            both = (*self.adapted[other], *self.adapted[name])
            if not all(target.hook.adds for target in both):
                raise ArgumentError(
                    f"{name!r} cannot be merged onto {other!r}, as they do not add up: unmerge it"
                    " first"
                )

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the weight back that was there before, bit by bit."""
        base: Any = self.get_base_layer()
        for name, original in self._originals.items():
            if isinstance(original, nn.Parameter):
                setattr(base, name, original)
            else:
                write(getattr(base, name), original)
        for name in self.merged_adapters:
            self.homes[name].pool.state.merged = False
        self._originals, self.merged_adapters = {}, []

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether a pair of matrices can stand in for it."""
        return all(target.kind.is_matrix for target in self.adapted.get(adapter_name, ()))

    def _get_available_adapters(self) -> set[str]:
        return {*self.adapted}

    def __repr__(self) -> str:
        """The module with its adapters, under the name that PEFT looks for."""
        return super().__repr__().replace(type(self).__name__, f"tdecomp.{type(self).__name__}", 1)

    def extra_repr(self) -> str:
        """Which adapters there are."""
        return ", ".join(f"{name}={own.spec.name}" for name, own in self.homes.items())


class TensorLinear(TensorLayer):
    """In the place of a Linear or Conv1D module, of any precision."""


class TensorEmbedding(TensorLayer):
    """In the place of an embedding."""


class TensorConv2d(TensorLayer):
    """In the place of a convolution."""


class TensorExperts(TensorLayer):
    """In the place of a module that holds several experts in one parameter."""


def layer_for(target: AdaptedModule) -> TensorLayer:
    """A layer around a module."""
    kind = target.kind
    if kind.by_weight:
        return TensorExperts(target.module, target)
    made = TensorEmbedding if kind.looks_up else TensorLinear if kind.is_matrix else TensorConv2d
    return made(target.module, target)
