"""Starts of an adapter from what ``tdecomp decompose`` wrote."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tdecomp.adapters import Spec
from tdecomp.adapters.bases import PLAIN
from tdecomp.adapters.site_grids import SiteGrid, make_grids
from tdecomp.errors import ArgumentError, SiteError
from tdecomp.files import Factors, load_factors
from tdecomp.progress import Progress
from tdecomp.stack import Group, Site
from tdecomp.starts import rank_for, row_of
from tdecomp.starts.fitting import check_can_be_fitted
from tdecomp_torch.making.filling import BaseWeights
from tdecomp_torch.making.plan import AdapterPlan
from tdecomp_torch.model.inventory import Inventory

__all__ = ["DecomposedStart", "PlacedFactors", "factors"]

_ROUNDING = 1e-6
"""Relative error below which a start is the decomposed delta."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DecomposedStart:
    """A start from decomposed deltas; made by `factors`.

    Attributes
    ----------
    factors
        As they stand in their file.
    """

    factors: Factors

    def __repr__(self) -> str:
        weights = sum(len(part.group.sites) for part in self.factors.parts)
        return f"{type(self).__name__}({self.factors.method}; {weights} weights)"

    def check(self, spec: Spec) -> None:
        """Refuse an adapter that cannot start here.

        Raises
        ------
        ArgumentError
            It is not one product of factors, or starts from the weights and is taken off again.
        """
        check_can_be_fitted(spec)
        if spec.base != PLAIN:
            raise ArgumentError(
                f"{spec.name!r} has a start of its own, made of the weights, which is taken off"
                " again: start=factors(...) cannot take its place"
            )

    def placed(self, inventory: Inventory) -> PlacedFactors:
        """The factors on the modules of a model.

        Raises
        ------
        SiteError
            Factors of another model: a weight is missing, has another shape, or is none that can be
            adapted. The first one is named.
        """
        where = {name: _module_of(inventory, name) for name in self.factors.shapes}
        for name, shape in self.factors.shapes.items():
            stored = inventory.matrices[where[name]].stored_shape
            if stored != shape:
                raise SiteError(
                    f"{where[name]}.weight is {stored} in this model, and the factors of {name}"
                    f" were made for {shape}: they are of another model"
                )
        heads = {site.path: site.heads for site in inventory.known_sites}
        groups = tuple(_placed(part.group, where, heads) for part in self.factors.parts)
        return PlacedFactors(factors=self.factors, groups=groups)


@dataclass(frozen=True, kw_only=True, repr=False)
class PlacedFactors:
    """Decomposed deltas on the modules of a model.

    Attributes
    ----------
    factors
        As they stand in their file.
    groups
        The group of every part, its sites named as in the model.
    """

    factors: Factors
    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.groups)} groups)"

    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that they change."""
        return tuple(dict.fromkeys(site.module for group in self.groups for site in group.sites))

    def grids(
        self,
        spec: Spec,
        modules: Collection[str] | None,
        *,
        share: Sequence[str] | None,
        everywhere: Sequence[Site],
    ) -> tuple[SiteGrid, ...]:
        """The weights of every group on grids of their own, named as the group.

        Parameters
        ----------
        modules
            Paths of those that are wanted, all of which the factors must change; None: all.
        """
        if modules is not None and (lost := sorted({*modules} - {*self.modules()})):
            raise SiteError(
                f"the factors hold nothing of {lost[0]}: leave it out of the targets, or give none"
                " to adapt what the factors change"
            )
        found: list[SiteGrid] = []
        for group in self.groups:
            sites = [s for s in group.sites if modules is None or s.module in modules]
            grids = make_grids(spec, sites, share=share, everywhere=everywhere) if sites else ()
            for k, grid in enumerate(grids):
                name = group.name + (f"-{k + 1}" if len(grids) > 1 else "")
                found.append(replace(grid, grid=replace(grid.grid, name=name)))
        return tuple(found)

    def rank(self, spec: Spec) -> dict[str, int]:
        """Ranks at which every group is held exactly.

        Raises
        ------
        ArgumentError
            That is not clear.
        """
        found: dict[str, int] = {}
        for part in self.factors.parts:
            own = rank_for(spec, part.tensor)
            if own is None:
                raise ArgumentError(
                    f"{spec.name!r} is another equation than the {type(part.tensor).__name__}"
                    f" factors of {part.group.name}, whose rank is not its own: give rank="
                )
            for letter, size in own.items():
                found[letter] = max(found.get(letter, 1), size)
        return found

    def starts(
        self, plan: AdapterPlan, *, seed: int, progress: Progress
    ) -> tuple[list[dict[str, np.ndarray]], list[str]]:
        """The factors of every group of a plan, and a sentence on each that is not exact."""
        places = {s.path: (p, k) for p, g in enumerate(self.groups) for k, s in enumerate(g.sites)}
        settled: dict[str, np.ndarray] = {}
        starts: list[dict[str, np.ndarray]] = []
        notes: list[str] = []
        for k, (grid, bound) in enumerate(zip(plan.grids, plan.bounds, strict=True)):
            keys = {h.factor.name: h.key for h in plan.held[k]}
            part = places[grid.sites[0].path][0]
            order = [places[site.path][1] for site in grid.sites]
            own = bound.start(BaseWeights(grid, plan.inventory).numpy, seed=seed)
            shared = {n: settled[key] for n, key in keys.items() if key in settled}
            tensor = self.factors.parts[part].tensor
            row = row_of(bound, tensor, order, own=own, settled=shared)
            if row.error > _ROUNDING:
                notes.append(
                    f"{plan.spec.name!r} starts {row.error:.4f} (relative) away from the factors of"
                    f" {grid.grid.name}: its equation or its rank does not hold them."
                )
            starts.append(dict(row.factors))
            settled |= {keys[n]: array for n, array in row.factors.items() if n in keys}
            progress((k + 1) / len(plan.grids))
        return starts, notes


def factors(folder: str | os.PathLike[str] | Factors) -> DecomposedStart:
    """Start from decomposed deltas: ``attach(model, "lora", start=factors("OUT"))``.

    ΔW is then the decomposed delta, and is trained on. Exactly so where the adapter's equation is
    that of the factors (``lora`` from any, ``lotr`` from Tucker2, TensLoRA's from Tucker and CP)
    and its ranks are no smaller; else it is the nearest, and `Adapter.notes` tells the error.
    Without ``rank=`` the adapter takes the rank of the factors; without ``targets=`` the weights
    that they change. Weights of one group of the factors are one group of the adapter.

    Parameters
    ----------
    folder
        What ``tdecomp decompose`` wrote, or `tdecomp.files.Factors`.

    Raises
    ------
    FileError
        It holds no factors.
    """
    found = folder if isinstance(folder, Factors) else load_factors(Path(folder))
    return DecomposedStart(factors=found)


def _module_of(inventory: Inventory, tensor: str) -> str:
    """Path of the module with that weight: of that name, or of the only one that ends alike.

    A model may hold what was decomposed under a prefix, and so may what was decomposed.
    """
    name = tensor.removesuffix(".weight")
    if name in inventory.matrices:
        return name
    near = _ending_alike(name, inventory.matrices)
    if len(near) != 1:
        why = "several modules end in it" if near else "this model has no such module to adapt"
        raise SiteError(f"the factors change {tensor}, and {why}: they are of another model")
    return near[0]


def _ending_alike(name: str, paths: Iterable[str]) -> list[str]:
    """Paths that end in the name, or in which the name ends."""
    return [p for p in paths if p.endswith(f".{name}") or (p and name.endswith(f".{p}"))]


def _placed(group: Group, where: Mapping[str, str], heads: Mapping[str, int]) -> Group:
    """The group on the modules of a model, which may know heads that its file did not."""
    sites = (replace(s, tensor=f"{where[s.tensor]}.weight") for s in group.sites)
    known = tuple(replace(s, heads=s.heads or heads.get(s.path, 0)) for s in sites)
    return replace(group, sites=known)
