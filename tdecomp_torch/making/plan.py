"""What is put where, with all sizes: found once, before anything is made.

Reading ends here. What makes an adapter takes sites, sizes and keys from an `AdapterPlan`, and asks
neither the model nor the method again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tdecomp.adapters import Bound, Factor, Spec
from tdecomp.adapters.placed import acting, bounds_on, factor_key
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp_torch.forward.fast import fast_of
from tdecomp_torch.model.inventory import Inventory

__all__ = ["Held", "AdapterPlan", "plan_adapter"]

_SEEDED = 1 << 22
"""Numbers of constants that are made again from a seed besides as many as the weights have."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A factor that the pool will hold.

    Attributes
    ----------
    factor
        What it is in the method.
    key
        Its name in the pool; groups that share it have one key for it.
    shape
        Whole.
    follows
        Whether it is made again from the seed, so that no file need hold it.
    """

    factor: Factor
    key: str
    shape: tuple[int, ...]
    follows: bool = False


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """A method on the weights of a model, all sizes known.

    Attributes
    ----------
    inventory
        The modules of the model.
    spec
        The method as it was given.
    settings
        What else was given.
    grids
        The weights, those of equal shape together.
    bounds
        The method as it acts on every grid: without a start that is folded into the weights.
    notes
        What is not as one would expect, one sentence each.
    """

    inventory: Inventory
    spec: Spec
    settings: Settings
    grids: tuple[SiteGrid, ...]
    bounds: tuple[Bound, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def held(self) -> tuple[tuple[Held, ...], ...]:
        """Every factor of every group; one that groups share is there for each.

        Constants that follow from the seed do so only up to some numbers in all: a file that asks
        for more than its model accounts for must hold them.
        """
        found = [tuple(_held(bound, self.settings.sides)) for bound in self.bounds]
        seeded = {h.key: math.prod(h.shape) for own in found for h in own if h.follows}
        weights = {site.path: math.prod(site.shape) for grid in self.grids for site in grid.sites}
        if sum(seeded.values()) > _SEEDED + sum(weights.values()):
            found = [tuple(replace(h, follows=False) for h in own) for own in found]
        return tuple(found)


def plan_adapter(
    inventory: Inventory,
    spec: Spec,
    grids: Sequence[SiteGrid],
    settings: Settings,
    *,
    notes: Sequence[str] = (),
) -> AdapterPlan:
    """Put a method on grids of a model's weights.

    Raises
    ------
    ArgumentError
        Sizes that do not fit, or a start that cannot be folded.
    """
    bounds = bounds_on(acting(spec, settings), grids, settings)
    return AdapterPlan(
        inventory=inventory,
        spec=spec,
        settings=settings,
        grids=tuple(grids),
        bounds=tuple(bounds),
        notes=(*notes, *_redundant(bounds)),
    )


def _held(bound: Bound, sides: frozenset[str]) -> list[Held]:
    """The factors of one group that the pool holds.

    Neither constants that are the base weight itself, nor factors that only the slower way to a
    product has a use for.
    """
    fast = fast_of(bound.spec)
    unused = {f.name for f in bound.spec.factors if fast is not None and f.name not in fast.factors}
    return [
        Held(
            factor=factor,
            key=factor_key(bound, factor, sides),
            shape=tuple(bound.shapes[factor.name]),
            follows=not factor.trainable and factor.init.from_seed and factor.clusters is None,
        )
        for factor in bound.factors
        if factor.trainable or factor.init.kind != "weight"
        if factor.name not in unused
    ]


def _redundant(bounds: Sequence[Bound]) -> list[str]:
    """A sentence on every rank that is larger than it can be used."""
    found = dict.fromkeys(
        f"The rank {n} = {bound.sizes[n]} is larger than the modes it connects can use."
        for bound in bounds
        for n in bound.redundant
    )
    return list(found)
