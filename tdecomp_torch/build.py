"""Making an adapter: factors, keys and hooks, on nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp.adapters import Bound, Spec
from tdecomp.adapters.grids import SiteGrid
from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import Attached, Settings, Target
from tdecomp_torch.fast import FAST
from tdecomp_torch.filling import BaseWeights, fill, given_arrays
from tdecomp_torch.keys import acting, bound_on, held_factors, keys_of
from tdecomp_torch.layer import Hook, Place
from tdecomp_torch.modules import kind_of
from tdecomp_torch.names import modules_of
from tdecomp_torch.pool import FactorPool, Member
from tdecomp_torch.program import make_program
from tdecomp_torch.seeded import SeededPool
from tdecomp_torch.state import State
from tdecomp_torch.training import step
from tdecomp_torch.uses import readers_of_weights
from tdecomp_torch.writing import why_not_written

__all__ = ["build"]


def build(
    model: nn.Module,
    name: str,
    spec: Spec,
    grids: Sequence[SiteGrid],
    settings: Settings,
    *,
    notes: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    stored: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Attached:
    """An adapter with all its factors that is not on the model yet.

    Parameters
    ----------
    model, name, spec, grids, settings
        What is put where.
    notes
        To be told to the user.
    given
        Start values by factor name.
    stored
        Start values by key, taken as they are, dtype included.
    dtype
        Of all other factors.
    progress
        Called with the share of the weights that the start is made from.
    """
    whole = acting(spec, settings)
    bounds = bound_on(whole, grids, settings.rank, settings.alpha)
    arrays = [
        given_arrays(bound, grid.sites, given or {})
        for bound, grid in zip(bounds, grids, strict=True)
    ]
    modules = modules_of(model)
    weights = [BaseWeights(grid, modules) for grid in grids]
    members = []
    for bound, own in zip(bounds, weights, strict=True):
        looked_up = own.looks_up()
        programs = (
            ()
            if whole.fast in FAST
            else tuple(
                make_program(
                    bound, term, tokens=settings.tokens, readers=own.readers(), looked_up=looked_up
                )
                for term in bound.spec.terms
            )
        )
        members.append(Member(bound, programs, keys_of(bound, settings.sides), own))
    state = State(
        folded=settings.fold,
        dropout=settings.dropout,
        shared_dropout=settings.shared_dropout,
        rank_dropout=settings.rank_dropout,
    )
    follows = {held.key for held in held_factors(spec, grids, settings) if held.follows}
    pool = (SeededPool if follows else FactorPool)(members, state)
    pool.seed = int(settings.seed)
    fill(pool, members, weights, settings.seed, arrays, stored or {}, follows, dtype, progress)
    targets = _targeted(grids, modules, pool, settings.tasks)
    read = readers_of_weights(model) if settings.fold else {}
    _check_alone(whole, targets, read, alone=settings.fold)
    told = (*notes, *_redundant(bounds))
    attached = Attached(
        model=model,
        name=name,
        spec=spec,
        settings=settings,
        grids=tuple(grids),
        targets=tuple(targets),
        pool=pool,
        notes=told,
    )
    step(attached, 0)
    return attached


def _targeted(
    grids: Sequence[SiteGrid],
    modules: Mapping[str, nn.Module],
    pool: FactorPool,
    tasks: Sequence[str],
) -> list[Target]:
    """The modules that hold sites, in the order of the model."""
    places: dict[str, list[Place]] = {}
    for m, grid in enumerate(grids):
        for i, site in enumerate(grid.sites):
            start, stop = site.first_row, site.first_row + site.shape[0]
            task = tasks.index(dict(site.labels)["task"]) if tasks else 0
            places.setdefault(site.module, []).append(Place(m, i, start, stop, task))
    found = []
    for path, module in modules.items():
        if path in places:
            kind = kind_of(module)
            assert kind is not None
            shape = kind.shape(module)
            assert shape is not None
            own = sorted(places[path], key=lambda place: place.start)
            hook = Hook(pool, kind, own, shape[0])
            found.append(Target(path=path, module=module, kind=kind, hook=hook))
    return found


def _check_alone(
    spec: Spec, targets: Sequence[Target], read: Mapping[str, str], *, alone: bool
) -> None:
    """Refuse two adapters on one module where they do not simply add up."""
    for target in targets:
        for hook in target.module._forward_hooks.values():
            if not isinstance(hook, Hook):
                continue
            specs = [spec, *(hook.pool.members[p.member].bound.spec for p in hook.by_task[0])]
            if alone or hook.state.folded or any(s.wrap or s.base == "replace" for s in specs):
                raise ArgumentError(
                    f"{target.path} has an adapter already, and one of the two changes or replaces"
                    " the base weight rather than add to it: detach the other one first"
                )
        if alone and target.path in read:
            raise ArgumentError(
                f"fold=True cannot subtract from the weight of {target.path}, which"
                f" {read[target.path]} may use without calling it: leave fold out"
            )
        reason, _ = why_not_written(target.kind, target.module) if alone else ("", "")
        if reason:
            raise ArgumentError(
                f"fold=True cannot subtract from the weight of {target.path}, which {reason}:"
                " leave fold out"
            )


def _redundant(bounds: Sequence[Bound]) -> list[str]:
    found = dict.fromkeys(
        f"The rank {n} = {bound.sizes[n]} is larger than the modes it connects can use."
        for bound in bounds
        for n in bound.redundant
    )
    return list(found)
