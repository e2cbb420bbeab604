"""Maps of a pair's gradients, exact in whole numbers, and what they leave."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from sympy import Matrix, Rational, eye

import tdecomp as td
from tdecomp.errors import ArgumentError
from theory.gradient_maps import change, lora_pro, preconditioned, projections, sylvester, tangent
from theory.gradients import gradients
from theory.residuals import best_bases, tangent_residual

OUT, IN, RANK, SCALE = 5, 4, 2, Rational(3, 2)


@pytest.fixture
def pair(rng):
    shapes = ((OUT, RANK), (RANK, IN), (OUT, IN))
    b, a, g = (Matrix(rng.integers(-5, 6, shape).tolist()) for shape in shapes)
    return b, a, g, SCALE * g * a.T, SCALE * b.T * g


def inner(x, y):
    return (x.T * y).trace()


def test_raw_gradients_are_those_of_the_equation(pair):
    b, a, g, g_b, g_a = (np.array(m, dtype=float) for m in pair)
    found = gradients("out r, r in -> out in", [b, a], float(SCALE) * g)
    np.testing.assert_allclose(found[0], g_b, rtol=1e-12)
    np.testing.assert_allclose(found[1], g_a, rtol=1e-12)


def test_lora_pro_is_the_projection_whatever_its_gauge(pair, rng):
    b, a, g, g_b, g_a = pair
    for x in (None, sylvester(b, a, g_a, SCALE), Matrix(rng.integers(-3, 4, (2, 2)).tolist())):
        step = lora_pro(b, a, g_b, g_a, SCALE, x)
        assert sympy.simplify(change(b, a, step, SCALE) - tangent(b, a, g)) == sympy.zeros(OUT, IN)
    p, q = projections(b, a)
    assert tangent(b, a, g) == p * g + (eye(OUT) - p) * g * q


def test_the_sylvester_equation_is_solved(pair):
    b, a, _, _, g_a = pair
    x = sylvester(b, a, g_a, SCALE)
    right = -(b.T * b).inv() * g_a * a.T / SCALE**2
    assert sympy.simplify(b.T * b * x + x * a * a.T - right) == sympy.zeros(RANK, RANK)


def test_the_sylvester_gauge_is_the_closest_to_the_raw_gradients(pair, rng):
    """Its distance to both raw directions is stationary in every direction of the gauge."""
    b, a, _, g_b, g_a = pair
    step = lora_pro(b, a, g_b, g_a, SCALE, sylvester(b, a, g_a, SCALE))
    raw = {"b": g_b, "a": g_a}
    for _ in range(3):
        y = Matrix(rng.integers(-3, 4, (RANK, RANK)).tolist())
        slope = inner(step.a - raw["a"], y * a) - inner(step.b - raw["b"], b * y)
        assert sympy.simplify(slope) == 0


def test_the_tangent_is_closest_to_the_gradient(pair, rng):
    """What is left is orthogonal to every change that the pair can make."""
    b, a, g, *_ = pair
    left = g - tangent(b, a, g)
    for _ in range(3):
        d_b, d_a = (Matrix(rng.integers(-3, 4, m.shape).tolist()) for m in (b, a))
        assert inner(left, d_b * a + b * d_a) == 0
    p, q = projections(b, a)
    assert left == (eye(OUT) - p) * g * (eye(IN) - q)


def test_preconditioning_is_the_same_for_every_pair_with_one_product(pair):
    b, a, g, *_ = pair
    p, q = projections(b, a)
    for m in (eye(2), Matrix([[2, 1], [0, -3]])):
        here_b, here_a = b * m, m.inv() * a
        step = preconditioned(here_b, here_a, SCALE * g * here_a.T, SCALE * here_b.T * g)
        assert change(here_b, here_a, step, SCALE) == SCALE**2 * (p * g + g * q)


def left_over(g, u, v):
    p, q = u @ np.linalg.pinv(u), v @ np.linalg.pinv(v)
    return np.linalg.norm((np.eye(len(p)) - p) @ g @ (np.eye(len(q)) - q)) ** 2


@pytest.mark.parametrize("rank", [1, 2])
def test_residual_of_a_diagonal_is_exact(rank):
    """In whole numbers: unit vectors as bases."""
    sigma = [7, 5, 3, 2, 1]
    g = Matrix.diag(*sigma)
    p, q = Matrix.zeros(5, 5), Matrix.zeros(5, 5)
    for k in range(rank):
        p[k, k] = q[rank + k, rank + k] = 1
    rest = (eye(5) - p) * g * (eye(5) - q)
    assert inner(rest, rest) == tangent_residual(sigma, rank)


@pytest.mark.parametrize("shape", [(7, 5), (5, 8), (6, 6)], ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_residual_is_reached_and_never_beaten(shape, rank, rng):
    g = rng.standard_normal(shape)
    said = float(tangent_residual(np.linalg.svd(g, compute_uv=False).tolist(), rank))
    assert said == pytest.approx((td.svd(g, rank=2 * rank).error * np.linalg.norm(g)) ** 2)
    assert left_over(g, *best_bases(g, rank)) == pytest.approx(said)
    for _ in range(50):
        u, v = (rng.standard_normal((n, rank)) for n in shape)
        assert left_over(g, u, v) >= said * (1 - 1e-9)


def test_lora_pro_from_the_best_bases_leaves_the_residual(rng):
    g = rng.standard_normal((6, 5))
    u, v = best_bases(g, 2)
    b, a = Matrix(u.tolist()), Matrix(v.T.tolist())
    done = np.array(tangent(b, a, Matrix(g.tolist())), dtype=float)
    s = np.linalg.svd(g, compute_uv=False)
    assert np.linalg.norm(g - done) ** 2 == pytest.approx(np.sum(s[4:] ** 2))


def test_tangents_have_twice_the_rank_and_are_never_nearer_than_the_core(pair):
    b, a, g, *_ = pair
    dense, done = (np.array(m, dtype=float) for m in (g, tangent(b, a, g)))
    assert td.svd(done, rank=2 * RANK).error < 1e-12 < td.svd(done, rank=2 * RANK - 1).error
    sigma = np.linalg.svd(dense, compute_uv=False).tolist()
    assert np.linalg.norm(dense - done) ** 2 >= float(tangent_residual(sigma, RANK)) - 1e-12


def test_a_rank_above_half_the_side_is_refused():
    with pytest.raises(ArgumentError, match="ask for 2 or less"):
        best_bases(np.eye(5), 3)
    assert tangent_residual([3, 2, 1], 2) == 0
