"""The W state is a limit of rank 2 and has rank 3; signs decide the rank of small real tensors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import sympy

import tdecomp as td
from theory.border_rank import (
    complex_rank,
    hyperdeterminant,
    real_rank,
    w_components,
    w_sequence,
    w_state,
)
from theory.components import is_exactly, outer_sum

N = sympy.Symbol("n", positive=True)


def test_three_components_of_w():
    assert is_exactly(w_components(), w_state())
    assert real_rank(w_state()) == complex_rank(w_state()) == 3


def test_two_components_go_to_w_and_grow():
    """Exactly: the difference is √3 / n to first order, the components are as large as n."""
    factors = w_sequence(N)
    difference = outer_sum(factors) - w_state()
    assert all(sympy.limit(entry, N, sympy.oo) == 0 for entry in difference.ravel())
    size = sympy.sqrt(sum(sympy.expand(entry) ** 2 for entry in difference.ravel()))
    assert sympy.limit(N * size, N, sympy.oo) == sympy.sqrt(3)
    first = sympy.sqrt(sum(entry**2 for entry in outer_sum([f[:, :1] for f in factors]).ravel()))
    assert sympy.limit(first / N, N, sympy.oo) == 1
    assert complex_rank(outer_sum(w_sequence(sympy.Integer(5)))) == 2


def test_the_core_diverges_on_w():
    """More sweeps, a smaller error, larger components."""
    w = w_state().astype(float)
    fits = [td.cp(w, rank=2, n_iter_max=n, tol=0) for n in (10, 100, 1000)]
    errors = [fit.error for fit in fits]
    sizes = [float(fit.tensor.weights[0]) for fit in fits]
    assert 0 < errors[2] < errors[1] / 2 < errors[0] / 4
    assert sizes[2] > 1.5 * sizes[1] > 2 * sizes[0]
    assert td.cp(w, rank=3).error < 1e-3


def test_the_hyperdeterminant_is_relatively_invariant(rng):
    x = rng.integers(-3, 4, (2, 2, 2))
    for mode in range(3):
        m = rng.integers(-3, 4, (2, 2))
        moved = np.moveaxis(np.tensordot(m, x, axes=(1, mode)), 0, mode)
        determinant = int(round(np.linalg.det(m)))
        assert hyperdeterminant(moved) == determinant**2 * hyperdeterminant(x)
        assert hyperdeterminant(np.moveaxis(x, 0, mode)) == hyperdeterminant(x)


def test_ranks_of_all_tensors_of_zeros_and_ones():
    """The two ranks differ exactly where the hyperdeterminant is negative."""
    found = set()
    for entries in product((0, 1), repeat=8):
        x = np.array(entries).reshape(2, 2, 2)
        real, over_c = real_rank(x), complex_rank(x)
        negative = hyperdeterminant(x) < 0
        assert real - over_c == int(bool(negative))
        found.add((real, over_c))
    assert found == {(0, 0), (1, 1), (2, 2), (3, 3), (3, 2)}


@pytest.mark.parametrize("seed", [0, 1])  # the sign is negative, positive
def test_the_core_finds_rank_two_where_the_sign_says_so(seed):
    x = np.random.default_rng(seed).integers(-9, 10, (2, 2, 2)).astype(float)
    fits = [td.cp(x, rank=2, n_iter_max=500, init="random", random_state=s).error for s in range(4)]
    assert (min(fits) < 1e-4) == (real_rank(x) == 2)
