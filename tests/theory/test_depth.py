"""Layers together change their product by the sum of their ranks, and reach the best."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

import tdecomp as td
from theory.depth import rank_bound_of_product, spread_over_layers
from theory.formulas import at
from theory.modular import rank_modulo


def product(weights):
    return reduce(lambda done, w: w @ done, weights)


@pytest.mark.parametrize(("layers", "rank"), [(1, 2), (2, 1), (3, 1), (3, 2), (2, 4)])
def test_ranks_add_up(layers, rank, rng):
    """Exactly, in whole numbers."""
    weights = [rng.integers(-3, 4, (7, 7)) for _ in range(layers)]
    changes = [
        rng.integers(-3, 4, (7, rank)) @ rng.integers(-3, 4, (rank, 7)) for _ in range(layers)
    ]
    moved = product([w + d for w, d in zip(weights, changes, strict=True)])
    said = at(rank_bound_of_product(), {"layer": layers, "r": rank, "out": 7})
    assert rank_modulo(moved - product(weights)) == said


@pytest.mark.parametrize(("layers", "rank"), [(1, 2), (2, 2), (3, 1)])
def test_the_best_of_their_common_rank_is_reached(layers, rank, rng):
    weights = [rng.standard_normal((8, 8)) for _ in range(layers)]
    target = rng.standard_normal((8, 8))
    changed = spread_over_layers(weights, target, rank)
    for w, new in zip(weights, changed, strict=True):
        assert np.linalg.matrix_rank(new - w, tol=1e-8) == rank
    missing = target - product(weights)
    left = target - product(changed)
    best = td.svd(missing, rank=layers * rank)
    assert np.linalg.norm(left) == pytest.approx(best.error * np.linalg.norm(missing))
    s = np.linalg.svd(missing, compute_uv=False)
    assert np.linalg.norm(left, 2) == pytest.approx(s[layers * rank])
