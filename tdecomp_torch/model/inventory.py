"""The modules of a model and what each is, looked up once for all that is asked about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from tdecomp.errors import SiteError
from tdecomp.stack import Site, find_sites
from tdecomp_torch.model.experts import expert_parameters
from tdecomp_torch.model.kinds import Kind
from tdecomp_torch.model.modules import kind_by_class, kind_of
from tdecomp_torch.model.names import inner_model, modules_of, parameters_of
from tdecomp_torch.model.uses import readers_of_weights

__all__ = ["Inventory", "Adaptable", "config_of"]


@dataclass(frozen=True, kw_only=True)
class Adaptable:
    """A module that can be adapted: its kind, and the shape of its weight, (out, in).

    Of experts in one parameter the path is that of the parameter, `out` counts the rows of all.
    """

    path: str
    module: nn.Module
    kind: Kind
    shape: tuple[int, int]

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The shape of the weight the way round that it is stored."""
        n_out, n_in = self.shape
        return (n_in, n_out) if self.kind.turned else (n_out, n_in)


class Inventory:
    """What attaching needs to know about a model, by the names of the plain one.

    Attributes
    ----------
    model
        As it was given, wrapped or not.
    modules
        Every module by path.
    matrices
        Those that can be adapted, and parameters that hold several experts.
    unlike
        Paths of modules that a class takes for a matrix and that do more with their input.
    shapeless
        Paths of modules of a known kind whose weight is not a matrix (grouped convolutions).
    """

    def __init__(self, model: nn.Module):
        self.model, self.modules = model, modules_of(model)
        self.matrices: dict[str, Adaptable] = {}
        self.unlike: set[str] = set()
        self.shapeless: set[str] = set()
        for path, module in self.modules.items():
            kind = kind_of(module)
            if kind is None:
                self.unlike |= {path} if kind_by_class(module) is not None else set()
            elif (shape := kind.shape(module)) is None:
                self.shapeless.add(path)
            else:
                self.matrices[path] = Adaptable(path=path, module=module, kind=kind, shape=shape)
        self._add_experts()

    def _add_experts(self) -> None:
        for path, module in self.modules.items():
            for kind in expert_parameters(module) if path not in self.matrices else ():
                own = f"{path}.{kind.name}" if path else kind.name
                self.matrices[own] = Adaptable(
                    path=own, module=module, kind=kind, shape=kind.shape(module)
                )

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's own parameters, tied ones under each of their names."""
        return parameters_of(self.model)

    @cached_property
    def readers(self) -> dict[str, str]:
        """Paths of modules whose weight may be used without a call, and the class that does it."""
        return readers_of_weights(self.model)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration of a transformers model as plain values; empty for any other."""
        return config_of(self.model)

    @cached_property
    def known_sites(self) -> tuple[Site, ...]:
        """Every site that is known by the model's family; none where it has no family."""
        try:
            return find_sites(self.stored_shapes(), self.config).sites
        except SiteError:
            return ()

    def stored_shapes(
        self, *, linear: bool = False, apart: Collection[str] = ()
    ) -> dict[str, tuple[int, ...]]:
        """Stored shape of every weight that is not a table; `linear`: of linear maps only.

        Those of the modules `apart` are left out.
        """
        return {
            f"{m.path}.weight": m.stored_shape
            for m in self.matrices.values()
            if not m.kind.looks_up and (m.kind.is_matrix or not linear) and m.path not in apart
            if not m.kind.by_weight and not self.is_inside_attention(m.path)
        }

    @property
    def experts(self) -> dict[str, Adaptable]:
        """Parameters that hold the matrices of several experts, by their own path."""
        return {path: m for path, m in self.matrices.items() if m.kind.by_weight}

    def is_inside_attention(self, path: str) -> bool:
        """Whether this is a part of torch's MultiheadAttention, which calls none of its parts."""
        parent = path.rpartition(".")[0]
        return bool(parent) and isinstance(self.modules.get(parent), nn.MultiheadAttention)


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """The configuration of a transformers model as plain values; empty for any other."""
    config = getattr(inner_model(model), "config", None)
    to_dict: Any = getattr(config, "to_dict", None)
    return to_dict() if to_dict is not None else {}
