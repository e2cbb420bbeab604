"""How a total error or budget is shared out over the frontiers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp.errors import ArgumentError
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.rounding import coarse

__all__ = ["allocate"]


def allocate(
    frontiers: Sequence[Frontier], *, budget: int | None = None, lost: float | None = None
) -> list[int]:
    """Position on every frontier, for a total budget or a total squared error.

    Steps along the lower convex hulls of all frontiers are taken in the order of energy per number.
    For a budget, a step that no longer fits closes its unit and what is left goes to the others,
    then to points off the hull; for an error, the last steps are undone where they were not needed.

    Raises
    ------
    ArgumentError
        If the budget is below the smallest rank-1 unit, or below what all units store at least; the
        message gives that minimum.
    """
    if budget is not None:
        return _for_budget(frontiers, budget)
    assert lost is not None
    return _for_error(frontiers, lost)


@dataclass(frozen=True)
class _Steps:
    """All hull steps of all frontiers, best energy per number first."""

    unit: np.ndarray
    target: np.ndarray  # position on the unit's frontier
    params: np.ndarray  # numbers added
    gain: np.ndarray  # energy won


def _steps(frontiers: Sequence[Frontier]) -> _Steps:
    parts: list[tuple[np.ndarray, ...]] = []
    for unit, f in enumerate(frontiers):
        hull = _hull(f)
        params, gain = np.diff(f.params[hull]), -np.diff(f.lost[hull])
        parts.append((np.full(len(params), unit), hull[1:], params, gain))
    unit, target, params, gain = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-coarse(gain / params), kind="stable")
    return _Steps(unit[order], target[order], params[order], gain[order])


def _hull(f: Frontier) -> np.ndarray:
    """Positions of the lower convex hull of a frontier (Andrew's monotone chain)."""
    if len(set(np.diff(f.params).tolist())) == 1 and (np.diff(f.lost, n=2) >= 0).all():
        return np.arange(len(f.params))  # a spectrum: convex already
    x, y = f.params.astype(np.float64).tolist(), f.lost.tolist()
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and _turns_up(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return np.array(hull)


def _turns_up(x: list[float], y: list[float], a: int, b: int, c: int) -> bool:
    return (y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a])


def _for_budget(frontiers: Sequence[Frontier], budget: int) -> list[int]:
    chosen = [0] * len(frontiers)
    alive = [f for f in frontiers if len(f.params) > 1]
    base = sum(int(f.params[0]) for f in frontiers)
    least = base or min((int(f.params[1]) for f in alive), default=0)
    if least > budget:
        raise ArgumentError(
            f"budget {budget} is below rank 1: the smallest possible is {least} numbers"
        )
    if not alive:
        return chosen
    steps, left, closed = _steps(frontiers), budget - base, np.zeros(len(frontiers), dtype=bool)
    taken = int(np.searchsorted(np.cumsum(steps.params), left, side="right"))
    for unit, target in zip(steps.unit[:taken], steps.target[:taken], strict=True):
        chosen[unit] = int(target)
    left -= int(steps.params[:taken].sum())
    for i in range(taken, len(steps.unit)):
        unit = steps.unit[i]
        closed[unit] |= steps.params[i] > left
        if not closed[unit]:
            chosen[unit] = int(steps.target[i])
            left -= int(steps.params[i])
        elif closed.all():
            break
    for unit, f in enumerate(frontiers):
        better = f.best(int(f.params[chosen[unit]]) + left)
        left -= int(f.params[better] - f.params[chosen[unit]])
        chosen[unit] = better
    return chosen


def _for_error(frontiers: Sequence[Frontier], lost: float) -> list[int]:
    chosen = [0] * len(frontiers)
    if sum(float(f.lost[0]) for f in frontiers) <= lost:
        return chosen
    steps = _steps(frontiers)
    least = math.fsum(float(f.lost[-1]) for f in frontiers)
    left = least + np.append(np.cumsum(steps.gain[::-1])[::-1], 0.0)  # summed from the small end
    taken = int(np.argmax(left <= lost)) if least <= lost else len(steps.gain)
    for unit, target in zip(steps.unit[:taken], steps.target[:taken], strict=True):
        chosen[unit] = int(target)
    total = math.fsum(float(f.lost[c]) for f, c in zip(frontiers, chosen, strict=True))
    for unit in dict.fromkeys(map(int, steps.unit[:taken][::-1])):
        f = frontiers[unit]
        others = total - float(f.lost[chosen[unit]])
        cheaper = min(f.cheapest(lost - others), chosen[unit])
        total = others + float(f.lost[cheaper])
        chosen[unit] = cheaper
    return chosen
