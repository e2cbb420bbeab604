"""Gradients of weights have the rank of their tokens."""

from __future__ import annotations

import pytest

import tdecomp as td
from tdecomp._plan import contract
from theory.dimensions import generic_dimension
from theory.formulas import at
from theory.modular import rank_modulo
from theory.token_gradients import GRADIENT, rank_bound


@pytest.mark.parametrize("token", [1, 3, 9])
def test_gradients_have_the_rank_of_their_tokens(token, rng):
    sizes = {"out": 6, "in": 5, "token": token}
    arrays = [rng.integers(-99, 99, [sizes[n] for n in term]) for term in GRADIENT.terms]
    g = contract(GRADIENT, arrays)
    assert rank_modulo(g) == at(rank_bound(), sizes)
    assert td.svd(g.astype(float), rank=min(token, 5)).error < 1e-12
    k = min(token, 5)
    assert generic_dimension(GRADIENT, sizes) == k * (6 + 5 - k)
