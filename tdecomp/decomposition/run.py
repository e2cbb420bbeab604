"""One way through every decomposition: look at the spectra, choose ranks, fit, check the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from tdecomp._xp import tol
from tdecomp.decomposition.alike import bundles_of, unbundled
from tdecomp.decomposition.fit import Fit, Fits
from tdecomp.decomposition.in_numpy import by_numpy, wants_numpy
from tdecomp.decomposition.method import Analysis, Choice, Method, Share, TooNarrow
from tdecomp.errors import ArgumentError, NotReached
from tdecomp.passes.data import Data
from tdecomp.passes.slices import Input, at_work, check_shape, on_workers
from tdecomp.passes.stream import FIRST_WIDTH
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.allocate import allocate
from tdecomp.ranking.target import Target
from tdecomp.stack import Stack
from tdecomp.tasks import Executor

__all__ = ["run", "run_one"]

_TRIES = 3  # times an error target is tightened because rounding or a cast pushed past it

State = TypeVar("State")


def run_one(
    method: Method[Any],
    x: Input,
    target: Target,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> Fit:
    """`run` of a single input, by the workers of an executor if one is given."""
    try:
        return run(method, on_workers([x], executor), target, progress)[0]
    except NotReached as short:
        if isinstance(short.best, Fits):
            raise NotReached(short.message, short.best[0]) from None
        raise


def run(
    method: Method[Any], xs: Sequence[Input], target: Target, progress: Progress = silent
) -> Fits:
    """Fit every input so that together they meet the target.

    With a rank every input is visited once. With an error or a budget the inputs are visited
    twice, one in memory at a time: first for their frontiers, then for the factors. What the first
    visit can leave for the second is kept as long as it is no larger than the largest input; a
    single input that is loaded whole stays in memory. Small arrays that are alike are one input,
    where the method takes them so.
    """
    if not xs:
        raise ArgumentError("nothing to decompose: no array or stack was given")
    for x in xs:
        check_shape(x)
    if wants_numpy(method, xs):
        return by_numpy(lambda arrays: run(method, arrays, target, progress), xs)
    with at_work(*xs):
        bundles = bundles_of(method, xs)
        data = [bundle.data for bundle in bundles]
        try:
            fits = _Run(method, data, progress, target.rank_max).meet(target)
        except NotReached as short:
            if not isinstance(short.best, Fits):
                raise
            raise NotReached(short.message, unbundled(short.best, bundles)) from None
        return unbundled(fits, bundles)


@dataclass(frozen=True)
class _Run(Generic[State]):
    """A method on its inputs, and the largest rank that it may give any of them."""

    method: Method[State]
    xs: list[Data[Any]]
    progress: Progress
    rank_max: int | None = None

    def meet(self, target: Target) -> Fits:
        target.check_reach(max(max(self.method.cut_sizes(x)) for x in self.xs))
        if target.rank is not None:
            return self._with_ranks(target)
        if target.budget is not None:
            return self._within(self._look(), target.budget)
        assert target.error is not None
        return self._below(self._glance() or self._look(), target.error)

    def _with_ranks(self, target: Target) -> Fits:
        fits, shares = [], self._progress(0, 1)
        choices = [self.method.ranks(x, target) for x in self.xs]
        for x, choice, over in zip(self.xs, choices, shares, strict=True):
            fit = self.method.fit(x, choice, None, over)
            if not target.is_even:
                fit = replace(fit, tensor=self.method.literal(x, target, fit.tensor))
            fits.append(fit)
        return Fits(tuple(fits))

    def _glance(self) -> list[Analysis[State]] | None:
        """What a single input needs for an error, where the method finds its ranks without."""
        analysis = self.method.glance(self.xs[0]) if len(self.xs) == 1 else None
        return None if analysis is None else [analysis]

    def _look(self) -> list[Analysis[State]]:
        room, analyses = max(x.size for x in self.xs), []
        for x, over in zip(self.xs, self._progress(0, 0.5), strict=True):
            analysis = self._capped(self.method.look(x, FIRST_WIDTH, over))
            room -= analysis.state_size
            analyses.append(analysis if room >= 0 else replace(analysis, state=None))
        return analyses

    def _within(self, analyses: list[Analysis[State]], budget: int) -> Fits:
        analyses, chosen = self._allocated(analyses, budget=budget)
        shares = [self._share(params=int(n)) for n in _shares(analyses, chosen, "params", budget)]
        return self._spend(analyses, _choices(analyses, chosen), shares)

    def _below(self, analyses: list[Analysis[State]], error: float) -> Fits:
        least = max(a.floor for a in analyses)
        if error < least:
            raise ArgumentError(
                f"error={error:g} is below {least:g}, what this precision can reach"
            )
        firsts = [float(f.lost[0]) for a in analyses for f in a.frontiers]
        energy = math.fsum(firsts)
        wanted, fits = error, None
        for _ in range(_TRIES):
            # a tail of just that size counts as too much, whatever its rounding
            lost = energy * wanted**2 * (1 - tol("float64", len(firsts)) - least)
            analyses, chosen = self._allocated(analyses, lost=lost)
            shares = [self._share(lost=n) for n in _shares(analyses, chosen, "lost", lost)]
            fits = self._spend(analyses, _choices(analyses, chosen), shares)
            if fits.error <= error:
                return fits
            wanted *= 0.98 * error / fits.error
        if self.rank_max is not None:
            return self._at_most(self.rank_max, error)
        assert fits is not None
        raise ArgumentError(
            f"error={error:g} cannot be met: the factors as stored reach {fits.error:.3g}; "
            "store them in a wider dtype or ask for a larger error"
        )

    def _at_most(self, rank_max: int, error: float) -> Fits:
        """The fit of the largest ranks allowed, which sweeps may bring below the error."""
        reach = max(max(self.method.cut_sizes(x)) for x in self.xs)
        fits = self._with_ranks(Target(rank=min(rank_max, reach)))
        if fits.error <= error:
            return fits
        raise NotReached(
            f"error={error:g} was not reached: the best is {fits.error:.3g} (attribute best);"
            f" raise rank_max={rank_max} or the error",
            fits,
        )

    def _share(self, **of: Any) -> Share:
        return Share(rank_max=self.rank_max, **of)

    def _allocated(
        self, analyses: list[Analysis[State]], **target: Any
    ) -> tuple[list[Analysis[State]], list[int]]:
        """Positions on all frontiers; inputs are looked at again where a sketch was too narrow."""
        analyses = list(analyses)
        while True:
            chosen = allocate([f for a in analyses for f in a.frontiers], **target)
            at, narrow = iter(chosen), []
            for i, analysis in enumerate(analyses):
                if analysis.is_at_limit([next(at) for _ in analysis.frontiers]):
                    narrow.append(i)
            if not narrow:
                return analyses, chosen
            missing = _missing(analyses, target.get("lost", math.inf))
            for i in narrow:
                analyses[i] = self._wider(i, analyses[i], analyses[i].growth(missing[i]))

    def _wider(
        self, i: int, seen: Analysis[State] | TooNarrow, growth: float = 1.0
    ) -> Analysis[State]:
        """A look twice as wide, or as much wider as seems needed.

        Of what is in memory twice that much, because singular values fall. A stack that is read in
        slices would be loaded whole where a sketch is too wide.
        """
        x = self.xs[i]
        most = max(self.method.cut_sizes(x)) if self.rank_max is None else self.rank_max
        needed = math.ceil((1 if isinstance(x.given, Stack) else 2) * growth * seen.width)
        width = max(2 * seen.width, min(needed, most + 1))
        return self._capped(self.method.look(x, width, silent, seen.passes))

    def _capped(self, analysis: Analysis[State]) -> Analysis[State]:
        """Without ranks above the largest allowed."""
        if self.rank_max is None:
            return analysis
        return replace(analysis, frontiers=[f.up_to(self.rank_max) for f in analysis.frontiers])

    def _spend(
        self, analyses: list[Analysis[State]], choices: list[Choice], shares: list[Share]
    ) -> Fits:
        fits = []
        for i, over in enumerate(self._progress(0.5, 1)):
            seen, choice = analyses[i], choices[i]
            while True:
                try:
                    fit = self.method.spend(self.xs[i], choice, shares[i], seen.state, over)
                    break
                except TooNarrow as narrow:
                    seen, choice = self._wider(i, narrow), narrow.choice
            fits.append(fit)
        return Fits(tuple(fits))

    def _progress(self, start: float, stop: float) -> list[Progress]:
        """The stretch from `start` to `stop`, a part for every input by its numbers."""
        sizes = [min(x.size, 10**300) for x in self.xs]  # a format can have more than floats
        weights = np.array(sizes, dtype=np.float64) / max(sizes)
        ends = np.append(0.0, np.cumsum(weights / weights.sum()))
        whole = part(self.progress, start, stop)
        return [part(whole, ends[i], ends[i + 1]) for i in range(len(self.xs))]


def _choices(analyses: list[Analysis[Any]], positions: list[int]) -> list[Choice]:
    """Chosen rank tuples, one list per input."""
    at = iter(positions)
    return [[tuple(f.ranks[next(at)].tolist()) for f in a.frontiers] for a in analyses]


def _missing(analyses: list[Analysis[Any]], lost: float) -> list[float]:
    """How much of a squared error is beyond all that was seen, divided as what is left is."""
    left = [math.fsum(float(f.lost[-1]) for f in a.frontiers) for a in analyses]
    whole = math.fsum(left)
    return [(whole - lost) * of / whole if whole > lost else 0.0 for of in left]


def _shares(
    analyses: list[Analysis[Any]],
    positions: list[int],
    what: Literal["params", "lost"],
    total: float,
) -> list[float]:
    """A total over the inputs, in proportion to what each was allocated."""
    at = iter(positions)
    taken = [sum(float(getattr(f, what)[next(at)]) for f in a.frontiers) for a in analyses]
    whole = sum(taken)
    if len(taken) == 1 or not whole:
        return [total / len(taken)] * len(taken)  # of one input exactly the total
    return [t * (total / whole) for t in taken]
