"""Whether the modules of an adapter are still those of its model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tdecomp.errors import SiteError
from tdecomp_torch.forward.pool import FactorPool
from tdecomp_torch.model.names import modules_of
from tdecomp_torch.tracing import is_traced

__all__ = ["Standing"]


class Standing:
    """Looks, before every forward pass, whether a module was replaced or resized.

    A hook acts on a module and not on its name: one that is replaced (a resized vocabulary, a new
    head) would lose its adapter without a word.
    """

    def __init__(
        self, model: nn.Module, pool: FactorPool, modules: Sequence[tuple[str, nn.Module]]
    ):
        self.model, self.pool, self.modules = model, pool, tuple(modules)
        self.shapes = [self._shape(module) for _, module in modules]
        self._edges: list[tuple[nn.Module, str, nn.Module]] = self._found()

    def __call__(self, *_: object) -> None:
        """Called before the forward pass; one that is traced has its modules already."""
        if is_traced() or not self.pool.state.acts:
            return
        if not all(parent._modules.get(name) is child for parent, name, child in self._edges):
            self._edges = self._found()
        self.check_shapes()

    def check(self) -> None:
        """Refuse a model that has lost a module of the adapter.

        Raises
        ------
        SiteError
            Names the module and what stands in its place.
        """
        self._edges = self._found()
        self.check_shapes()

    def check_shapes(self) -> None:
        """Refuse modules that were resized, and factors that were taken away."""
        for (path, module), shape in zip(self.modules, self.shapes, strict=True):
            now = self._shape(module)
            if now != shape and len(now) == len(shape):  # another number of axes: a shard
                raise SiteError(
                    f"the weight of {path} was {shape} when the adapter was attached and is {now}:"
                    " resize before attaching, or detach the adapter and attach anew"
                )
        first = next(self.pool.parameters(), None)
        if "_hf_hook" in self.pool.__dict__ and first is not None and first.is_meta:
            raise SiteError(
                "the factors of the adapter were offloaded with the model: attach after"
                " dispatch_model or cpu_offload"
            )

    @staticmethod
    def _shape(module: nn.Module) -> tuple[int, ...]:
        weight = module._parameters.get("weight")
        return () if weight is None else tuple(weight.shape)

    def _found(self) -> list[tuple[nn.Module, str, nn.Module]]:
        """Every step on the way from the model to a module: parent, name and child."""
        paths = {module: path for path, module in self.model.named_modules()}
        edges: dict[tuple[int, str], tuple[nn.Module, str, nn.Module]] = {}
        for known, module in self.modules:
            if module not in paths:
                raise SiteError(self._lost(known, module))
            parent = self.model
            for name in paths[module].split(".") if paths[module] else ():
                child = parent._modules[name]
                assert child is not None
                edges[id(parent), name] = parent, name, child
                parent = child
        return list(edges.values())

    def _lost(self, path: str, module: nn.Module) -> str:
        here = modules_of(self.model).get(path)
        now = "is gone" if here is None else f"was replaced by another {type(here).__name__}"
        if here is not None and self._shape(here) != self._shape(module):
            now += f", {self._shape(here)} in place of {self._shape(module)},"
        return (
            f"{path} {now} after the adapter was attached, which does not act there: put the module"
            " back, or detach the adapter (it can still be saved) and attach anew"
        )
