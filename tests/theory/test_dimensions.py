"""Gauges change no tensor, and what they leave of the numbers is the dimension."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import pytest

import tdecomp as td
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation
from theory.dimensions import (
    DEFECTIVE,
    cp_equation,
    defect,
    dimension,
    gauge_dimension,
    generic_dimension,
    generic_rank,
)
from theory.formulas import at
from theory.modular import PRIME, jacobian, rank_modulo

TUCKER = "a r, b s, c t, r s t -> a b c"
TUCKER2 = "layer r s, out r, in s -> layer out in"
TT = "a r, r b s, s c t, t d -> a b c d"
TREES = [
    pytest.param("a r, r b -> a b", {"a": 5, "b": 4, "r": 2}, id="matrix"),
    pytest.param(TUCKER, {"a": 4, "b": 5, "c": 3, "r": 2, "s": 3, "t": 2}, id="tucker"),
    pytest.param(TUCKER, {"a": 4, "b": 3, "c": 3, "r": 4, "s": 2, "t": 2}, id="tucker_edge"),
    pytest.param(TUCKER2, {"layer": 3, "out": 5, "in": 4, "r": 2, "s": 3}, id="tucker2"),
    pytest.param(TT, {"a": 3, "b": 3, "c": 2, "d": 3, "r": 2, "s": 4, "t": 2}, id="tt"),
    pytest.param("a r, b r, c r -> a b c", {"a": 3, "b": 4, "c": 5, "r": 4}, id="cp"),
    pytest.param("a r, b r, c r, d r -> a b c d", dict.fromkeys("abcdr", 3), id="cp4"),
]


@pytest.mark.parametrize(("text", "sizes"), TREES)
def test_numbers_less_gauge_are_the_rank_of_the_jacobian(text, sizes):
    assert generic_dimension(text, sizes) == at(dimension(text), sizes)


def test_a_rank_that_cannot_be_reached_adds_nothing():
    sizes = {"a": 6, "b": 3, "c": 3, "r": 5, "s": 2, "t": 2}  # r > s t
    assert generic_dimension(TUCKER, sizes) == at(dimension(TUCKER), sizes | {"r": 4})


def test_a_loop_has_a_gauge_of_its_own():
    """Three matrices in a ring: the same multiple of all three identities does nothing."""
    ring = "r a s, s b t, t c r -> a b c"
    with pytest.raises(ArgumentError, match="loop"):
        gauge_dimension(ring)
    sizes = {"a": 6, "b": 6, "c": 6, "r": 2, "s": 2, "t": 2}
    assert generic_dimension(ring, sizes) == 3 * 6 * 4 - (3 * 4 - 1)


def test_formats_keep_their_tensor_under_their_gauge(rng):
    g = {n: rng.standard_normal((n, n)) for n in (2, 3, 4)}
    core, factors = (
        rng.standard_normal((2, 3, 4)),
        [rng.standard_normal((n, r)) for n, r in ((5, 2), (6, 3), (7, 4))],
    )
    moved = np.einsum("abc,xa,yb,zc->xyz", core, *(np.linalg.inv(g[n]) for n in (2, 3, 4)))
    tucker = td.Tucker(("i", "j", "k"), core, tuple(factors))
    again = td.Tucker(tucker.modes, moved, tuple(f @ g[f.shape[1]] for f in factors))
    np.testing.assert_allclose(again.to_dense(), tucker.to_dense(), rtol=1e-9, atol=1e-9)
    assert tucker.n_params - 4 - 9 - 16 == at(
        dimension(TUCKER), {"a": 5, "b": 6, "c": 7, "r": 2, "s": 3, "t": 4}
    )
    cores = [rng.standard_normal(shape) for shape in ((1, 5, 2), (2, 4, 3), (3, 6, 1))]
    left, right = (np.linalg.inv(g[n]) for n in (2, 3))
    turned = [cores[0] @ g[2], np.einsum("ab,bic,cd->aid", left, cores[1], g[3])]
    turned.append(np.tensordot(right, cores[2], axes=1))
    axes = (("i",), ("j",), ("k",))
    train, again = td.TT(axes, tuple(cores)), td.TT(axes, tuple(turned))
    np.testing.assert_allclose(again.to_dense(), train.to_dense(), rtol=1e-9, atol=1e-9)
    scales = np.array([[2.0, 0.5, -1.0], [0.25, 3.0, 2.0]])
    matrices = [rng.standard_normal((n, 3)) for n in (4, 5, 6)]
    cp = td.CP(("i", "j", "k"), np.ones(3), tuple(matrices))
    order = [2, 0, 1]
    scaled = [
        (m * s)[:, order] for m, s in zip(matrices, (*scales, 1 / scales.prod(axis=0)), strict=True)
    ]
    again = td.CP(cp.modes, np.ones(3), tuple(scaled))
    np.testing.assert_allclose(again.to_dense(), cp.to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "rank"), DEFECTIVE)
def test_defective_cases(shape, rank):
    assert defect(shape, rank) >= 1


def test_no_other_small_cp_is_defective():
    """All shapes of three modes up to 4 and ranks up to the generic one."""
    found = {
        (shape, rank)
        for shape in combinations_with_replacement((2, 3, 4), 3)
        for rank in range(2, generic_rank(shape) + 1)
        if defect(shape, rank)
    }
    assert found == {case for case in DEFECTIVE if len(case[0]) == 3 and max(case[0]) <= 4}


def test_matrices_are_defective():
    assert defect((6, 5), 2) == 2 * (6 + 5 - 1) - 2 * (6 + 5 - 2)


def test_rank_modulo_a_prime_is_the_rank(rng):
    for m, n, r in ((6, 9, 4), (9, 6, 6), (5, 5, 0)):
        x = rng.integers(-9, 9, (m, r)) @ rng.integers(-9, 9, (r, n))
        assert rank_modulo(x) == np.linalg.matrix_rank(x)
    assert all(PRIME % k for k in range(2, math.isqrt(PRIME) + 1))


def test_the_jacobian_is_that_of_differences(rng):
    equation = Equation.parse("a r, r b s, s c -> a b c")
    sizes = {"a": 2, "b": 3, "c": 2, "r": 2, "s": 2}
    arrays = [rng.integers(0, 9, [sizes[n] for n in term]) for term in equation.terms]
    rows = []
    for k, array in enumerate(arrays):
        for where in np.ndindex(array.shape):
            moved = array.copy()
            moved[where] += 1
            here = [moved if i == k else a for i, a in enumerate(arrays)]
            change = np.einsum(equation.symbols, *here) - np.einsum(equation.symbols, *arrays)
            rows.append(change.ravel())
    np.testing.assert_array_equal(jacobian(equation, arrays), np.array(rows) % PRIME)


def test_generic_ranks_of_four_modes():
    assert generic_rank((2, 2, 2, 2)) == 4
    assert cp_equation(2).symbols == "ab,cb->ac"
