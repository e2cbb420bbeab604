"""Ranks for a budget of numbers, as `attach` takes them: ``rank=allocate("energy", ...)``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from tdecomp.adapters import Spec
from tdecomp.adapters.site_grids import SiteGrid, has_own_factors
from tdecomp.allocation import AllocationRule, RankBudget, RankUnit, allocation_of
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress
from tdecomp.statistics import Statistics
from tdecomp_torch.making.filling import BaseWeights
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.starting import DataStart, check_weights, looked_at

__all__ = ["RankRequest", "allocate", "named_ranks", "ranks_by_data"]


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """A rule of ranks and its budget; made by `allocate`.

    Attributes
    ----------
    name
        Of the rule.
    budget, rank_max, kinds, statistics
        As in `allocate`.
    """

    name: str
    budget: int
    rank_max: int | None = None
    kinds: int | None = None
    statistics: Statistics | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}; {self.budget:,} numbers)"

    @property
    def rule(self) -> AllocationRule:
        """The rule."""
        return allocation_of(self.name)


def allocate(
    rule: str = "energy",
    *,
    budget: int,
    rank_max: int | None = None,
    kinds: int | None = None,
    statistics: Statistics | None = None,
) -> RankRequest:
    """Ranks that share out a budget of trained numbers, for ``attach(model, "lora", rank=...)``.

    Every weight gets a rank of its own, or none, where the method gives it factors of its own, and
    every group one where weights share factors. `Adapter.ranks` tells them.

    Parameters
    ----------
    rule
        A row of `tdecomp.allocation.ALLOCATIONS`: ``"energy"`` of the gradients per number,
        ``"energy_of_weights"``, ``"energy_of_inputs"``, ``"eva"``, ``"gora"``, ``"plop"``, or
        ``"uniform"``.
    budget
        Trained numbers at most.
    rank_max
        The largest rank. Default: that of the rule, two times (EVA) or four times the rank that
        all would have alike, rounded up; none for PLoP.
    kinds
        Kinds of modules that ``"plop"`` chooses; default: half of them, rounded up.
    statistics
        What `capture` saw. Default: what the start sees, ``start=gradients(...)`` or
        ``start=activations(...)``, which is looked at once for both.

    Raises
    ------
    ArgumentError
        An unknown rule, or numbers that are not whole and above 0. When it is used: a budget below
        rank 1, data that the rule needs and does not have, weights that share factors for a rule
        of single weights.

    Examples
    --------
    >>> allocate("energy", budget=20_000)
    RankRequest(energy; 20,000 numbers)
    """
    allocation_of(rule)
    for what, value in (("budget", budget), ("rank_max", rank_max), ("kinds", kinds)):
        if value is None and what != "budget":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{what}={value!r} must be a whole number, 1 or more")
    if kinds is not None and rule != "plop":
        raise ArgumentError(f"kinds={kinds} is for the rule 'plop', not for {rule!r}")
    if statistics is not None and not isinstance(statistics, Statistics):
        raise ArgumentError(
            f"statistics={type(statistics).__name__} must be what capture gave, or load_statistics"
        )
    return RankRequest(
        name=rule, budget=int(budget), rank_max=rank_max, kinds=kinds, statistics=statistics
    )


def named_ranks(rank: Any, grids: Sequence[SiteGrid]) -> Mapping[str, int] | None:
    """`rank` if it names weights, not letters of a method."""
    if not isinstance(rank, Mapping):
        return None
    known = {name for grid in grids for site in grid.sites for name in (site.path, site.module)}
    return rank if any(str(name) in known or "." in str(name) for name in rank) else None


def ranks_by_data(
    request: RankRequest,
    spec: Spec,
    grids: Sequence[SiteGrid],
    inventory: Inventory,
    *,
    sides: Collection[str] = (),
    start: DataStart | None,
    progress: Progress,
) -> tuple[dict[str, int], DataStart | None]:
    """A rank for every weight by path, and the start with what was seen for both.

    Raises
    ------
    ArgumentError
        See `allocate`.
    """
    rule = request.rule
    held = [*sides] if not has_own_factors(spec) else []
    if held or any(factor.across for factor in spec.factors):
        how = f" with share={held[0]!r}" if held else ""
        raise ArgumentError(
            f"{spec.name!r}{how} holds factors over all groups together: ranks that differ are for"
            " adapters that share none between groups"
        )
    paths = [site.path for grid in grids for site in grid.sites]
    if len({*paths}) < len(paths):
        raise ArgumentError("rank=allocate(...) is for one site of every weight: leave out tasks")
    bare = _units(spec, grids, inventory, frozenset(), Statistics(sites={}))
    rule.check(request.name, bare)
    rank_max = request.rank_max or rule.rank_max(bare, request.budget)
    seen, start = _seen(request, spec, grids, inventory, rank_max, start, progress)
    budget = RankBudget(numbers=request.budget, rank_max=rank_max, kinds=request.kinds)
    units = _units(spec, grids, inventory, rule.needs, seen)
    ranks = rule.make(units, budget)
    return {n: r for unit, r in zip(units, ranks, strict=True) for n in unit.names}, start


def _seen(
    request: RankRequest,
    spec: Spec,
    grids: Sequence[SiteGrid],
    inventory: Inventory,
    rank_max: int,
    start: DataStart | None,
    progress: Progress,
) -> tuple[Statistics, DataStart | None]:
    """The statistics that a rule is made of: those that are given, or what the start sees."""
    rule, sites = request.rule, [site for grid in grids for site in grid.sites]
    needs = rule.needs - {"weights"}
    if not needs:
        return Statistics(sites={}), start
    if request.statistics is not None:
        check_weights(request.statistics, inventory, sites)
        return request.statistics, start
    blind = start is None or (start.statistics is None and start.wanted is None)
    if start is None or blind or ("gradients" in needs and not _has_gradients(start)):
        made = "gradients(batches, loss)" if "gradients" in needs else "activations(batches)"
        raise ArgumentError(
            f"the ranks {request.name!r} are made of {', '.join(sorted(needs))}: give"
            f" start={made}, or allocate(..., statistics=capture(...))"
        )
    if start.statistics is None:
        inputs = "inputs" in needs
        start = looked_at(
            start,
            spec,
            inventory,
            sites,
            rank_max,
            inputs=inputs,
            whole=rule.whole,
            progress=progress,
        )
    assert start.statistics is not None
    check_weights(start.statistics, inventory, sites)
    return start.statistics, start


def _has_gradients(start: DataStart) -> bool:
    return start.wanted is None or start.wanted.gradients is not None


def _units(
    spec: Spec,
    grids: Sequence[SiteGrid],
    inventory: Inventory,
    needs: frozenset[str],
    seen: Statistics,
) -> list[RankUnit]:
    """What gets one rank: every weight by itself, or every group."""
    parts = [own for grid in grids for own in (_single(grid) if has_own_factors(spec) else [grid])]
    found = []
    for own in parts:
        names = [site.path for site in own.sites]
        found.append(
            RankUnit(
                spec=spec,
                grid=own.grid,
                names=names,
                gradients=[seen.gradient_of(n) for n in names] if "gradients" in needs else (),
                inputs=[seen.inputs_of(n) for n in names] if "inputs" in needs else (),
                weights=BaseWeights(own, inventory).numpy,
            )
        )
    return found


def _single(sites: SiteGrid) -> list[SiteGrid]:
    """Every weight on a grid of its own."""
    return [
        SiteGrid(replace(sites.grid, places=(place,)), (site,))
        for place, site in zip(sites.grid.places, sites.sites, strict=True)
    ]
