"""From what is asked for to an adapter that is made, and not on the model yet.

What puts adapters on models (`attach`, PEFT) reads its own arguments and asks here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from tdecomp.adapters import Bound, Spec
from tdecomp.adapters.settings import Settings
from tdecomp.adapters.site_grids import SiteGrid, grids_by_rank, make_grids, single_heads
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress, part
from tdecomp.stack import Survey, Targets
from tdecomp_torch.allocating import RankRequest, named_ranks, ranks_by_data
from tdecomp_torch.attached import Attached
from tdecomp_torch.decomposed import DecomposedStart
from tdecomp_torch.forward.tasks import checked_tasks, sites_of_tasks
from tdecomp_torch.making.build import build
from tdecomp_torch.making.filling import Starts
from tdecomp_torch.making.plan import AdapterPlan, plan_adapter
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.targets import chosen_sites
from tdecomp_torch.starting import DataStart, start_of, starts_of

__all__ = ["Asked", "Chosen", "StartFrom", "check_alpha", "prepare"]

StartFrom = DataStart | DecomposedStart | str | None
"""Where factors come from in place of the method's own start."""

_DATA = 0.9
"""Share of the progress that a start from data takes."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an adapter is asked to be, besides the method and the weights; as in `attach`.

    Attributes
    ----------
    absent
        Names of factors that nothing is made for: a file will bring their numbers.
    """

    rank: int | Mapping[str, int] | RankRequest | None = None
    alpha: float | None = None
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0
    share: Sequence[str] | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)
    start: StartFrom = None
    tokens: int = 1024
    fold: bool = False
    tasks: Sequence[str] = ()
    absent: Collection[str] = ()
    progress: Progress = lambda share: None

    def __post_init__(self):
        _check_numbers(alpha=self.alpha, seed=self.seed, tokens=self.tokens, dtype=self.dtype)
        _check_probabilities(dropout=self.dropout, rank_dropout=self.rank_dropout)
        _shared(self.share)

    @property
    def modes(self) -> Sequence[str] | None:
        """Site modes along which weights are stacked."""
        return _shared(self.share)[0]

    @property
    def request(self) -> RankRequest | None:
        """The ranks, where they are to be found for a budget."""
        return self.rank if isinstance(self.rank, RankRequest) else None

    @property
    def settings(self) -> Settings:
        """What the adapter keeps of it."""
        return Settings(
            rank=None if isinstance(self.rank, RankRequest) else self.rank,
            alpha=self.alpha,
            sides=_shared(self.share)[1],
            dropout=self.dropout,
            shared_dropout=self.shared_dropout,
            rank_dropout=self.rank_dropout,
            seed=self.seed,
            tokens=self.tokens,
            fold=self.fold,
            tasks=checked_tasks(self.tasks, fold=self.fold),
        )


def prepare(
    inventory: Inventory, spec: Spec, asked: Asked, *, chosen: Chosen, name: str
) -> Attached:
    """An adapter with all its factors that is not on the model yet.

    Raises
    ------
    ArgumentError, SiteError
        Sizes that do not fit, targets that match nothing or cannot be adapted; nothing has changed
        on the model.
    """
    check_alpha(spec, asked.alpha)
    settings, progress = asked.settings, asked.progress
    if isinstance(asked.start, DecomposedStart):
        if asked.request is not None:
            raise ArgumentError("start=factors(...) keeps the ranks of the factors: leave out rank")
        plan, of_groups = _from_factors(
            inventory,
            spec,
            asked.start,
            settings,
            chosen=chosen,
            share=asked.modes,
            progress=progress,
        )
    else:
        spec, survey, grids = _surveyed(inventory, spec, settings, chosen=chosen, share=asked.modes)
        plan, of_groups = _from_data(
            inventory,
            spec,
            grids,
            settings,
            start=asked.start,
            request=asked.request,
            notes=survey.notes,
            progress=progress,
        )
    if asked.start is not None:
        progress = part(progress, _DATA, 1)
    if asked.absent:
        of_groups = [_without_numbers(bound, asked.absent) for bound in plan.bounds]
    starts = Starts(given=asked.given, of_groups=of_groups, dtype=asked.dtype, progress=progress)
    return build(plan, name, starts)


def check_alpha(spec: Spec, alpha: float | None) -> None:
    """Refuse an alpha that would change nothing.

    Raises
    ------
    ArgumentError
        The scale of the method does not depend on it.
    """
    if alpha is not None and not spec.has_alpha:
        raise ArgumentError(
            f"alpha={alpha!r} would change nothing, as the scale of {spec.name!r} is {spec.scale}:"
            " leave it out, or give a Spec of your own with scale='alpha'"
        )


@dataclass(frozen=True)
class Chosen:
    """Which weights were asked for."""

    targets: Targets | None
    exclude: Targets | None
    layers: Collection[int] | None
    patterns: Sequence[str]

    @property
    def by_default(self) -> bool:
        """Whether nothing was said."""
        return self.targets is None and self.exclude is None and self.layers is None

    def survey(self, inventory: Inventory, spec: Spec | None) -> Survey:
        """The sites of a model that are meant."""
        return chosen_sites(
            inventory,
            targets=self.targets,
            exclude=self.exclude,
            layers=self.layers,
            patterns=self.patterns,
            spec=spec,
        )


_OfGroups = Sequence[Mapping[str, Any]]


def _surveyed(
    inventory: Inventory,
    spec: Spec,
    settings: Settings,
    *,
    chosen: Chosen,
    share: Sequence[str] | None,
) -> tuple[Spec, Survey, Sequence[SiteGrid]]:
    """The method, the weights that are meant, and these on grids."""
    over_heads = "head" in (share or ())
    survey = chosen.survey(inventory, None if over_heads else spec)
    sites = sites_of_tasks(survey.sites, settings.tasks)
    if over_heads:
        spec, sites = single_heads(spec, sites)
    everywhere = inventory.known_sites if "head" in spec.weight_modes else ()
    return spec, survey, make_grids(spec, sites, share=share, everywhere=everywhere)


def _from_data(
    inventory: Inventory,
    spec: Spec,
    grids: Sequence[SiteGrid],
    settings: Settings,
    *,
    start: DataStart | str | None,
    request: RankRequest | None,
    notes: Sequence[str],
    progress: Progress,
) -> tuple[AdapterPlan, _OfGroups]:
    """The plan of an adapter, and the factors that data give."""
    data = None if start is None else start_of(start)
    acting = spec if data is None else data.adapted(spec)
    ranks = named_ranks(settings.rank, grids)
    if request is not None:
        ranks, data = ranks_by_data(
            request,
            spec,
            grids,
            inventory,
            sides=settings.sides,
            start=data,
            progress=part(progress, 0, _DATA),
        )
    if ranks is not None:
        grids, of_groups = grids_by_rank(spec, grids, ranks)
        settings = replace(settings, rank=None, ranks=of_groups)
        notes = [*notes, *_left_out(ranks)]
    plan = plan_adapter(inventory, acting, grids, settings, notes=notes)
    if data is None:
        return plan, ()
    plain = plan_adapter(inventory, spec, grids, replace(settings, fold=False))
    seed = settings.seed
    return plan, starts_of(data, plain, seed=seed, progress=part(progress, 0, _DATA))


def _without_numbers(bound: Bound, names: Collection[str]) -> dict[str, np.ndarray]:
    """Factors of one group that show wherever they are used before they were filled."""
    shapes = {f.name: bound.shapes[f.name] for f in bound.factors if f.name in names}
    return {name: np.full(shape, np.nan) for name, shape in shapes.items()}


def _left_out(ranks: Mapping[str, int]) -> list[str]:
    """A sentence on the weights that get no rank."""
    none = [path for path, rank in ranks.items() if rank == 0]
    if len(none) > 1:
        return [f"{none[0]} and {len(none) - 1} more are left out: their rank is 0."]
    return [f"{path} is left out: its rank is 0." for path in none]


def _from_factors(
    inventory: Inventory,
    spec: Spec,
    start: DecomposedStart,
    settings: Settings,
    *,
    chosen: Chosen,
    share: Sequence[str] | None,
    progress: Progress,
) -> tuple[AdapterPlan, _OfGroups]:
    """The plan of an adapter on the weights that decomposed factors change, and its factors."""
    start.check(spec)
    if settings.tasks or chosen.patterns or "head" in (share or ()):
        raise ArgumentError(
            "start=factors(...) takes the weights and groups of the factors: leave out tasks,"
            " patterns and share=('head',)"
        )
    placed, modules = start.placed(inventory), None
    if not chosen.by_default:
        targets = chosen.targets if chosen.targets is not None else placed.modules()
        survey = replace(chosen, targets=targets).survey(inventory, None)
        modules = {site.module for site in survey.sites}
    everywhere = inventory.known_sites if "head" in spec.weight_modes else ()
    grids = placed.grids(spec, modules, share=share, everywhere=everywhere)
    if settings.rank is None:
        settings = replace(settings, rank=placed.rank(spec))
    plan = plan_adapter(inventory, spec, grids, settings)
    starts, notes = placed.starts(plan, seed=settings.seed, progress=part(progress, 0, _DATA))
    left = len(placed.modules()) - len({s.module for grid in grids for s in grid.sites})
    if left:
        notes.append(f"The factors change {left} more modules, which are not among the targets.")
    return replace(plan, notes=(*plan.notes, *notes)), starts


def _check_probabilities(**given: Any) -> None:
    for what, value in given.items():
        if not isinstance(value, Real) or not 0 <= float(value) < 1:
            raise ArgumentError(f"{what}={value!r} must be 0 or more and below 1")


def _check_numbers(*, alpha: Any, seed: Any, tokens: Any, dtype: torch.dtype | None) -> None:
    for what, value, least in (("seed", seed, 0), ("tokens", tokens, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise ArgumentError(f"{what}={value!r} must be a whole number, {least} or more")
    if alpha is not None and not (isinstance(alpha, Real) and math.isfinite(alpha)):
        raise ArgumentError(f"alpha={alpha!r} must be a number")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype={dtype!r} must be a floating dtype, such as torch.float32")


def _shared(share: Sequence[str] | None) -> tuple[Sequence[str] | None, frozenset[str]]:
    """`share` as site modes and weight modes."""
    if share is None:
        return None, frozenset()
    if isinstance(share, str) or not isinstance(share, Collection):
        raise ArgumentError(f"share={share!r} must be a sequence of modes, such as ({share!r},)")
    sides = frozenset(share) & {"in", "out"}
    modes = [mode for mode in share if mode not in sides]
    return (modes if modes or not sides else None), sides
