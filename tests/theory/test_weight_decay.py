"""The balanced pair decays least."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from theory.weight_decay import balanced, decay


def test_the_balanced_pair_of_a_diagonal_is_exact():
    left, right = balanced(np.diag([9.0, 4.0]), np.eye(2))
    np.testing.assert_array_equal(np.abs(left), np.diag([3.0, 2.0]))
    np.testing.assert_array_equal(left @ right, np.diag([9.0, 4.0]))
    assert decay(left, right) == 13 < decay(np.diag([9.0, 4.0]), np.eye(2)) == 49.5


def test_the_balanced_pair_decays_least(rng):
    b, a = rng.standard_normal((7, 3)), rng.standard_normal((3, 5))
    left, right = balanced(b, a)
    np.testing.assert_allclose(left @ right, b @ a, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(left.T @ left, right @ right.T, rtol=1e-9, atol=1e-9)
    nuclear = np.linalg.norm(b @ a, "nuc")
    assert decay(left, right) == pytest.approx(nuclear)
    for _ in range(20):
        m = rng.standard_normal((3, 3))
        assert decay(b @ m, np.linalg.inv(m) @ a) >= nuclear * (1 - 1e-12)
    fit = td.svd(b @ a, rank=3)
    assert decay(left, right) == pytest.approx(float(np.sum(fit.tensor.s)))
