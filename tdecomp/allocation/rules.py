"""The ways to share out a budget of numbers over weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tdecomp.allocation.allocation_rule import RankBudget
from tdecomp.allocation.unit import RankUnit
from tdecomp.errors import ArgumentError
from tdecomp.ranking.allocate import allocate
from tdecomp.ranking.frontier import Frontier

__all__ = [
    "energy_of_gradients",
    "energy_of_inputs",
    "energy_of_weights",
    "even_rank",
    "explained_variance",
    "gora_importance",
    "low_feature_norms",
    "uniform",
]

_HALVINGS = 60


def even_rank(units: Sequence[RankUnit], numbers: int) -> int:
    """The largest rank that all can have alike.

    Raises
    ------
    ArgumentError
        Rank 1 of all costs more; says how much.
    """
    rank = 0
    while rank < max(unit.side for unit in units):
        if sum(unit.cost(min(rank + 1, unit.side)) for unit in units) > numbers:
            break
        rank += 1
    if rank == 0:
        least = sum(unit.cost(1) for unit in units)
        raise ArgumentError(
            f"budget={numbers} is less than rank 1 of all {len(units)} weights costs, {least}"
            " numbers"
        )
    return rank


def uniform(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """The largest rank that all can have alike."""
    rank = min(even_rank(units, budget.numbers), budget.rank_max)
    return [min(rank, unit.side) for unit in units]


def energy_of_gradients(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """By energy of the gradients per number, over all weights at once.

    What is held of a gradient is what the loss falls by, to first order, for a step of size 1
    against the fitted gradient: ``⟨G, Ĝ⟩ = ‖Ĝ‖²``.
    """
    return _greedy([u.frontier(u.gradients, budget.rank_max) for u in units], budget)


def energy_of_weights(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """By energy of the weights per number: where a residual start holds most."""
    return _greedy([u.frontier(u.changes, budget.rank_max) for u in units], budget)


def energy_of_inputs(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """By energy of the inputs per number: eigenvalues of their second moments."""
    return _greedy([u.spectrum(_moments(u, budget)[0], budget.rank_max) for u in units], budget)


def explained_variance(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """EVA's: principal directions of the inputs by the share of their own input that they explain.

    The paper counts ranks. Here they cost what they cost, a direction that no longer fits closes
    its weight, and the next one is tried.
    """
    steps = []
    for k, unit in enumerate(units):
        values, total = _moments(unit, budget)
        steps += [(-value / (total or 1.0), k) for value in values[: unit.side]]
    ranks, left, closed = [0] * len(units), budget.numbers, set[int]()
    for _, k in sorted(steps):
        more = units[k].cost(ranks[k] + 1) - units[k].cost(ranks[k])
        if k in closed or more > left:
            closed.add(k)
        else:
            ranks[k], left = ranks[k] + 1, left - more
    return _some(ranks, units, budget)


def gora_importance(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """GoRA's: ``rᵢ √(m + n) = aᵢ ρ Σ √(m + n)`` with importance ``aᵢ ~ mean |W ∘ G|``.

    ρ is the reference rank. It is the largest whose ranks fit the budget: the paper's own may cost
    more than all at the reference rank.
    """
    importance = [float(np.mean(np.abs(u.weight() * u.gradients[0].whole()))) for u in units]
    total = math.fsum(importance)
    if not 0 < total < math.inf:
        raise ArgumentError("the gradients are zero at all weights: nothing tells them apart")
    sides = [math.sqrt(sum(unit.grid.shape)) for unit in units]
    limits = [min(unit.side, budget.rank_max) for unit in units]

    def ranks_at(reference: float) -> list[int]:
        whole = reference * math.fsum(sides)
        each = zip(importance, sides, limits, strict=True)
        return [min(int(round(whole * a / total) // side), limit) for a, side, limit in each]

    return _largest(ranks_at, units, budget)


def low_feature_norms(units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """PLoP's choice: the kinds of modules whose features are short, one rank for all of them.

    The score of a weight is ``‖W x‖`` against that of random x of the same length. Here both are
    root mean squares, from the second moment of the inputs; the authors take means over tokens of
    length 1 and one draw of random tokens.
    """
    scores: dict[str, list[float]] = {}
    for unit in units:
        scores.setdefault(unit.kind, []).append(_feature_norm(unit))
    order = sorted(scores, key=lambda kind: np.mean(scores[kind]))
    chosen = order[: budget.kinds or math.ceil(len(order) / 2)]
    among = [unit for unit in units if unit.kind in chosen]
    rank = min(even_rank(among, budget.numbers), budget.rank_max)
    return [min(rank, unit.side) if unit.kind in chosen else 0 for unit in units]


def _feature_norm(unit: RankUnit) -> float:
    """``√(E ‖W x‖² / E ‖x‖²)`` in units of its value for random x, ``‖W‖ / √in``."""
    w, c = unit.weight(), unit.inputs[0].second_moment()
    seen = float(np.sum((w @ c) * w)) / (float(np.trace(c)) or 1.0)
    return math.sqrt(max(seen, 0.0) / (float(np.sum(w**2)) / w.shape[1] or 1.0))


def _moments(unit: RankUnit, budget: RankBudget) -> tuple[np.ndarray, float]:
    """Leading eigenvalues of the second moment of the inputs, and the sum of all."""
    own = unit.inputs[0]
    most = min(budget.rank_max, own.width if own.whole is not None else own.rank)
    return np.clip(own.principal(most)[0], 0, None), float(own.squares.sum()) / own.tokens


def _greedy(frontiers: Sequence[Frontier], budget: RankBudget) -> list[int]:
    chosen = allocate(frontiers, budget=budget.numbers)
    return [int(f.ranks[k, 0]) for f, k in zip(frontiers, chosen, strict=True)]


def _largest(
    ranks_at: Callable[[float], list[int]], units: Sequence[RankUnit], budget: RankBudget
) -> list[int]:
    """The ranks at the largest reference that fit a budget; they grow with it."""

    def fits(reference: float) -> bool:
        ranks = ranks_at(reference)
        return sum(u.cost(r) for u, r in zip(units, ranks, strict=True)) <= budget.numbers

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):  # until it no longer fits; at the last all weights have their most
        low, high = (high, 2 * high) if fits(high) else (low, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return _some(ranks_at(low), units, budget)


def _some(ranks: list[int], units: Sequence[RankUnit], budget: RankBudget) -> list[int]:
    """The ranks, unless there are none."""
    if not any(ranks):
        least = min(unit.cost(1) for unit in units)
        raise ArgumentError(
            f"budget={budget.numbers} leaves every weight without a rank: rank 1 of one costs"
            f" {least} numbers or more"
        )
    return ranks
