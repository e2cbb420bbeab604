"""One way through every decomposition: look at the spectra, choose ranks, fit, check the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from tdecomp._xp import tol
from tdecomp.decomposition.fit import Fits
from tdecomp.decomposition.method import Analysis, Method, Share
from tdecomp.errors import ArgumentError
from tdecomp.passes.slices import check_shape, in_float64
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.allocate import allocate
from tdecomp.ranking.target import Target

__all__ = ["run"]

_TRIES = 3  # times an error target is tightened because rounding or a cast pushed past it


def run(method: Method, xs: Sequence[Any], target: Target, progress: Progress = silent) -> Fits:
    """Fit every input so that together they meet the target.

    With a rank every input is visited once. With an error or a budget the inputs are visited
    twice, one in memory at a time: first for their frontiers, then for the factors. What the first
    visit can leave for the second is kept as long as it is no larger than the largest input.
    """
    if not xs:
        raise ArgumentError("nothing to decompose: no array or stack was given")
    for x in xs:
        check_shape(x)
    with in_float64(*xs):
        return _run(method, xs, target, progress)


def _run(method: Method, xs: Sequence[Any], target: Target, progress: Progress) -> Fits:
    numbers = [min(math.prod(x.shape), 10**300) for x in xs]  # a format can have more than floats
    weights = np.array(numbers, dtype=np.float64) / max(numbers)
    ends = np.append(0.0, np.cumsum(weights / weights.sum()))

    def each(work: Callable[[int, Progress], Any], over: Progress) -> list[Any]:
        return [work(i, part(over, ends[i], ends[i + 1])) for i in range(len(xs))]

    def fit(choices: list[list[tuple[int, ...]]], states: Sequence[Any], over: Progress) -> Fits:
        return Fits(tuple(each(lambda i, p: method.fit(xs[i], choices[i], states[i], p), over)))

    def spend(
        analyses: list[Analysis], choices: list[list[tuple[int, ...]]], shares: list[Share]
    ) -> Fits:
        states, over, by = [a.state for a in analyses], part(progress, 0.5, 1), method.spend
        if by is None:
            return fit(choices, states, over)
        return Fits(tuple(each(lambda i, p: by(xs[i], choices[i], shares[i], states[i], p), over)))

    target.check_reach(max(max(method.sizes(x)) for x in xs))
    if target.rank is not None:
        return fit([method.ranks(x, target) for x in xs], [None] * len(xs), progress)

    room = max(math.prod(x.shape) for x in xs)

    def analyse(i: int, over: Progress) -> Analysis:
        nonlocal room
        analysis = method.analyse(xs[i], over)
        room -= analysis.state_size
        return analysis if room >= 0 else replace(analysis, state=None)

    return _meet(target, each(analyse, part(progress, 0, 0.5)), spend)


def _meet(
    target: Target,
    analyses: list[Analysis],
    fit: Callable[[list[Analysis], list[list[tuple[int, ...]]], list[Share]], Fits],
) -> Fits:
    if target.budget is not None:
        analyses, chosen = _allocated(analyses, budget=target.budget)
        shares = [Share(params=int(n)) for n in _shares(analyses, chosen, "params", target.budget)]
        return fit(analyses, _choices(analyses, chosen), shares)

    assert target.error is not None
    least = max(a.floor for a in analyses)
    if target.error < least:
        raise ArgumentError(
            f"error={target.error:g} is below {least:g}, what this precision can reach"
        )
    firsts = [float(f.lost[0]) for a in analyses for f in a.frontiers]
    energy = math.fsum(firsts)
    wanted, fits = target.error, None
    for _ in range(_TRIES):
        # a tail of just that size counts as too much, whatever its rounding
        lost = energy * wanted**2 * (1 - tol("float64", len(firsts)) - least)
        analyses, chosen = _allocated(analyses, lost=lost)
        shares = [Share(lost=n) for n in _shares(analyses, chosen, "lost", lost)]
        fits = fit(analyses, _choices(analyses, chosen), shares)
        if fits.error <= target.error:
            return fits
        wanted *= 0.98 * target.error / fits.error
    assert fits is not None
    raise ArgumentError(
        f"error={target.error:g} cannot be met: the factors as stored reach {fits.error:.3g}; "
        "store them in a wider dtype or ask for a larger error"
    )


def _allocated(analyses: list[Analysis], **target: Any) -> tuple[list[Analysis], list[int]]:
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
        for i in narrow:
            wider = analyses[i].wider
            assert wider is not None
            analyses[i] = wider(silent)


def _choices(analyses: list[Analysis], positions: list[int]) -> list[list[tuple[int, ...]]]:
    """Chosen rank tuples, one list per input."""
    at = iter(positions)
    return [[tuple(f.ranks[next(at)].tolist()) for f in a.frontiers] for a in analyses]


def _shares(
    analyses: list[Analysis], positions: list[int], what: Literal["params", "lost"], total: float
) -> list[float]:
    """A total over the inputs, in proportion to what each was allocated."""
    at = iter(positions)
    taken = [sum(float(getattr(f, what)[next(at)]) for f in a.frontiers) for a in analyses]
    scale = total / sum(taken) if sum(taken) > 0 else 0.0
    return [t * scale if scale else total / len(taken) for t in taken]
