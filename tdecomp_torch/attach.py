"""Putting a method on a model: the arguments are read and checked, then all is made, then added."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from tdecomp.adapters import Spec, method
from tdecomp.adapters.site_grids import SiteGrid, grids_by_rank, make_grids, single_heads
from tdecomp.errors import ArgumentError
from tdecomp.progress import Progress, part
from tdecomp.stack import Survey, Targets
from tdecomp_torch.allocating import RankRequest, named_ranks, ranks_by_data
from tdecomp_torch.attached import Settings
from tdecomp_torch.decomposed import DecomposedStart
from tdecomp_torch.forward.tasks import checked_tasks, sites_of_tasks
from tdecomp_torch.handle import Adapter
from tdecomp_torch.making.build import build
from tdecomp_torch.making.filling import Starts
from tdecomp_torch.making.installing import check_name, chosen_parameters, install
from tdecomp_torch.making.plan import AdapterPlan, plan_adapter
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.targets import chosen_sites
from tdecomp_torch.plainly import plainly
from tdecomp_torch.saving.adapter_file import load
from tdecomp_torch.starting import DataStart, start_of, starts_of

__all__ = ["attach", "load_adapter"]

_DATA = 0.9
"""Share of the progress that a start from data takes."""


@plainly()
def attach(
    model: nn.Module,
    spec: Spec | str,
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    rank: int | Mapping[str, int] | RankRequest | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    shared_dropout: bool = False,
    rank_dropout: float = 0.0,
    name: str = "default",
    share: Sequence[str] | None = None,
    patterns: Sequence[str] = (),
    also_train: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    start: DataStart | DecomposedStart | str | None = None,
    tokens: int = 1024,
    fold: bool = False,
    tasks: Sequence[str] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> Adapter:
    """Put a method on a model and freeze everything else.

    Parameters
    ----------
    model
        Any model; its Linear, Conv1D, Conv2d and Embedding modules can be adapted, fused ones by
        their parts. It keeps its modules and gets one new submodule, which holds the factors.
    spec
        A row of the catalogue by name, or a `tdecomp.adapters.Spec` of your own.
    targets, exclude, layers
        As in PEFT: module names or dotted suffixes, one regex for the whole path, or
        ``"all-linear"``; layer numbers. Default: all matrices in numbered layers but routers and
        embeddings, of a method that splits heads those with heads; `Adapter.notes` tells the rest.
    rank
        Size of every rank that the method leaves open, or sizes by letter. By path of the weight
        or module, a rank for each, 0 to leave it out, where a method shares no factors between
        them; `allocate` finds such ranks for a budget.
    alpha
        For the scale; default is that of the method's paper. One that is given is the same at
        every rank.
    dropout, shared_dropout
        Of the input of the first factor, for every weight by itself, or one mask for all that read
        the same input.
    rank_dropout
        Of whole ranks: those of the edge behind the tokens, for every weight by itself.
    name
        Several adapters may be on one model under different names; they add up.
    share
        Site modes along which weights are stacked (default: all that the method can), and ``"in"``
        or ``"out"`` to hold factors over that mode once for all groups of equal width. ``"head"``
        makes every head of q, k and v a weight of its own, in one stack also where keys and values
        have fewer: `head` stands for `proj` too.
    patterns
        Where sites are in an unknown model: ``"blocks.{layer}.att.{proj}"``; they name modes.
    also_train
        Parameters or modules to train besides, chosen as `targets`: heads.
    dtype
        Of the factors; default float32, or float64 for a model in float64.
    seed
        Seed of random factors.
    given
        Arrays by factor name, in place of the method's start; of a factor of every ``site`` also a
        mapping from module paths to the array of each.
    start
        Where the factors come from in place of the method's start: `gradients` or `activations` of
        a few batches, `captured` statistics, `factors` that were decomposed, or the name of a rule
        that needs the weights alone, such as ``"pissa"``.
    tokens
        Number of tokens (batch times length) that contraction orders are planned for.
    fold
        For methods whose start is subtracted (a residual base): subtract it from the weights
        themselves, which is faster; `Adapter.detach` puts the weights back. The weights are then
        not the original ones while the adapter is off, and no second adapter can be there.
    tasks
        Names of tasks: every weight is then one site for each, along the site mode ``task``.
        `Adapter.task` says which of them acts, for all examples of a batch or one by one.
    progress
        Called with the share of the work that is done, from 0 to 1: starts that are made of the
        weights take a while on large models.

    Returns
    -------
    Adapter
        The handle to everything else; nothing has changed on the model if an error was raised.

    Raises
    ------
    ArgumentError, SiteError
        An unknown method or mode, sizes that do not fit, targets that match nothing or cannot be
        adapted, a name that is taken.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(6, 4))
    >>> adapter = attach(model, "lotr", rank=2)
    >>> adapter.n_trainable
    28
    """
    spec = method(spec) if isinstance(spec, str) else spec
    if not isinstance(spec, Spec):
        raise ArgumentError(
            "attach takes a model and then the name of a method or a Spec, got"
            f" {type(spec).__name__}"
        )
    check_name(model, name)
    _check_numbers(alpha=alpha, seed=seed, tokens=tokens, dtype=dtype)
    _check_probabilities(dropout=dropout, rank_dropout=rank_dropout)
    modes, sides = _shared(share)
    request = rank if isinstance(rank, RankRequest) else None
    settings = Settings(
        rank=None if isinstance(rank, RankRequest) else rank,
        alpha=alpha,
        sides=sides,
        dropout=dropout,
        shared_dropout=shared_dropout,
        rank_dropout=rank_dropout,
        seed=seed,
        tokens=tokens,
        fold=fold,
        tasks=checked_tasks(tasks, fold=fold),
    )
    inventory, chosen = Inventory(model), _Chosen(targets, exclude, layers, patterns)
    trained = chosen_parameters(inventory, also_train)
    if isinstance(start, DecomposedStart):
        if request is not None:
            raise ArgumentError("start=factors(...) keeps the ranks of the factors: leave out rank")
        plan, of_groups = _from_factors(
            inventory, spec, start, settings, chosen=chosen, share=modes, progress=progress
        )
    else:
        spec, survey, grids = _surveyed(inventory, spec, settings, chosen=chosen, share=modes)
        plan, of_groups = _from_data(
            inventory,
            spec,
            grids,
            settings,
            start=start,
            request=request,
            notes=survey.notes,
            progress=progress,
        )
    if start is not None:
        progress = part(progress, _DATA, 1)
    starts = Starts(given=given or {}, of_groups=of_groups, dtype=dtype, progress=progress)
    attached = build(plan, name, starts)
    install(attached, trained)
    return Adapter(attached)


def load_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, name: str = "default"
) -> Adapter:
    """Put a saved adapter on a model.

    Parameters
    ----------
    model
        With the same modules as the one it was saved from, at the same paths.
    folder
        Written by `Adapter.save`.
    name
        Name of the adapter on this model.

    Raises
    ------
    FileError
        The file is missing, damaged, of a newer version, or its tensors do not fit its method.
    SiteError
        The model is another one; the first module that differs is named. Nothing is changed.
    """
    return Adapter(load(model, folder, name))


@dataclass(frozen=True)
class _Chosen:
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
    chosen: _Chosen,
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
    chosen: _Chosen,
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
