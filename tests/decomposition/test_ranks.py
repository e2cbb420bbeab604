"""The choice of ranks on one core: all boxes, and the boxes near the greedy path beyond 10⁷."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdecomp as td
from tdecomp.ranking import frontier as frontiers_of
from tdecomp.ranking.allocate import allocate
from tests.laws.cases import planted

SHAPES = [(6, 7), (5, 6, 7), (4, 8, 12), (3, 3, 16, 16), (2, 3, 4, 5, 6), (8, 40, 30)]


def squared_core(shape, decay, seed=0) -> np.ndarray:
    x = planted(shape, seed=seed, decay=decay)
    return np.asarray(td.hosvd(x, rank=max(shape)).tensor.core) ** 2


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("fixed", [1, 5])
def test_every_box_states_its_count_and_its_loss(shape, fixed):
    energy = squared_core(shape, 0.7)
    frontier = frontiers_of.box_frontier(energy, shape, fixed, 1e-14)
    for params, lost, ranks in zip(frontier.params, frontier.lost, frontier.ranks, strict=True):
        inside = energy[tuple(slice(r) for r in ranks)].sum() if ranks.all() else 0.0
        assert lost == pytest.approx(energy.sum() - inside, abs=1e-12 * energy.sum())
        expected = fixed * math.prod(ranks) + int(np.dot(ranks, shape)) if ranks.all() else 0
        assert params == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("decay", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_beyond_the_table_the_error_is_within_five_percent(shape, decay, seed, monkeypatch):
    energy = squared_core(shape, decay, seed)
    every = frontiers_of.box_frontier(energy, shape, 1, 1e-14)
    monkeypatch.setattr(frontiers_of, "_TABLE", 0)
    near = frontiers_of.box_frontier(energy, shape, 1, 1e-14)
    for budget in np.linspace(sum(shape) + 1, every.params[-1], 40).astype(int):
        best = every.lost[every.best(budget)]
        if best > 1e-13 * energy.sum():  # sums know no less than 1e-16 of the whole
            assert near.params[near.best(budget)] <= budget
            assert near.lost[near.best(budget)] <= 1.05**2 * best


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 12),
    st.floats(0.01, 0.9),
)
def test_several_matrices_get_the_ranks_of_brute_force(spectra, cost, error):
    """One cost per rank: the global order of the singular values is optimal."""
    frontiers = [frontiers_of.spectrum_frontier(np.sort(s)[::-1], cost, 1e-14) for s in spectra]
    total = sum(float(np.square(s).sum()) for s in spectra)
    chosen = allocate(frontiers, lost=error**2 * total)
    lost = sum(f.lost[c] for f, c in zip(frontiers, chosen, strict=True))
    stored = sum(f.params[c] for f, c in zip(frontiers, chosen, strict=True))
    assert lost <= error**2 * total * (1 + 1e-12)
    best = min(
        sum(f.params[i] for f, i in zip(frontiers, index, strict=True))
        for index in itertools.product(*(range(len(f.lost)) for f in frontiers))
        if sum(f.lost[i] for f, i in zip(frontiers, index, strict=True)) <= error**2 * total
    )
    assert stored == best


@pytest.mark.parametrize("error", [1e-3, 1e-7, 1e-10, 1e-13])
def test_small_errors_are_not_lost_beside_the_whole(error):
    """Tails are summed from their small end: an error of 1e-13 has a square of 1e-26."""
    x = planted((4, 8, 12), decay=0.3)
    fit = td.hosvd(x, error=error)
    assert fit.error <= error
    assert td.svd(x, error=error).error <= error
