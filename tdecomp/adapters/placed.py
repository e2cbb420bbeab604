"""A method on the grids of a model: its sizes on each, and the names of its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tdecomp.adapters.bases import PLAIN
from tdecomp.adapters.bound import Bound
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid
from tdecomp.adapters.sizing import bind
from tdecomp.adapters.spec import Spec
from tdecomp.adapters.terms import Factor
from tdecomp.errors import ArgumentError

__all__ = ["acting", "bounds_on", "factor_key"]


def acting(spec: Spec, settings: Settings) -> Spec:
    """The method as it is put on the weights: without a start that is folded into them."""
    if settings.fold and not spec.base_rule.folds:
        raise ArgumentError(f"fold=True subtracts a start: {spec.name!r} has base={spec.base!r}")
    return replace(spec, base=PLAIN) if settings.fold else spec


def bounds_on(spec: Spec, grids: Sequence[SiteGrid], settings: Settings) -> list[Bound]:
    """The method on every grid; factors held across grids are as large as the largest needs."""
    alpha = settings.alpha
    asked = list(zip(grids, settings.ranks or (settings.rank,) * len(grids), strict=True))
    bounds = [bind(spec, grid.grid, rank, alpha=alpha) for grid, rank in asked]
    across = {f.name: f for f in bounds[0].factors if f.across}
    if len(bounds) == 1 or not across:
        return bounds
    sizes = {n: max(b.sizes[n] for b in bounds) for f in across.values() for n in f.modes}
    return [bind(spec, grid.grid, rank, alpha=alpha, sizes=sizes) for grid, rank in asked]


def factor_key(bound: Bound, factor: Factor, sides: frozenset[str]) -> str:
    """Name of a factor in memory and in files: with its group, or with what groups share."""
    if factor.across:
        return f"all__{factor.name}"
    modes, (n_out, n_in) = set(factor.modes), bound.grid.shape
    on_in, on_out = modes & {*bound.in_letters}, modes & {*bound.out_letters}
    of_sites = modes & bound.grid.rows.keys()
    if on_in and not on_out and not of_sites and "in" in sides:
        return f"in{n_in}__{factor.name}"
    if on_out and not on_in and not of_sites and "out" in sides:
        return f"out{n_out}__{factor.name}"
    return f"{bound.grid.name.replace('.', '_')}__{factor.name}"
