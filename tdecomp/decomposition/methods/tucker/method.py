"""A core and bases of some modes, as the driver of all decompositions sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from tdecomp._xp import Array, floor, namespace
from tdecomp.decomposition.checks import check_sweeps, is_one_of, seed_of
from tdecomp.decomposition.entries import checked_weights, observed, weighted_fit
from tdecomp.decomposition.fit import Fit, Rounding, Trace, make_fit
from tdecomp.decomposition.method import Analysis, Method, Share
from tdecomp.decomposition.methods.tucker.hooi import format_bases, hooi, random_bases, trimmed
from tdecomp.decomposition.methods.tucker.hosvd import (
    Bases,
    bases_of,
    core_energy,
    leading,
    project,
    sequential_bases,
)
from tdecomp.decomposition.methods.tucker.masked import weighted_hooi
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import Svd
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Frame, Metric, format_frame, metric_frame
from tdecomp.passes.residual import measure
from tdecomp.passes.slices import Input, dense, mode_names
from tdecomp.passes.stream import CLOSE, FIRST_WIDTH, streamed, worth_sketching
from tdecomp.progress import Progress, part
from tdecomp.ranking.frontier import box_frontier
from tdecomp.ranking.target import Target

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


@dataclass(frozen=True)
class _Look:
    """A tensor in the coordinates it is decomposed in.

    Attributes
    ----------
    energy, outside
        Squared norm of the whole tensor, where `array` is only a part of it, and of the rest.
    energies
        Squared norm of every matrix, where they are known.
    passes
        Over the data.
    """

    array: Array
    frame: Frame
    energy: float | None = None
    outside: float = 0.0
    energies: Sequence[float] | None = None
    passes: int = 1


class _State(NamedTuple):
    """What the look for a choice of ranks leaves for the fit; the array only if it is small."""

    bases: Bases
    spectra: dict[int, np.ndarray]
    look: _Look | None = None


def tucker_like(build: Build, options: Options) -> Method:
    """Driver's view of a format that is a core and bases of some modes; `build` makes it."""
    seed = seed_of(options.random_state)

    def chosen(x: Input) -> tuple[tuple[str, ...], tuple[int, ...]]:
        names = mode_names(x, options.names)
        return names, positions(names, names if options.modes is None else options.modes)

    def sizes(x: Input) -> list[int]:
        return [x.shape[k] for k in chosen(x)[1]]

    def load(x: Input) -> _Look:
        names, where = chosen(x)
        if not isinstance(x, Format):
            array = dense(x)
            frame = metric_frame(options.metric, names, array.shape, array)
            return _Look(frame.into(array), frame)
        outer = metric_frame(options.metric, names, x.shape, next(iter(x.arrays.values())))
        opened = [name for k, name in enumerate(names) if k not in where]
        core, inner = format_frame(outer.down(x), opened)
        return _Look(dense(core), outer.then(inner))

    def sketch(x: Input, rank: Mapping[int, int], *, measured: bool = False) -> _Look | None:
        """Coordinates of the long modes from a few passes; None where the exact ones are better.

        What they leave out is a difference of norms, to 1e-7 of them, or measured where it is less.
        """
        plain = options.svd is None and options.metric is None and options.init == "hosvd"
        order = len(x.shape)
        if isinstance(x, Format) or order < 2 or not (plain and options.sequential):
            return None
        ranks = worth_sketching(tuple(x.shape), (rank.get(order - 2), rank.get(order - 1)))
        if ranks is None:
            return None
        stream = streamed(x, ranks, seed)
        assert stream.core is not None
        look = _Look(
            stream.core,
            stream.frame,
            stream.energy,
            stream.outside,
            stream.energies,
            stream.passes,
        )
        if not measured or stream.outside > CLOSE * stream.energy:
            return look
        left = float(measure(x, stream.tensor, stream.energies)[0].sum())
        return replace(look, outside=left, passes=look.passes + 1)

    def analyse(x: Input, progress: Progress) -> Analysis:
        return looked(x, FIRST_WIDTH, progress)

    def looked(x: Input, width: int, progress: Progress, before: int = 0) -> Analysis:
        """What can be traded, seen through a sketch of this width where it is worth it."""
        _only_rank(options)
        _, where = chosen(x)
        look = sketch(x, dict.fromkeys(where, width), measured=True)
        if look is not None:
            look = replace(look, passes=look.passes + before)
        seen = look or load(x)
        bases, spectra = bases_of(seen.array, where, part(progress, 0.1, 0.7))
        energy = core_energy(project(seen.array, bases), sorted(where))
        energy = energy.transpose(np.argsort(np.argsort(where)))
        kept = sum(math.prod(u.shape) for u in bases.values())
        reach = floor(seen.array.dtype)
        if look is None:
            frontier = box_frontier(energy, sizes(x), fixed(x), reach)
            return Analysis([frontier], reach, _State(bases, spectra), kept)
        limits = [width if k in look.frame.lift else x.shape[k] + 1 for k in where]
        known = energy[tuple(slice(limit) for limit in limits)]
        outside = look.outside + float(energy.sum() - known.sum())
        return Analysis(
            [box_frontier(known, sizes(x), fixed(x), reach).plus(outside)],
            reach,
            _State(bases, spectra, look),
            kept + math.prod(look.array.shape),
            tuple(limits),
            lambda progress: looked(x, 2 * width, progress, look.passes),
        )

    def ranks(x: Input, target: Target) -> list[tuple[int, ...]]:
        names, where = chosen(x)
        return [target.ranks_of([names[k] for k in where], sizes(x))]

    def fit(x: Input, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        names, where = chosen(x)
        rank = dict(zip(where, choice[0], strict=True))
        if options.weights is not None:
            return weighted(x, options.weights, rank, progress)
        which = Which(options.svd)
        look = state.look if state else sketch(x, rank)
        if look is not None:
            which.used("sketch")
        look = look or load(x)
        progress(0.3)
        bases, spectra = begin(look, rank, state, which, part(progress, 0.3, 0.5))
        bases, trace = improve(look, bases, part(progress, 0.5, 0.9))
        tensor = look.frame.up(build(names, project(look.array, bases), bases))
        named = {names[k]: s for k, s in spectra.items()}
        return finish(x, tensor, named, trace, look, which.names)

    def begin(
        look: _Look, rank: dict[int, int], state: _State | None, which: Which, progress: Progress
    ) -> tuple[Bases, dict[int, np.ndarray]]:
        array = look.array
        if options.init == "random":
            rng = np.random.default_rng(seed_of(options.random_state))
            return random_bases(array, rank, rng), {}
        if isinstance(options.init, Format):
            return format_bases(array, options.init, rank, look.frame), {}
        if state is not None:
            bases, spectra = state.bases, state.spectra
        elif 0 in rank.values() or not options.sequential:
            bases, spectra = bases_of(array, list(rank), progress)
        else:
            bases, spectra = sequential_bases(array, rank, progress, which.basis)
        return {k: leading(u, rank[k]) for k, u in bases.items()}, spectra

    def improve(look: _Look, bases: Bases, progress: Progress):
        return hooi(look.array, bases, options.n_iter_max, options.tol, progress, look.energy)

    def spend(
        x: Input, choice: list[tuple[int, ...]], share: Share, state, progress: Progress
    ) -> Fit:
        if share.lost is None or 0 in choice[0]:
            return fit(x, choice, state, progress)
        names, where = chosen(x)
        rank = dict(zip(where, choice[0], strict=True))
        look = (state.look if state else sketch(x, rank)) or load(x)
        bases, spectra = state[:2] if state else bases_of(look.array, where)
        even = _even(spectra, where, max(0.0, share.lost - look.outside))
        cheaper = _cheaper(choice[0], even, sizes(x), fixed(x))
        bases = {k: bases[k][:, :r] for k, r in zip(where, cheaper, strict=True)}
        bases, trace = improve(look, bases, part(progress, 0.2, 0.7))
        core = project(look.array, bases)
        lost = float(measure(look.array, build(names, core, bases))[0].sum()) + look.outside
        core, bases = trimmed(core, bases, share.lost - lost, x.shape)
        tensor = look.frame.up(build(names, core, bases))
        named = {names[k]: s for k, s in spectra.items()}
        used = "exact" if look.energy is None else "sketch, exact"
        return finish(x, tensor, named, trace, look, used)

    def finish(
        x: Input,
        tensor: Format,
        spectra: dict[str, np.ndarray],
        trace: Trace,
        look: _Look,
        used: str,
    ) -> Fit:
        return make_fit(
            x,
            tensor,
            options.rounding,
            spectra,
            trace,
            seen=(look.array, look.frame),
            in_metric=bool(options.metric),
            svd=used,
            passes=look.passes + 1,
            energies=look.energies,
        )

    def weighted(x: Input, weights: Array, rank: dict[int, int], progress: Progress) -> Fit:
        if isinstance(x, Format):
            raise ArgumentError("weights of the entries need an array or a stack, not a format")
        names, _ = chosen(x)
        entries = checked_weights(weights, x)
        array = observed(x, entries)
        which = Which(options.svd)
        bases, _ = begin(_Look(array, Frame()), rank, None, which, part(progress, 0, 0.2))
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
