"""A core and bases of some modes, as the driver of all decompositions sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.decomposition._checks import check_sweeps, is_one_of, seed_of
from tdecomp.decomposition._entries import checked_weights, observed, weighted_fit
from tdecomp.decomposition._fit import Fit, Input, Rounding, Trace, dense, make_fit, measure
from tdecomp.decomposition._frame import Frame, Metric, format_frame, metric_frame
from tdecomp.decomposition._ranks import Target, box_frontier
from tdecomp.decomposition._run import Analysis, Method, Progress, Share, floor, mode_names, part
from tdecomp.decomposition._sketch import is_worth_sketching, sketched_core
from tdecomp.decomposition._tucker.hooi import format_bases, hooi, random_bases, trimmed
from tdecomp.decomposition._tucker.hosvd import (
    Bases,
    bases_of,
    core_energy,
    leading,
    project,
    sequential_bases,
)
from tdecomp.decomposition._tucker.masked import weighted_hooi
from tdecomp.decomposition._which import Which
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import Svd
from tdecomp.modes import positions

__all__ = ["Build", "Init", "Modes", "Options", "tucker_like"]

Modes = Sequence[str | int] | None
Init = Literal["hosvd", "random"] | Format
Build = Callable[[tuple[str, ...], Array, Bases], Format]
"""``(modes, core, bases) -> format``."""


@dataclass(frozen=True)
class Options:
    """How to decompose; see `tucker`."""

    modes: Modes = None
    names: str | Sequence[str] | None = None
    n_iter_max: int = 10
    tol: float = 1e-4
    init: Init = "hosvd"
    random_state: int | np.random.Generator | None = None
    svd: Svd | None = None
    metric: Metric | None = None
    weights: Array | None = None
    rounding: Rounding | None = None
    sequential: bool = True

    def __post_init__(self):
        if not isinstance(self.init, Format) and not is_one_of(self.init, ("hosvd", "random")):
            raise ArgumentError(f"init={self.init!r} must be 'hosvd', 'random' or a format")
        check_sweeps(self.n_iter_max, self.tol)
        if self.modes is not None and (isinstance(self.modes, int) or len(self.modes) == 0):
            raise ArgumentError(
                f"modes={self.modes!r} must list one mode or more, names or positions"
            )
        if self.weights is not None and self.metric is not None:
            raise ArgumentError("weights of the entries and a metric cannot be combined")


def tucker_like(build: Build, options: Options) -> Method:
    """Driver's view of a format that is a core and bases of some modes; `build` makes it."""

    def chosen(x: Input) -> tuple[tuple[str, ...], tuple[int, ...]]:
        names = mode_names(x, options.names)
        return names, positions(names, names if options.modes is None else options.modes)

    def sizes(x: Input) -> list[int]:
        return [x.shape[k] for k in chosen(x)[1]]

    def load(x: Input) -> tuple[Array, Frame]:
        names, where = chosen(x)
        if not isinstance(x, Format):
            array = dense(x)
            frame = metric_frame(options.metric, names, array.shape, array)
            return frame.into(array), frame
        outer = metric_frame(options.metric, names, x.shape, next(iter(x.arrays.values())))
        opened = [name for k, name in enumerate(names) if k not in where]
        core, inner = format_frame(outer.down(x), opened)
        return dense(core), outer.then(inner)

    def analyse(x: Input, progress: Progress) -> Analysis:
        _only_rank(options)
        _, where = chosen(x)
        array, _ = load(x)
        bases, spectra = bases_of(array, where, part(progress, 0.1, 0.7))
        energy = core_energy(project(array, bases), sorted(where))
        energy = energy.transpose(np.argsort(np.argsort(where)))
        frontier = box_frontier(energy, sizes(x), fixed(x))
        kept = sum(math.prod(u.shape) for u in bases.values())
        return Analysis([frontier], floor(array.dtype), (bases, spectra), kept)

    def ranks(x: Input, target: Target) -> list[tuple[int, ...]]:
        names, where = chosen(x)
        return [target.ranks_of([names[k] for k in where], sizes(x))]

    def fit(x: Input, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        names, where = chosen(x)
        rank = dict(zip(where, choice[0], strict=True))
        if options.weights is not None:
            return weighted(x, options.weights, rank, progress)
        which = Which(options.svd)
        if state is None and sketches(x, rank):
            longest = len(x.shape) - 2, len(x.shape) - 1
            ranks = rank[longest[0]], rank[longest[1]]
            array, frame, energy = sketched_core(x, ranks, seed_of(options.random_state))
            which.used("sketch")
        else:
            (array, frame), energy = load(x), None
        progress(0.3)
        bases, spectra = begin(array, rank, state, frame, which, part(progress, 0.3, 0.5))
        bases, trace = improve(array, bases, part(progress, 0.5, 0.9), energy)
        tensor = frame.up(build(names, project(array, bases), bases))
        named = {names[k]: s for k, s in spectra.items()}
        return finish(x, tensor, named, trace, (array, frame), which.names)

    def begin(
        array: Array, rank: dict[int, int], state, frame: Frame, which: Which, progress: Progress
    ) -> tuple[Bases, dict[int, np.ndarray]]:
        if options.init == "random":
            rng = np.random.default_rng(seed_of(options.random_state))
            return random_bases(array, rank, rng), {}
        if isinstance(options.init, Format):
            return format_bases(array, options.init, rank, frame), {}
        if state is not None:
            bases, spectra = state
        elif 0 in rank.values() or not options.sequential:
            bases, spectra = bases_of(array, list(rank), progress)
        else:
            bases, spectra = sequential_bases(array, rank, progress, which.basis)
        return {k: leading(u, rank[k]) for k, u in bases.items()}, spectra

    def improve(array: Array, bases: Bases, progress: Progress, energy: float | None = None):
        return hooi(array, bases, options.n_iter_max, options.tol, progress, energy)

    def sketches(x: Input, rank: dict[int, int]) -> bool:
        """Whether both long modes are reduced by a sketch first, large and nothing else asked."""
        order = len(x.shape)
        ranks = [rank.get(k, 0) for k in (order - 2, order - 1)]
        plain = options.svd is None and options.metric is None and options.init == "hosvd"
        if isinstance(x, Format) or not plain or not options.sequential or 0 in ranks:
            return False
        return is_worth_sketching(tuple(x.shape), (ranks[0], ranks[1]))

    def spend(
        x: Input, choice: list[tuple[int, ...]], share: Share, state, progress: Progress
    ) -> Fit:
        if share.lost is None or 0 in choice[0]:
            return fit(x, choice, state, progress)
        names, where = chosen(x)
        array, frame = load(x)
        bases, spectra = bases_of(array, where) if state is None else state
        rank = _cheaper(choice[0], _even(spectra, where, share.lost), sizes(x), fixed(x))
        bases = {k: bases[k][:, :r] for k, r in zip(where, rank, strict=True)}
        bases, trace = improve(array, bases, part(progress, 0.2, 0.7))
        core = project(array, bases)
        lost = float(measure(array, build(names, core, bases))[0].sum())
        core, bases = trimmed(core, bases, share.lost - lost, x.shape)
        tensor = frame.up(build(names, core, bases))
        named = {names[k]: s for k, s in spectra.items()}
        return finish(x, tensor, named, trace, (array, frame), "exact")

    def finish(
        x: Input,
        tensor: Format,
        spectra: dict[str, np.ndarray],
        trace: Trace,
        seen: tuple[Array, Frame],
        used: str,
    ) -> Fit:
        in_metric = bool(options.metric)
        return make_fit(
            x, tensor, options.rounding, spectra, trace, seen=seen, in_metric=in_metric, svd=used
        )

    def weighted(x: Input, weights: Array, rank: dict[int, int], progress: Progress) -> Fit:
        if isinstance(x, Format):
            raise ArgumentError("weights of the entries need an array or a stack, not a format")
        names, _ = chosen(x)
        entries = checked_weights(weights, x)
        array = observed(x, entries)
        which = Which(options.svd)
        bases, _ = begin(array, rank, None, Frame(), which, part(progress, 0, 0.2))
        core, bases, trace = weighted_hooi(
            array, entries, bases, options.n_iter_max, options.tol, part(progress, 0.2, 0.9)
        )
        cast = lambda a: namespace(a).astype(a, array.dtype)
        tensor = build(names, cast(core), {k: cast(u) for k, u in bases.items()})
        return weighted_fit(array, entries, tensor, options.rounding, trace, {})

    def fixed(x: Input) -> int:
        where = chosen(x)[1]
        return math.prod(n for k, n in enumerate(x.shape) if k not in where)

    return Method(sizes, analyse, ranks, fit, spend)


def _only_rank(options: Options) -> None:
    """Refuse options that do not go with a choice of ranks from spectra."""
    if options.weights is not None:
        raise ArgumentError("weights need rank=: the spectra of an incomplete tensor are not known")
    if options.init != "hosvd":
        raise ArgumentError(f"init={options.init!r} needs rank=: error and budget start from HOSVD")


def _even(spectra: dict[int, np.ndarray], where: Sequence[int], lost: float) -> tuple[int, ...]:
    """Ranks that cut every mode at an equal share of a squared error (the ε/√d rule)."""
    ranks = []
    for k in where:
        tails = np.append(np.cumsum(np.asarray(spectra[k])[::-1] ** 2)[::-1], 0.0)
        ranks.append(max(1, int(np.argmax(tails <= lost / len(where)))))
    return tuple(ranks)


def _cheaper(
    a: tuple[int, ...], b: tuple[int, ...], sizes: Sequence[int], fixed: int
) -> tuple[int, ...]:
    count = lambda ranks: fixed * math.prod(ranks) + int(np.dot(ranks, sizes))
    return a if count(a) <= count(b) else b
