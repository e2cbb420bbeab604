"""Decay and balance, norms and steps, tokens and rank."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._plan import contract
from theory.dimensions import generic_dimension
from theory.formulas import at
from theory.modular import rank_modulo
from theory.steepest import along_entries, along_frobenius, along_spectrum
from theory.token_gradients import GRADIENT, rank_bound
from theory.weight_decay import balanced, decay


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


@pytest.mark.parametrize(
    ("along", "norm"),
    [
        (along_frobenius, np.linalg.norm),
        (along_entries, lambda x: np.abs(x).max()),
        (along_spectrum, lambda x: np.linalg.norm(x, 2)),
    ],
)
def test_no_step_of_size_one_falls_more(along, norm, rng):
    g = rng.standard_normal((6, 4))
    step, fall = along(g)
    assert norm(step) == pytest.approx(1)
    assert -np.sum(g * step) == pytest.approx(fall)
    for _ in range(50):
        other = rng.standard_normal((6, 4))
        assert -np.sum(g * other) <= fall * norm(other) * (1 + 1e-12)


@pytest.mark.parametrize("token", [1, 3, 9])
def test_gradients_have_the_rank_of_their_tokens(token, rng):
    sizes = {"out": 6, "in": 5, "token": token}
    arrays = [rng.integers(-99, 99, [sizes[n] for n in term]) for term in GRADIENT.terms]
    g = contract(GRADIENT, arrays)
    assert rank_modulo(g) == at(rank_bound(), sizes)
    assert td.svd(g.astype(float), rank=min(token, 5)).error < 1e-12
    k = min(token, 5)
    assert generic_dimension(GRADIENT, sizes) == k * (6 + 5 - k)
