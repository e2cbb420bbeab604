"""Strassen's seven products are a CP decomposition, and the core finds others."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from theory.components import is_exactly
from theory.matrix_products import KNOWN_RANKS, found, matrix_product, strassen


def test_seven_products_are_enough():
    factors = strassen()
    assert {f.shape for f in factors} == {(4, KNOWN_RANKS[2])}
    assert is_exactly(factors, matrix_product(2, 2, 2))


def test_the_tensor_multiplies_matrices(rng):
    a, b = rng.integers(-9, 10, (2, 3)), rng.integers(-9, 10, (3, 4))
    said = np.einsum("abc,a,b->c", matrix_product(2, 3, 4), a.ravel(), b.ravel())
    np.testing.assert_array_equal(said.reshape(4, 2), (a @ b).T)


def test_the_core_keeps_strassen_from_nearby(rng):
    factors = [f + 0.05 * rng.standard_normal(f.shape) for f in strassen()]
    start = td.CP(("a", "b", "c"), np.ones(7), tuple(factors))
    target = matrix_product(2, 2, 2).astype(float)
    assert td.cp(target, rank=7, init=start, n_iter_max=300).error < 1e-3


@pytest.mark.slow
def test_the_core_finds_seven_products_from_random_starts():
    target = matrix_product(2, 2, 2).astype(float)
    assert any(found(target, seed, 2000) for seed in range(20))
