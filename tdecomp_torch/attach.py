"""Putting a method on a model: choose the weights, make the factors, hook the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import Bound, Spec, bind, method
from tdecomp.adapters.expressions import nearest
from tdecomp.adapters.grids import SiteGrid, make_grids
from tdecomp.stack import Site, Targets
from tdecomp_torch.adapter import Adapter, Settings, Target, chosen_parameters, pool_name
from tdecomp_torch.fast import FAST
from tdecomp_torch.gathering import check_whole
from tdecomp_torch.layer import Hook, Place
from tdecomp_torch.modules import Kind, kind_of
from tdecomp_torch.names import modules_of
from tdecomp_torch.offload import computing_device
from tdecomp_torch.plainly import plainly
from tdecomp_torch.pool import Derived, FactorPool, Member
from tdecomp_torch.program import make_program
from tdecomp_torch.seeded import SeededPool
from tdecomp_torch.state import State
from tdecomp_torch.targets import chosen_sites, known_sites
from tdecomp_torch.uses import readers_of_weights
from tdecomp_torch.writing import why_not_written

__all__ = ["Held", "attach", "build", "check_name", "held_factors"]

_SEEDED = 1 << 22
"""Numbers of constants that are made again from a seed besides as many as the weights have."""


@plainly()
def attach(
    model: nn.Module,
    spec: Spec | str,
    *,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    layers: Collection[int] | None = None,
    rank: int | Mapping[str, int] | None = None,
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
        Size of every rank that the method leaves open, or sizes by letter.
    alpha
        For the scale; default is that of the method's paper.
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
    _check_settings(alpha=alpha, seed=seed, tokens=tokens, dtype=dtype)
    for what, share_of in (("dropout", dropout), ("rank_dropout", rank_dropout)):
        if not isinstance(share_of, Real) or not 0 <= float(share_of) < 1:
            raise ArgumentError(f"{what}={share_of!r} must be 0 or more and below 1")
    tasks = _checked_tasks(tasks, fold=fold)
    modes, sides = _shared(share)
    survey = chosen_sites(
        model,
        targets=targets,
        exclude=exclude,
        layers=layers,
        patterns=patterns,
        spec=None if "head" in (modes or ()) else spec,
    )
    sites = _of_tasks(survey.sites, tasks)
    grids = make_grids(spec, sites, share=modes, everywhere=known_sites(model))
    spec = spec.over_heads() if "head" in (modes or ()) else spec
    trained = chosen_parameters(model, also_train)
    settings = Settings(
        rank, alpha, sides, dropout, shared_dropout, rank_dropout, seed, tokens, fold, tasks
    )
    adapter = build(
        model,
        name,
        spec,
        grids,
        settings,
        notes=survey.notes,
        given=given or {},
        dtype=dtype,
        progress=progress,
    )
    adapter.install(trained)
    return adapter


def check_name(model: nn.Module, name: str) -> None:
    """Refuse what is no model, and a name that is no word or that another adapter of it has."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model must be a torch module, got {type(model).__name__}")
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(f"name={name!r} must be a word of letters, digits and _")
    check_whole(model)
    if hasattr(model, pool_name(name)):
        raise ArgumentError(
            f"there is an adapter {name!r} on this model: detach it, or give another name"
        )


def _check_settings(*, alpha: Any, seed: Any, tokens: Any, dtype: torch.dtype | None) -> None:
    for what, value, least in (("seed", seed, 0), ("tokens", tokens, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise ArgumentError(f"{what}={value!r} must be a whole number, {least} or more")
    if alpha is not None and not (isinstance(alpha, Real) and math.isfinite(alpha)):
        raise ArgumentError(f"alpha={alpha!r} must be a number")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype={dtype!r} must be a floating dtype, such as torch.float32")


def _checked_tasks(tasks: Any, *, fold: bool) -> tuple[str, ...]:
    words = not isinstance(tasks, str) and isinstance(tasks, Collection)
    if not words or not all(isinstance(t, str) and t and t.isprintable() for t in tasks):
        raise ArgumentError(
            f"tasks={tasks!r} must be names in printable letters, such as ['english', 'french']"
        )
    if len(set(tasks)) < len(tasks):
        raise ArgumentError(f"tasks={tasks!r} has a name twice")
    if tasks and fold:
        raise ArgumentError("fold=True subtracts one start from the weights: it goes without tasks")
    return tuple(tasks)


def _of_tasks(sites: Sequence[Site], tasks: Sequence[str]) -> Sequence[Site]:
    """Every site once for each task."""
    if not tasks:
        return sites
    if clash := [site.path for site in sites if "task" in dict(site.labels)]:
        raise ArgumentError(
            f"{clash[0]} has a place along the mode 'task' by its name: leave tasks= out, or name"
            " that mode otherwise in patterns="
        )
    return [replace(s, labels=(*s.labels, ("task", task))) for s in sites for task in tasks]


def _given_arrays(
    bound: Bound, sites: Sequence[Site], given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the user gives in place of starts, as float64 in numpy."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"given={given!r} must be arrays by factor name")
    names = [factor.name for factor in bound.factors]
    if unknown := [name for name in given if name not in names]:
        raise ArgumentError(
            f"given names {unknown[0]!r}{nearest(str(unknown[0]), names)}: the factors of"
            f" {bound.spec.name!r} are {', '.join(names)}"
        )
    return {
        name: _by_site(bound, name, sites, value)
        if isinstance(value, Mapping)
        else _as_array(name, value)
        for name, value in given.items()
    }


def _by_site(
    bound: Bound, name: str, sites: Sequence[Site], arrays: Mapping[str, Any]
) -> np.ndarray:
    """One array per weight, by module path, as one for the group."""
    modes = next(f.modes for f in bound.factors if f.name == name)
    if modes[:1] != ("site",):
        raise ArgumentError(
            f"arrays by module are given for {name!r}, which has the axes {' '.join(modes)}: that"
            " is for factors whose first axis is 'site'"
        )
    found = []
    for site in sites:
        own = arrays.get(site.path, arrays.get(site.module))
        if own is None:
            raise ArgumentError(f"nothing is given for {name!r} of {site.path}")
        found.append(_as_array(f"{name} of {site.path}", own))
    try:
        return np.stack(found)
    except ValueError:
        raise ArgumentError(
            f"what is given for {name!r} has different shapes in {bound.grid.name}"
        ) from None


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return torch.as_tensor(value).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"what is given for {name!r} is no array ({error})") from None


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
) -> Adapter:
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
    acting = _acting(spec, settings)
    bounds = _bound(acting, grids, settings.rank, settings.alpha)
    arrays = [
        _given_arrays(bound, grid.sites, given or {})
        for bound, grid in zip(bounds, grids, strict=True)
    ]
    modules = modules_of(model)
    weights = [_Weights(grid, modules) for grid in grids]
    members = []
    for bound, own in zip(bounds, weights, strict=True):
        looked_up = own.looks_up()
        programs = (
            ()
            if acting.fast in FAST
            else tuple(
                make_program(
                    bound, term, tokens=settings.tokens, readers=own.readers(), looked_up=looked_up
                )
                for term in bound.spec.terms
            )
        )
        members.append(Member(bound, programs, _keys(bound, settings.sides), own))
    state = State(
        folded=settings.fold,
        dropout=settings.dropout,
        shared_dropout=settings.shared_dropout,
        rank_dropout=settings.rank_dropout,
    )
    follows = {held.key for held in held_factors(spec, grids, settings) if held.follows}
    pool = (SeededPool if follows else FactorPool)(members, state)
    pool.seed = int(settings.seed)
    _fill(pool, members, weights, settings.seed, arrays, stored or {}, follows, dtype, progress)
    targets = _targeted(grids, modules, pool, settings.tasks)
    read = readers_of_weights(model) if settings.fold else {}
    _check_alone(acting, targets, read, alone=settings.fold)
    told = (*notes, *_redundant(bounds))
    return Adapter(model, name, spec, pool, grids, targets, told, settings)


def _shared(share: Sequence[str] | None) -> tuple[Sequence[str] | None, frozenset[str]]:
    """`share` as site modes and weight modes."""
    if share is None:
        return None, frozenset()
    if isinstance(share, str) or not isinstance(share, Collection):
        raise ArgumentError(f"share={share!r} must be a sequence of modes, such as ({share!r},)")
    sides = frozenset(share) & {"in", "out"}
    modes = [mode for mode in share if mode not in sides]
    return (modes if modes or not sides else None), sides


def _bound(
    spec: Spec, grids: Sequence[SiteGrid], rank: int | Mapping[str, int] | None, alpha: float | None
) -> list[Bound]:
    """The method on every grid; factors held across grids are as large as the largest needs."""
    bounds = [bind(spec, grid.grid, rank, alpha=alpha) for grid in grids]
    across = {f.name: f for f in bounds[0].factors if f.across}
    if len(bounds) == 1 or not across:
        return bounds
    sizes = {n: max(b.sizes[n] for b in bounds) for f in across.values() for n in f.modes}
    return [bind(spec, grid.grid, rank, alpha=alpha, sizes=sizes) for grid in grids]


def _acting(spec: Spec, settings: Settings) -> Spec:
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
    bounds = _bound(_acting(spec, settings), grids, settings.rank, settings.alpha)
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
        if (key := _keys(bound, settings.sides).get(factor.name)) is not None
    ]
    seeded = {held.key: math.prod(held.shape) for held in found if held.follows}
    weights = {site.path: math.prod(site.shape) for grid in grids for site in grid.sites}
    if sum(seeded.values()) <= _SEEDED + sum(weights.values()):
        return found
    return [replace(held, follows=False) for held in found]


def _keys(bound: Bound, sides: frozenset[str]) -> dict[str, str]:
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


class _Weights:
    """The base weights of one grid, as they are now."""

    def __init__(self, grid: SiteGrid, modules: Mapping[str, nn.Module]):
        self.sites = grid.sites
        self.modules = [modules[site.module] for site in grid.sites]
        self.kinds = [self._kind(module) for module in self.modules]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first of them."""
        return self._kind(self.modules[0]).stored(self.modules[0]).dtype

    def looks_up(self) -> bool:
        """Whether these are embeddings."""
        kinds = {kind.looks_up for kind in self.kinds}
        if len(kinds) > 1:
            raise SiteError(
                f"{self.sites[0].path} and others of one shape are embeddings and matrices: attach"
                " an adapter of its own to the embeddings"
            )
        return kinds.pop()

    def readers(self) -> float:
        """How many of them read the same tokens: those that lie in one module of the model."""
        parents = {site.module.rpartition(".")[0] for site in self.sites}
        return len({site.module for site in self.sites}) / len(parents)

    @staticmethod
    def _kind(module: nn.Module) -> Kind:
        kind = kind_of(module)
        assert kind is not None
        return kind

    def __call__(self, site: int) -> Tensor:
        """``(out, in)`` of one site, a view."""
        module, where = self.modules[site], self.sites[site]
        matrix = self.kinds[site].matrix(module).detach()
        return matrix[where.first_row : where.first_row + where.shape[0]]

    def numpy(self, site: int) -> np.ndarray:
        """The same as float64 in numpy."""
        found = self(site)
        if found.is_meta:
            raise SiteError(
                f"{self.sites[site].path} is on meta, without values, and this method starts from"
                " them: give the model its weights first"
            )
        return found.double().cpu().numpy()


def _fill(
    pool: FactorPool,
    members: Sequence[Member],
    weights: Sequence[_Weights],
    seed: int,
    given: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Tensor],
    follows: Collection[str],
    dtype: torch.dtype | None,
    progress: Callable[[float], None],
) -> None:
    """Make every factor and put it in the pool; constants that do not follow are kept in files."""
    done: dict[str, tuple[int, ...]] = {}
    total, before = sum(len(own.sites) for own in weights), 0
    for member, own, arrays in zip(members, weights, given, strict=True):
        bound, precision = member.bound, dtype or _precision(own.dtype)
        keys = member.keys
        known = {n: stored[k].double().numpy() for n, k in keys.items() if k in stored}
        start = bound.start(
            own.numpy,
            seed=seed,
            given={**arrays, **known},
            names=keys,
            progress=lambda share, own=own, before=before: progress(
                (before + share * len(own.sites)) / total
            ),
        )
        before += len(own.sites)
        progress(before / total)
        for factor in bound.factors:
            key, shape = keys.get(factor.name), bound.shapes[factor.name]
            if key is None:
                continue
            if done.setdefault(key, shape) != shape:
                raise ArgumentError(
                    f"the factor {factor.name!r} cannot be shared: it is {done[key]} in one group"
                    f" and {shape} in {bound.grid.name}"
                )
            if not hasattr(pool, key):
                value = stored.get(key, start[factor.name])
                own = stored[key].dtype if key in stored else precision
                given_one = key in stored or factor.name in arrays
                made = not given_one and key in follows
                pool.add(key, factor, value, own, Derived(bound, factor, own) if made else None)
    pool.to(computing_device(weights[0].modules[0]))


def _precision(dtype: torch.dtype) -> torch.dtype:
    """Of factors beside base weights of some precision: float32, and no less than theirs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
            found.append(Target(path, module, kind, Hook(pool, kind, own, shape[0])))
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
