"""How a total error or budget is shared out over the frontiers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

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

    def take(self, rows: np.ndarray) -> _Steps:
        """Some of them."""
        return _Steps(self.unit[rows], self.target[rows], self.params[rows], self.gain[rows])

    def after(self, taken: int) -> tuple[list[int], list[int], list[int]]:
        """Units, targets and numbers of those that follow the first few."""
        rest = self.unit[taken:], self.target[taken:], self.params[taken:]
        return tuple(column.tolist() for column in rest)

    def without(self, units: np.ndarray) -> _Steps:
        """Those of all other units."""
        return self.take(np.flatnonzero(~np.isin(self.unit, units)))


def _steps(frontiers: Sequence[Frontier]) -> _Steps:
    lengths = [len(f.params) for f in frontiers]
    unit = np.repeat(np.arange(len(frontiers)), lengths)
    position = np.arange(len(unit)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    params = np.concatenate([f.params for f in frontiers])
    lost = np.concatenate([f.lost for f in frontiers])
    inside = unit[1:] == unit[:-1]
    steps = _Steps(
        unit[1:][inside], position[1:][inside], np.diff(params)[inside], -np.diff(lost)[inside]
    )
    bent = _bent(steps)
    steps = _joined([steps.without(bent), *(_on_hull(frontiers, unit) for unit in bent)])
    rows = np.lexsort((steps.target, steps.unit))
    return steps.take(rows[np.argsort(-coarse(steps.gain / steps.params)[rows], kind="stable")])


def _bent(steps: _Steps) -> np.ndarray:
    """Units with steps of other lengths, or one that gains more than the one before.

    A spectrum has none: it is its own hull.
    """
    longer = steps.params[1:] != steps.params[:-1]
    better = steps.gain[1:] > steps.gain[:-1]
    return np.unique(steps.unit[1:][(steps.unit[1:] == steps.unit[:-1]) & (longer | better)])


def _joined(parts: Sequence[_Steps]) -> _Steps:
    columns = ([getattr(part, f.name) for part in parts] for f in fields(_Steps))
    return _Steps(*map(np.concatenate, columns))


def _on_hull(frontiers: Sequence[Frontier], unit: int) -> _Steps:
    f = frontiers[unit]
    hull = _hull(f)
    params, gain = np.diff(f.params[hull]), -np.diff(f.lost[hull])
    return _Steps(np.full(len(params), unit), hull[1:], params, gain)


def _hull(f: Frontier) -> np.ndarray:
    """Positions of the lower convex hull of a frontier (Andrew's monotone chain)."""
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
    chosen = np.zeros(len(frontiers), dtype=np.int64)
    alive = [f for f in frontiers if len(f.params) > 1]
    base = sum(int(f.params[0]) for f in frontiers)
    least = base or min((int(f.params[1]) for f in alive), default=0)
    if least > budget:
        raise ArgumentError(
            f"budget {budget} is below rank 1: the smallest possible is {least} numbers"
        )
    if not alive:
        return chosen.tolist()
    steps, left = _steps(frontiers), budget - base
    taken = int(np.searchsorted(np.cumsum(steps.params), left, side="right"))
    chosen[steps.unit[:taken]] = steps.target[:taken]  # of one unit the last
    left -= int(steps.params[:taken].sum())
    closed: set[int] = set()
    for unit, target, params in zip(*steps.after(taken), strict=True):
        if params > left:
            closed.add(unit)
        if unit not in closed:
            chosen[unit] = target
            left -= params
        elif len(closed) == len(frontiers):
            break
    for unit, f in enumerate(frontiers):
        if left == 0:
            break
        better = f.best(int(f.params[chosen[unit]]) + left)
        left -= int(f.params[better] - f.params[chosen[unit]])
        chosen[unit] = better
    return chosen.tolist()


def _for_error(frontiers: Sequence[Frontier], lost: float) -> list[int]:
    chosen = np.zeros(len(frontiers), dtype=np.int64)
    if sum(float(f.lost[0]) for f in frontiers) <= lost:
        return chosen.tolist()
    steps = _steps(frontiers)
    least = math.fsum(float(f.lost[-1]) for f in frontiers)
    left = least + np.append(np.cumsum(steps.gain[::-1])[::-1], 0.0)  # summed from the small end
    taken = int(np.argmax(left <= lost)) if least <= lost else len(steps.gain)
    chosen[steps.unit[:taken]] = steps.target[:taken]  # of one unit the last
    total = math.fsum(float(f.lost[c]) for f, c in zip(frontiers, chosen, strict=True))
    for unit in dict.fromkeys(map(int, steps.unit[:taken][::-1])):
        f = frontiers[unit]
        others = total - float(f.lost[chosen[unit]])
        cheaper = min(f.cheapest(lost - others), int(chosen[unit]))
        total = others + float(f.lost[cheaper])
        chosen[unit] = cheaper
    return chosen.tolist()
