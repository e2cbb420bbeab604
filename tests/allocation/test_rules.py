"""Rules of ranks against brute force and the formulas of their papers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tdecomp import ArgumentError
from tdecomp.adapters import Grid, bind, method
from tdecomp.allocation import ALLOCATIONS, RankBudget, RankUnit, allocation_of
from tdecomp.allocation.unit import ladder
from tdecomp.starts import fit_row
from tdecomp.statistics import Gradient, InputStatistics

LORA = method("lora")
KINDS = ("q_proj", "k_proj", "up_proj")


def gradient(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Gradient:
    """Singular values that fall, each by another factor."""
    rank = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in shape)
    s = scale * np.cumprod(rng.uniform(0.3, 1, rank))
    return Gradient(batches=2, left=u * s, right=v.T)


def moments(tokens: np.ndarray) -> InputStatistics:
    return InputStatistics(
        tokens=len(tokens),
        total=tokens.sum(0),
        squares=(tokens**2).sum(0),
        whole=tokens.T @ tokens,
    )


def unit_of(rng: np.random.Generator, k: int, shape: tuple[int, int]) -> RankUnit:
    tokens = rng.standard_normal((40, shape[1])) * rng.uniform(0.2, 2, shape[1])
    weight = rng.standard_normal(shape)
    return RankUnit(
        spec=LORA,
        grid=Grid.full(shape, layer=1, name=f"weight{k}"),
        names=[f"layers.{k}.{KINDS[k % 3]}"],
        gradients=[gradient(rng, shape, 10.0 ** rng.uniform(-1, 1))],
        inputs=[moments(tokens)],
        weights=lambda site: weight,
    )


def units_of(seed: int, shapes: list[tuple[int, int]]) -> list[RankUnit]:
    rng = np.random.default_rng(seed)
    return [unit_of(rng, k, shape) for k, shape in enumerate(shapes)]


SAME = [(5, 4)] * 4
OTHERS = [(5, 4), (9, 6), (4, 4), (7, 3)]


def ranks_by(rule: str, units: list[RankUnit], numbers: int, **options: int) -> list[int]:
    budget = RankBudget(numbers=numbers, **{"rank_max": 99, **options})
    return ALLOCATIONS[rule].make(units, budget)


def cost_of(units: list[RankUnit], ranks: tuple[int, ...] | list[int]) -> int:
    return sum(unit.cost(rank) for unit, rank in zip(units, ranks, strict=True))


def energies(rule: str, unit: RankUnit) -> np.ndarray:
    """Energy of every single rank, by dense linear algebra."""
    if rule == "energy_of_inputs":
        own = unit.inputs[0].second_moment()
        return np.linalg.eigvalsh(own)[::-1][: unit.side]
    whole = unit.gradients[0].whole() if rule == "energy" else unit.weight()
    return np.linalg.svd(whole, compute_uv=False) ** 2


ENERGY = ("energy", "energy_of_weights", "energy_of_inputs")


@pytest.mark.parametrize("rule", ENERGY)
@pytest.mark.parametrize("shapes", [SAME, OTHERS], ids=["same", "others"])
@pytest.mark.parametrize("numbers", [9, 40, 77])
def test_energy_is_that_of_the_best_ranks_of_all(rule, shapes, numbers):
    """Where all ranks cost alike; else the best holds at most one more rank of one weight."""
    units = units_of(3, shapes)
    ranks = ranks_by(rule, units, numbers)
    spectra = [energies(rule, unit) for unit in units]
    held = lambda ranks: sum(s[:r].sum() for s, r in zip(spectra, ranks, strict=True))
    tried = itertools.product(*(range(unit.side + 1) for unit in units))
    best = max(held(other) for other in tried if cost_of(units, other) <= numbers)
    assert cost_of(units, ranks) <= numbers
    next_ones = [s[r] for s, r in zip(spectra, ranks, strict=True) if r < len(s)]
    allowed = 0 if shapes is SAME else max(next_ones, default=0)
    assert held(ranks) >= best * (1 - 1e-12) - allowed


@pytest.mark.parametrize("numbers", [60, 100, 150])
def test_groups_that_share_factors_get_what_their_fit_holds(numbers):
    """Two stacks of LoTR, of one rank each: no pair of ranks that are tried holds more."""
    rng = np.random.default_rng(0)
    units = [
        RankUnit(
            spec=method("lotr"),
            grid=Grid.full((8, 7), layer=3, name=f"stack{k}"),
            names=[f"layers.{layer}.{KINDS[k]}" for layer in range(3)],
            gradients=[gradient(rng, (8, 7), 3.0**k) for _ in range(3)],
        )
        for k in range(2)
    ]
    held = []
    for unit in units:
        total = sum(g.norm() ** 2 for g in unit.gradients)
        fits = [fit_row(bind(unit.spec, unit.grid, r), unit.gradients) for r in range(1, 8)]
        held.append([0.0] + [total * (1 - fit.error**2) for fit in fits])
    ranks = ranks_by("energy", units, numbers, rank_max=7)
    assert cost_of(units, ranks) <= numbers
    of = lambda a, b: held[0][a] + held[1][b]
    pairs = [p for p in itertools.product(range(8), repeat=2) if cost_of(units, p) <= numbers]
    steps = [h[r + 1] - h[r] for h, r in zip(held, ranks, strict=True) if r < 7]
    assert of(*ranks) >= max(of(*p) for p in pairs) - max(steps, default=0)


def test_ranks_that_are_tried_of_a_group():
    assert ladder(1) == [1]
    assert ladder(5) == [1, 2, 3, 4, 5]
    assert ladder(30) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 30]


@pytest.mark.parametrize("total", [3, 7, 16])
def test_eva_takes_the_largest_shares_of_all(total):
    units = units_of(1, SAME)
    ranks = ranks_by("eva", units, 9 * total)
    assert sum(ranks) == total
    shares = []
    for k, unit in enumerate(units):
        values = np.linalg.eigvalsh(unit.inputs[0].whole)[::-1]
        shares += [(value / values.sum(), k) for value in values[: unit.side]]
    chosen = [k for _, k in sorted(shares)[::-1][:total]]
    assert ranks == [chosen.count(k) for k in range(4)]
    assert max(ranks_by("eva", units, 9 * total, rank_max=2)) <= 2


@pytest.mark.parametrize("numbers", [80, 150])
def test_gora_shares_out_by_importance(numbers):
    """``rᵢ √(m + n) / Σ`` as the paper has it, at the largest reference rank that fits."""
    units = units_of(2, OTHERS)
    ranks = ranks_by("gora", units, numbers)
    assert cost_of(units, ranks) <= numbers
    importance = np.array([np.abs(u.weight() * u.gradients[0].whole()).mean() for u in units])
    sides = np.array([math.sqrt(sum(u.grid.shape)) for u in units])

    def at(reference: float) -> list[int]:
        smooth = np.round(reference * sides.sum() * importance / importance.sum())
        return [min(int(n // s), u.side) for n, s, u in zip(smooth, sides, units, strict=True)]

    grid = [
        reference
        for reference in np.arange(0, 99, 1e-2)
        if cost_of(units, at(reference)) <= numbers
    ]
    assert ranks == at(grid[-1])
    assert grid[-1] < 98


def test_plop_takes_the_kinds_with_short_features():
    units = units_of(4, [(5, 4)] * 6)
    rng = np.random.default_rng(4)
    scores: dict[str, list[float]] = {}
    loud = []
    for unit in units:
        tokens = rng.standard_normal((40, 4)) * rng.uniform(0.2, 2, 4)
        w = unit.weight()
        lengths = np.sum((tokens @ w.T) ** 2) / np.sum(tokens**2)
        scores.setdefault(unit.kind, []).append(math.sqrt(lengths / (np.sum(w**2) / 4)))
        loud.append(replace(unit, inputs=[moments(tokens)]))
    order = sorted(scores, key=lambda kind: float(np.mean(scores[kind])))
    for kinds, numbers, rank in ((1, 60, 3), (2, 80, 2)):
        ranks = ranks_by("plop", loud, numbers, kinds=kinds)
        assert ranks == [rank if unit.kind in order[:kinds] else 0 for unit in loud]
    assert ranks_by("plop", loud, 80) == ranks_by("plop", loud, 80, kinds=2)


def test_uniform_is_the_largest_rank_that_fits():
    units = units_of(5, OTHERS)
    one = cost_of(units, [1] * 4)
    assert ranks_by("uniform", units, one) == ranks_by("uniform", units, 2 * one - 1) == [1] * 4
    assert ranks_by("uniform", units, 10**6) == [4, 6, 4, 3]
    assert ranks_by("uniform", units, 10**6, rank_max=4) == [4, 4, 4, 3]


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_a_budget_below_rank_one_is_refused_with_what_it_takes(rule):
    units = units_of(6, OTHERS)
    with pytest.raises(ArgumentError, match=r"\d+ numbers"):
        ranks_by(rule, units, 5)


def test_rules_of_single_weights_refuse_groups_and_names_are_suggested():
    group = RankUnit(spec=method("lotr"), grid=Grid.full((4, 4), layer=2), names=["a", "b"])
    for name, rule in ALLOCATIONS.items():
        if rule.alone:
            with pytest.raises(ArgumentError, match="shares its own over weights"):
                rule.check(name, [group])
        else:
            rule.check(name, [group])
    with pytest.raises(ArgumentError, match="did you mean 'energy'"):
        allocation_of("enrgy")
    zero = Gradient(batches=1, left=None, right=np.zeros((5, 4)))
    units = [replace(unit, gradients=[zero]) for unit in units_of(0, SAME)]
    with pytest.raises(ArgumentError, match="the gradients are zero"):
        ranks_by("gora", units, 90)
