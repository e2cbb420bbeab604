"""What a pool will hold: every factor by its key, before any is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tdecomp.adapters import Bound, Spec, bind
from tdecomp.adapters.grids import SiteGrid
from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import Settings
from tdecomp_torch.fast import FAST

__all__ = ["Held", "acting", "bound_on", "held_factors", "keys_of"]

_SEEDED = 1 << 22
"""Numbers of constants that are made again from a seed besides as many as the weights have."""


def bound_on(
    spec: Spec, grids: Sequence[SiteGrid], rank: int | Mapping[str, int] | None, alpha: float | None
) -> list[Bound]:
    """The method on every grid; factors held across grids are as large as the largest needs."""
    bounds = [bind(spec, grid.grid, rank, alpha=alpha) for grid in grids]
    across = {f.name: f for f in bounds[0].factors if f.across}
    if len(bounds) == 1 or not across:
        return bounds
    sizes = {n: max(b.sizes[n] for b in bounds) for f in across.values() for n in f.modes}
    return [bind(spec, grid.grid, rank, alpha=alpha, sizes=sizes) for grid in grids]


def acting(spec: Spec, settings: Settings) -> Spec:
    """The method as it is put on the weights: without a start that is folded into them."""
    if settings.fold and spec.base != "residual":
        raise ArgumentError(f"fold=True subtracts a start: {spec.name!r} has base={spec.base!r}")
    return replace(spec, base="add") if settings.fold else spec


@dataclass(frozen=True)
class Held:
    """A factor that the pool will hold: name, key and shape.

    Attributes
    ----------
    name, key, shape
        In the method, in the pool, and in numbers.
    trainable
        Whether it is trained.
    follows
        Whether it is made again from the seed, so that no file need hold it.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    trainable: bool
    follows: bool


def held_factors(spec: Spec, grids: Sequence[SiteGrid], settings: Settings) -> list[Held]:
    """Every factor of every group, before any is made; one that groups share is there for each.

    Constants that follow from the seed do so only up to some numbers in all: a file that asks for
    more than its model accounts for must hold them.
    """
    bounds = bound_on(acting(spec, settings), grids, settings.rank, settings.alpha)
    found = [
        Held(
            factor.name,
            key,
            tuple(bound.shapes[factor.name]),
            factor.trainable,
            not factor.trainable and factor.init.from_seed and factor.clusters is None,
        )
        for bound in bounds
        for factor in bound.factors
        if (key := keys_of(bound, settings.sides).get(factor.name)) is not None
    ]
    seeded = {held.key: math.prod(held.shape) for held in found if held.follows}
    weights = {site.path: math.prod(site.shape) for grid in grids for site in grid.sites}
    if sum(seeded.values()) <= _SEEDED + sum(weights.values()):
        return found
    return [replace(held, follows=False) for held in found]


def keys_of(bound: Bound, sides: frozenset[str]) -> dict[str, str]:
    """Key of every factor that the pool holds.

    Neither of constants that are the base weight itself, nor of those that a faster way to the
    same product can do without.
    """
    keys, fast = {}, FAST.get(bound.spec.fast)
    group = bound.grid.name.replace(".", "_")
    letters = {"in": set(bound.in_letters), "out": set(bound.out_letters)}
    for factor in bound.factors:
        if factor.init.kind == "weight" and not factor.trainable:
            continue
        if fast is not None and factor.name not in fast.factors:
            continue
        modes = set(factor.modes)
        touched = [side for side in ("in", "out") if modes & letters[side]]
        own = modes & set(bound.grid.rows)
        if factor.across:
            keys[factor.name] = f"all__{factor.name}"
        elif len(touched) == 1 and touched[0] in sides and not own:
            width = bound.grid.shape[touched[0] == "in"]
            keys[factor.name] = f"{touched[0]}{width}__{factor.name}"
        else:
            keys[factor.name] = f"{group}__{factor.name}"
    return keys
