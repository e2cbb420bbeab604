"""Typical ranks over the reals begin with the one generic rank over the complex numbers."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from theory.border_rank import hyperdeterminant
from theory.dimensions import generic_rank
from theory.typical_ranks import real_typical_ranks, splits_over_reals


@pytest.mark.parametrize("p", range(2, 7))
@pytest.mark.parametrize("q", range(2, 5))
def test_the_smallest_typical_rank_is_the_complex_one(p, q):
    assert min(real_typical_ranks(p, q)) == generic_rank((p, q, 2))


@pytest.mark.parametrize("p", [2, 3])
def test_both_ranks_occur_among_random_tensors(p, rng):
    splits = [splits_over_reals(rng.standard_normal((p, p, 2))) for _ in range(300)]
    share = np.mean(splits)
    assert 0.1 < share < 0.9
    if p == 2:  # π / 4 of all
        assert share == pytest.approx(np.pi / 4, abs=0.1)


def test_two_by_two_splits_where_the_hyperdeterminant_is_positive(rng):
    for _ in range(20):
        x = rng.integers(-9, 10, (2, 2, 2)) + np.arange(8).reshape(2, 2, 2) / 8
        assert splits_over_reals(x) == (hyperdeterminant(x) > 0)


def test_the_core_finds_the_components_of_what_splits(rng):
    tensors = [rng.standard_normal((3, 3, 2)) for _ in range(12)]
    real = next(x for x in tensors if splits_over_reals(x))
    pairs = next(x for x in tensors if not splits_over_reals(x))
    assert td.cp(real, rank=3, init="gevd").error < 1e-6
    assert all(td.cp(pairs, rank=3, init="random", random_state=s).error > 1e-3 for s in range(4))
    assert td.cp(pairs, rank=4, n_iter_max=1000, n_restarts=4).error < 1e-2
