"""Fits in the metric of the inputs against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from tdecomp import ArgumentError
from tdecomp.adapters import Bound, Grid, bind, method
from tdecomp.starts import fit_row
from tdecomp.starts.metric import damped, fit_in_metric
from tdecomp.statistics import Gradient

SHAPE = (5, 4)


def problem(row: str, rank: int) -> tuple[Bound, list[Gradient], list[np.ndarray]]:
    rng = np.random.default_rng(7)
    bound = bind(method(row), Grid.full(SHAPE, layer=2), rank)
    whole = [Gradient(batches=1, left=None, right=rng.standard_normal(SHAPE)) for _ in range(2)]
    tokens = [rng.standard_normal((9, 4)) * np.array([3, 1, 0.3, 0.1]) for _ in range(2)]
    return bound, whole, [x.T @ x / 9 for x in tokens]


def distance(
    bound: Bound, factors: dict[str, np.ndarray], whole: list[Gradient], moments: list[np.ndarray]
) -> float:
    """``Σ ‖(G - Ĝ) A^½‖²``, by its definition."""
    gaps = [g.whole() - bound.delta(factors, k) / bound.scale() for k, g in enumerate(whole)]
    return sum(float(np.trace(gap @ a @ gap.T)) for gap, a in zip(gaps, moments, strict=True))


@pytest.mark.parametrize(("row", "rank"), [("lora", 1), ("lora", 2), ("lotr", 1), ("lotr", 2)])
def test_no_other_factors_are_nearer(row, rank):
    """From the fit, and from ten random starts, gradient descent finds nothing below it."""
    bound, whole, moments = problem(row, rank)
    spread = [damped(a) for a in moments]
    if row == "lotr":
        spread = [np.mean(spread, axis=0)] * 2
    fit = fit_in_metric(bound, whole, moments)
    found = distance(bound, dict(fit.factors), whole, spread)
    names = list(fit.factors)
    shapes = [fit.factors[n].shape for n in names]
    ends = np.cumsum([np.prod(s) for s in shapes])

    def cost(numbers: np.ndarray) -> float:
        parts = np.split(numbers, ends[:-1])
        return distance(
            bound, {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)},
            whole, spread,
        )  # fmt: skip

    rng = np.random.default_rng(1)
    fitted = np.concatenate([fit.factors[n].ravel() for n in names])
    tries = [fitted, *(rng.standard_normal(ends[-1]) for _ in range(4))]
    best = min(minimize(cost, x, method="BFGS").fun for x in tries)
    assert found <= best * (1 + 1e-3) + 1e-9
    total = sum(np.trace(g.whole() @ a @ g.whole().T) for g, a in zip(whole, spread, strict=True))
    assert fit.error == pytest.approx(np.sqrt(found / total), rel=1e-6)
    plain = distance(bound, dict(fit_row(bound, whole).factors), whole, spread)
    assert found < 0.95 * plain


def test_inputs_that_are_all_alike_change_nothing():
    bound, whole, _ = problem("lotr", 2)
    alike = fit_in_metric(bound, whole, [3 * np.eye(4)] * 2)
    plain = fit_row(bound, whole)
    for k in range(2):
        assert np.allclose(bound.delta(alike.factors, k), bound.delta(plain.factors, k), atol=1e-8)


def test_a_factor_that_is_held_stays_and_the_others_are_nearest():
    bound, whole, moments = problem("lotr", 2)
    names = [o.factor for o in bound.spec.terms[0].operands]
    held = {names[-1]: np.random.default_rng(2).standard_normal(bound.shapes[names[-1]])}
    fit = fit_in_metric(bound, whole, moments, frozen=held)
    assert fit.factors[names[-1]] is held[names[-1]]
    spread = [np.mean([damped(a) for a in moments], axis=0)] * 2
    a, right = spread[0], held[names[-1]]
    left = np.hstack([g.whole() @ a @ right.T for g in whole])  # (out, 2 s): what can be reached
    gram = np.linalg.inv(right @ a @ right.T)
    energy = [g.whole() @ a @ right.T @ np.linalg.cholesky(gram) for g in whole]
    lost = np.linalg.svd(np.hstack(energy), compute_uv=False)[2:]
    total = sum(np.trace(g.whole() @ a @ g.whole().T) for g in whole)
    reached = sum(np.sum(e**2) for e in energy)
    assert left.shape == (5, 4)
    expected = total - reached + np.sum(lost**2)
    assert distance(bound, dict(fit.factors), whole, spread) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("row", ["tt_lora", "lorta"])
def test_rows_without_a_factor_of_whole_inputs_are_refused(row):
    spec = method(row)
    bound = bind(spec, Grid.full((12, 8), layer=2, proj=2, heads=2), 2)
    g = Gradient(batches=1, left=None, right=np.ones((12, 8)))
    if row == "lorta":
        assert fit_in_metric(bound, [g] * 4, [np.eye(8)] * 4).factors
        return
    with pytest.raises(ArgumentError, match="no one factor for whole inputs"):
        fit_in_metric(bound, [g] * 4, [np.eye(8)] * 4)
