"""Making an adapter of a plan: programs, factors and hooks, none of them on the model yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tdecomp.adapters import Bound
from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import AdaptedModule, Attached
from tdecomp_torch.forward.fast import fast_of
from tdecomp_torch.forward.layer import Hook, ModuleSite
from tdecomp_torch.forward.lending import hooks_on
from tdecomp_torch.forward.pool import FactorPool, Member
from tdecomp_torch.forward.products import product_of
from tdecomp_torch.forward.program import make_program
from tdecomp_torch.forward.seeded import SeededPool
from tdecomp_torch.forward.switches import Switches
from tdecomp_torch.making.filling import BaseWeights, Starts, fill
from tdecomp_torch.making.plan import AdapterPlan, Held
from tdecomp_torch.model.writing import why_not_written

__all__ = ["build"]


def build(plan: AdapterPlan, name: str, starts: Starts) -> Attached:
    """An adapter with all its factors that is not on the model yet.

    Parameters
    ----------
    plan
        What is put where.
    name
        Of the adapter on the model.
    starts
        What takes the place of the starts that the method has.

    Raises
    ------
    ArgumentError
        Starts that do not fit, or another adapter that this one cannot be added to.
    SiteError
        Embeddings and matrices together, or a start that is made of weights that are not here.
    """
    settings = plan.settings
    weights = [BaseWeights(grid, plan.inventory) for grid in plan.grids]
    members = [
        _member(bound, held, own, settings.tokens)
        for bound, held, own in zip(plan.bounds, plan.held, weights, strict=True)
    ]
    state = Switches(
        folded=settings.fold,
        dropout=settings.dropout,
        shared_dropout=settings.shared_dropout,
        rank_dropout=settings.rank_dropout,
    )
    follows = any(h.follows for own in plan.held for h in own)
    pool = (SeededPool if follows else FactorPool)(members, state)
    pool.seed = int(settings.seed)
    fill(pool, plan, weights, starts)
    targets = _targets(plan, pool)
    _check_alone(plan, targets)
    _check_by_weight(plan, targets)
    return Attached(
        model=plan.inventory.model,
        name=name,
        spec=plan.spec,
        settings=settings,
        grids=plan.grids,
        targets=tuple(targets),
        pool=pool,
        notes=plan.notes,
    )


def _member(bound: Bound, held: Sequence[Held], weights: BaseWeights, tokens: int) -> Member:
    """One group: the method on it, what is computed when, and the keys of its factors."""
    looked_up, fast, programs = weights.looks_up(), fast_of(bound.spec), ()
    if fast is None:
        readers = weights.readers()
        programs = tuple(
            make_program(bound, term, tokens=tokens, readers=readers, looked_up=looked_up)
            for term in bound.spec.terms
        )
    keys = {h.factor.name: h.key for h in held}
    return Member(bound=bound, programs=programs, keys=keys, weight=weights, fast=fast)


def _targets(plan: AdapterPlan, pool: FactorPool) -> list[AdaptedModule]:
    """The modules that hold sites, in the order of the model."""
    tasks = plan.settings.tasks
    places: dict[str, list[ModuleSite]] = {}
    for m, grid in enumerate(plan.grids):
        for i, site in enumerate(grid.sites):
            matrix = plan.inventory.matrices[site.module]
            start = matrix.kind.first_row(site, matrix.module)
            stop = start + site.shape[0]
            task = tasks.index(dict(site.labels)["task"]) if tasks else 0
            place = ModuleSite(member=m, site=i, start=start, stop=stop, task=task)
            places.setdefault(site.module, []).append(place)
    found, products = [], [product_of(pool, m) for m in range(len(pool.members))]
    for path, matrix in plan.inventory.matrices.items():
        if path in places:
            own = sorted(places[path], key=lambda place: place.start)
            hook = Hook(products, matrix.kind, own, matrix.shape[0])
            target = AdaptedModule(path=path, module=matrix.module, kind=matrix.kind, hook=hook)
            found.append(target)
    return found


def _check_alone(plan: AdapterPlan, targets: Sequence[AdaptedModule]) -> None:
    """Refuse two adapters on one module that do not add up, and a fold that cannot be written."""
    fold = plan.settings.fold
    for target in targets:
        for hook in hooks_on(target.module, target.kind):
            adds = all(b.spec.adds for b in plan.bounds) and hook.adds
            if fold or hook.state.folded or not adds:
                raise ArgumentError(
                    f"{target.path} has an adapter already, and one of the two changes or replaces"
                    " the base weight rather than add to it: detach the other one first"
                )
        if fold:
            _check_foldable(target, plan.inventory.readers)


def _check_by_weight(plan: AdapterPlan, targets: Sequence[AdaptedModule]) -> None:
    """Refuse what acts on tokens where the weight itself is adapted."""
    path = next((target.path for target in targets if target.kind.by_weight), None)
    settings = plan.settings
    if path is not None and (settings.dropout or settings.rank_dropout):
        raise ArgumentError(
            f"dropout is of tokens, and the experts of {path} get an adapted weight, not another"
            " output: leave out dropout and rank_dropout, or these weights with exclude="
        )


def _check_foldable(target: AdaptedModule, readers: Mapping[str, str]) -> None:
    """Refuse a start that cannot be subtracted from the weight of a module."""
    reason, _ = why_not_written(target.kind, target.module)
    if target.path in readers:
        reason = f"{readers[target.path]} may use without calling it"
    if reason:
        raise ArgumentError(
            f"fold=True cannot subtract from the weight of {target.path}, which {reason}: leave"
            " fold out"
        )
