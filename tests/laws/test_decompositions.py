"""Laws of every decomposition, with the dense computation as the oracle."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tests.laws.cases import METHODS, SHAPES, every_method, full_rank, planted
from tests.tables import BACKENDS

TARGETS = [{"rank": 2}, {"error": 0.2}, {"error": 1e-3}, {"budget": 40}]


def dense_error(x: np.ndarray, fit: td.Fit) -> float:
    x = x.astype(np.float64)
    return float(np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x))


@pytest.fixture(params=SHAPES, ids=str)
def x(request) -> np.ndarray:
    return planted(request.param)


@every_method()
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_error_is_the_dense_error(method, x, dtype):
    x = x.astype(dtype)
    for target in TARGETS:
        if "budget" in target:
            target = {"budget": max(target["budget"], method.least(x))}
        fit = method(x, **target)
        expected = pytest.approx(dense_error(x, fit), abs=tol(dtype, x.size))
        assert fit.error == expected, target
        assert fit.error_method == "residual"


@every_method()
@pytest.mark.parametrize(
    "errors", [(0.1, 1e-4), pytest.param((0.5, 1e-2), marks=pytest.mark.slow)], ids=str
)
def test_error_target_is_met(method, x, errors):
    for error, dtype in itertools.product(errors, ["float32", "float64"]):
        assert method(x.astype(dtype), error=error).error <= error, dtype


@every_method()
def test_budget_is_kept(method, x):
    least = max(2 * sum(x.shape) + 1, method.least(x))
    for budget in {max(int(share * x.size), least) for share in (0.2, 0.5, 0.9)}:
        assert 0 < method(x, budget=budget).n_params <= budget


@every_method()
def test_more_budget_never_costs_error(method, x):
    start = max(2 * sum(x.shape) + int(np.prod(x.shape[:-2])), method.least(x))
    errors = [method(x, budget=b).error for b in range(start, 3 * x.size + start, x.size // 2 + 1)]
    slack = (
        1e-2 if method.name in ("tucker", "tucker2") else tol("float64", x.size)
    )  # HOOI is local
    assert all(b <= a * (1 + slack) + tol("float64", x.size) for a, b in itertools.pairwise(errors))


@every_method(cp="sweeps end before they are exact")
def test_full_rank_is_exact(method, x):
    fit = method(x, rank=full_rank(method, x.shape))
    np.testing.assert_allclose(fit.tensor.to_dense(), x, atol=tol("float64", x.size))


@every_method(cp="sweeps end before they are exact")
def test_full_rank_is_exact_in_every_library(method, x):
    """Also where an unfolding has fewer columns than the rank asked for."""
    for xp in map(importlib.import_module, BACKENDS):
        fit = method(xp.asarray(x.astype(np.float32)), rank=full_rank(method, x.shape))
        assert fit.error < tol("float32", x.size), xp


@every_method()
def test_input_is_not_modified(method, x):
    before = x.copy()
    x.flags.writeable = False
    method(x, rank=1)
    np.testing.assert_array_equal(x, before)


@every_method()
def test_pairs_reproduce_the_sites(method, x):
    tensor = method(x, rank=2).tensor
    matrices = tensor.to_dense().reshape(-1, *x.shape[-2:])
    for site in range(tensor.n_sites):
        for shared in (False, True) if tensor.shares_in else (False,):
            left, right = tensor.pair(site, shared_in=shared)
            np.testing.assert_allclose(left @ right, matrices[site], atol=tol("float64", x.size))


@every_method()
def test_counts_every_stored_number(method, x):
    tensor = method(x, rank=2).tensor
    assert tensor.n_params == sum(np.asarray(a).size for a in tensor.arrays.values())
    assert tensor.shape == x.shape


@every_method()
def test_same_answer_in_every_library(method, x):
    few = {"n_iter_max": 20} if method.name == "cp" else {}  # sweeps are slow in array_api_strict
    expected = method(x, error=0.3, **few)
    for xp in map(importlib.import_module, BACKENDS):
        array = xp.asarray(x.copy())
        fit = method(array, error=0.3, **few)
        assert all(type(a) is type(array) for a in fit.tensor.arrays.values())
        assert fit.tensor.rank == expected.tensor.rank
        np.testing.assert_allclose(
            to_numpy(fit.tensor.to_dense()), expected.tensor.to_dense(), atol=tol("float64", x.size)
        )


@every_method()
def test_zero_has_error_zero(method, x):
    zero = np.zeros_like(x)
    assert method(zero, rank=1).error == 0
    assert method(zero, error=0.1).n_params == 0
    assert method(zero, budget=100).error == 0


@every_method()
def test_half_precision_is_widened(method, x, rng):
    half = x.astype(np.float16)
    fit = method(half, rank=2)
    assert all(a.dtype == np.float32 for a in fit.tensor.arrays.values())
    assert fit.error == pytest.approx(dense_error(half, fit), abs=tol("float32", x.size))


@every_method(cp="real arrays only", als="real arrays only")
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_input_has_the_dense_error(method, dtype):
    x = (planted((3, 7, 5)) + 1j * planted((3, 7, 5), seed=1)).astype(dtype)
    fit = method(x, error=0.2)
    assert fit.error <= 0.2
    approximation = to_numpy(fit.tensor.to_dense())
    assert approximation.dtype == dtype
    expected = np.linalg.norm(x - approximation) / np.linalg.norm(x)
    assert fit.error == pytest.approx(expected, abs=tol(approximation.real.dtype, x.size))


@every_method(cp="real arrays only", als="real arrays only")
def test_long_double_becomes_double(method):
    """Not single precision, and complex stays complex."""
    x = planted((3, 7, 5))
    assert method(x.astype(np.longdouble), error=1e-12).error <= 1e-12
    z = (x + 1j * planted((3, 7, 5), seed=1)).astype(np.clongdouble)
    fit = method(z, error=1e-12)
    np.testing.assert_allclose(fit.tensor.to_dense(), z.astype(np.complex128), atol=1e-10)


@every_method()
def test_bfloat16_is_widened(method):
    torch = pytest.importorskip("torch")
    x = torch.asarray(planted((3, 8, 6))).to(torch.bfloat16)
    fit = method(x, error=0.1)
    assert all(a.dtype == torch.float32 for a in fit.tensor.arrays.values())


def test_singular_values_of_one_matrix_are_lapacks():
    x = planted((9, 6), decay=0.1).astype(np.float32)
    fit = td.svd(x, rank=3)
    expected = np.linalg.svd(x, compute_uv=False)[:3]
    np.testing.assert_allclose(fit.tensor.s, expected, rtol=tol("float32", x.size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.95), st.integers(0, 99))
def test_one_matrix_gets_the_smallest_rank(rows, columns, error, seed):
    x = planted((rows, columns), seed)
    s = np.linalg.svd(x, compute_uv=False)
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0) / np.sum(s**2))
    smallest = int(np.argmax(tails <= error))
    for name in ("svd", "hosvd", "tucker", "tucker2", "tensor_train", "cp", "als"):
        rank = np.atleast_1d(METHODS[name](x, error=error).tensor.rank)
        assert max(rank) in (smallest, smallest + (abs(tails[smallest] - error) < 1e-9))


def test_a_large_matrix_gets_nearly_the_smallest_rank(rng):
    """Sketched singular values are a little too small, so the error is met a column later."""
    n = 700
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    s = 1 / np.sqrt(1 + np.arange(n) / 40)
    tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0) / np.sum(s**2))
    error = tails[100] * (1 + 1e-6)
    fit = td.svd(((u * s) @ v).astype(np.float32), error=error)
    assert 100 <= fit.tensor.ranks[0] <= 101
    assert fit.error <= error
    assert fit.svd == "svd_settled"


def test_independent_ranks_are_the_best_for_the_budget(rng):
    """Against brute force over all rank tuples."""
    x = rng.standard_normal((3, 4, 3)) * np.array([1.0, 0.3, 0.05])[:, None, None]
    fit = td.svd(x, budget=32)
    tails = [np.append(np.cumsum((np.linalg.svd(m)[1] ** 2)[::-1])[::-1], 0) for m in x]
    best = min(
        sum(t[r] for t, r in zip(tails, ranks, strict=True))
        for ranks in itertools.product(range(4), repeat=3)
        if 8 * sum(ranks) <= 32
    )
    assert fit.residual.sum() == pytest.approx(best, rel=1e-9)


def test_tucker_ranks_are_the_best_of_the_hosvd_core():
    """Against brute force: no box of the HOSVD core is better for the numbers it stores."""
    x = planted((3, 6, 5), decay=0.7)
    budget = 70
    fit = td.hosvd(x, budget=budget)
    best = min(
        td.hosvd(x, rank=ranks).error
        for ranks in itertools.product(*(range(1, n + 1) for n in x.shape))
        if np.prod(ranks) + np.dot(ranks, x.shape) <= budget
    )
    assert fit.error <= best * 1.01


def test_hooi_never_loses_to_hosvd(x):
    start = td.hosvd(x, rank=2)
    fit = td.tucker(x, rank=2)
    assert fit.error <= start.error * (1 + tol("float64", x.size)) + tol("float64", x.size)
    noise = np.sqrt(tol("float64", x.size))  # of an error seen as √(1 − captured)
    assert all(b <= a + noise for a, b in itertools.pairwise(fit.trace.errors))


def test_hooi_agrees_with_tensorly():
    x = planted((4, 7, 6), decay=0.8)
    ours = td.tucker(x, rank=(2, 3, 3), n_iter_max=50, tol=1e-10)
    core, factors = tensorly.decomposition.tucker(x, rank=[2, 3, 3], n_iter_max=200, tol=1e-12)
    theirs = tensorly.tucker_to_tensor((core, factors))
    assert ours.error == pytest.approx(np.linalg.norm(x - theirs) / np.linalg.norm(x), rel=1e-6)


def test_sequential_hosvd_keeps_its_bound(x):
    """At most √d times the best, of which every mode's own tail is a lower bound."""
    rank = tuple(max(1, n // 2) for n in x.shape)
    fit = td.hosvd(x, rank=rank)
    tails = [
        np.linalg.norm(np.linalg.svd(np.moveaxis(x, k, 0).reshape(n, -1), compute_uv=False)[r:])
        for k, (n, r) in enumerate(zip(x.shape, rank, strict=True))
    ]
    assert fit.error * np.linalg.norm(x) <= np.sqrt(np.sum(np.square(tails))) + tol(
        "float64", x.size
    )


def test_a_shared_basis_of_compressed_modes_only():
    x = planted((3, 8, 6))
    fit = td.tucker(x, rank={"in": 2}, modes=["in"], names="layer out in")
    assert fit.tensor.rank == (3, 8, 2)
    assert set(fit.tensor.arrays) == {"factor.in", "core"}


@every_method(mpo="one pair of splits for all stacks")
def test_total_error_over_a_model(method):
    xs = [planted((3, 8, 6)), 1e-3 * planted((2, 5, 7), seed=1), np.zeros((2, 4, 4))]
    fits = method.model(xs, error=0.05)
    residual = sum(np.sum((x - f.tensor.to_dense()) ** 2) for x, f in zip(xs, fits, strict=True))
    total = sum(np.sum(x**2) for x in xs)
    assert fits.error == pytest.approx(np.sqrt(residual / total), abs=1e-12)
    assert fits.error <= 0.05
    assert fits[1].n_params == fits[2].n_params == 0  # not worth a number at this error


@every_method()
def test_a_budget_over_a_model_goes_where_the_energy_is(method):
    xs = [planted((3, 8, 6)), 10 * planted((3, 8, 6), seed=1)]
    budget = 120
    fits = method.model(xs, budget=budget)
    assert fits.n_params <= budget
    alone = [10 * method(xs[1] / 10, budget=budget).residual.sum()]
    assert sum(f.residual.sum() for f in fits) <= alone[0] * 100 + xs[0].size


@every_method()
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_scales_of_float32(method, scale):
    x = planted((3, 8, 6)).astype(np.float32)
    plain, scaled = method(x, rank=2), method(x * np.float32(scale), rank=2)
    assert scaled.error == pytest.approx(plain.error, rel=1e-3)


BAD = [
    ({}, "exactly one"),
    ({"rank": 2, "error": 0.1}, "exactly one"),
    ({"rank": 0}, "1 or more"),
    ({"rank": -3}, "1 or more"),
    ({"rank": 1.5}, "whole number"),
    ({"error": 0.0}, "between 0 and 1"),
    ({"error": 1.5}, "between 0 and 1"),
    ({"error": 1e-9}, "below 1e-06"),
    ({"error": "0.1"}, "between 0 and 1"),
    ({"error": math.nan}, "between 0 and 1"),
    ({"budget": 0}, "positive"),
    ({"budget": math.nan}, "positive"),
    ({"budget": math.inf}, "positive"),
    ({"budget": "100"}, "positive"),
    ({"budget": 3}, "smallest possible is"),
]


@every_method()
def test_bad_targets_are_refused(method):
    for target, text in BAD:
        with pytest.raises(td.ArgumentError, match=text):
            method(planted((3, 8, 6)).astype(np.float32), **target)


@every_method(als="a letter between two terms is cut to what it can use")
def test_a_rank_above_everything_is_refused(method):
    with pytest.raises(td.ArgumentError, match="99"):
        method(planted((3, 8, 6)), rank=99)


BAD_ARRAYS = [
    (np.ones(()), "one or more modes"),
    (np.ones((2, 0, 3)), "none empty"),
    (np.full((2, 3, 3), np.nan), "NaN"),
    (np.array([[1.0, np.inf]]), "Inf"),
    (np.array([["a", "b"]]), "numbers"),
    (np.array([[1.0, None]]), "numbers"),
    (np.ones((2, 3), dtype="timedelta64[s]"), "numbers"),
    (np.ma.masked_array(np.ones((2, 3)), mask=np.eye(2, 3)), "mask"),
]


@every_method()
def test_bad_arrays_are_refused(method):
    for array, text in BAD_ARRAYS:
        with pytest.raises(td.DataError, match=text):
            method(array, error=0.1)


def test_a_vector_is_no_matrix():
    with pytest.raises(td.DataError, match="two or more modes"):
        td.svd(np.ones(3), rank=1)
    with pytest.raises(td.ArgumentError, match="no mode -2"):
        td.tucker2(np.ones(3), rank=1)


@pytest.mark.parametrize(
    ("stacks", "chosen", "text"),
    [
        ([], td.svd, "nothing"),
        (np.ones((2, 3, 4)), td.svd, "list of arrays"),
        ({"a": np.ones((3, 4))}, td.svd, "list of arrays"),
        ([np.ones((3, 4))], [td.svd], "method must be"),
        ([np.ones((3, 4))], "svd", "method must be"),
    ],
)
def test_a_model_is_a_list_and_a_method(stacks, chosen, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.decompose(stacks, chosen, rank=1)


def test_lists_are_refused():
    with pytest.raises(td.DataError, match="list"):
        td.svd([[1.0, 2.0]], rank=1)


def test_an_explicit_rank_above_its_mode_is_refused():
    with pytest.raises(td.ArgumentError, match="rank 9 is above the size 8 of the mode 'out'"):
        td.tucker2(planted((3, 8, 6)), rank=(9, 2), names="layer out in")
