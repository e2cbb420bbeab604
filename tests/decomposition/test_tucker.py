"""What Tucker, Tucker2, HOSVD and SVD add to the laws: metrics, masks, starts, formats as input."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdecomp as td
from tdecomp import linalg
from tdecomp._xp import to_numpy, tol
from tdecomp.passes import residual
from tests.formats.cases import CASES, dense
from tests.laws.cases import SHAPES, planted
from tests.tables import each

TUCKERS = {"hosvd": td.hosvd, "tucker": td.tucker, "tucker2": td.tucker2}


@pytest.fixture(params=TUCKERS.values(), ids=TUCKERS.keys())
def method(request):
    return request.param


def low_rank(shape, rank, seed=0) -> np.ndarray:
    """A tensor of the given multilinear rank."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(rank)
    for k, n in enumerate(shape):
        basis = rng.standard_normal((n, rank[k]))
        x = np.moveaxis(np.tensordot(basis, x, axes=(1, k)), 0, k)
    return x


def covariance(n: int, seed: int = 0, rank: int | None = None) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, rank or 2 * n))
    return rows @ rows.T * np.logspace(0, -2, n) * np.logspace(0, -2, n)[:, None]


def root(c: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(c)
    return vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T


def in_metric(x: np.ndarray, metric) -> np.ndarray:
    for k, c in metric.items():
        x = np.moveaxis(np.tensordot(root(c), x, axes=(1, k)), 0, k)
    return x


# --- ranks for an error ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 2], ids=str)
@pytest.mark.parametrize("error", [0.5, 0.2, 0.03])
def test_no_mode_can_be_cut_by_one(method, shape, error):
    x = planted(shape, decay=0.7)
    tensor = method(x, error=error).tensor.to_network()
    core = td.formats.to_tucker(tensor)
    for k, r in enumerate(core.rank):
        tucker = method is not td.tucker2 or k >= len(shape) - 2
        if r > 1 and tucker:
            s = np.linalg.svd(np.moveaxis(core.core, k, 0).reshape(r, -1), compute_uv=False)
            least = s[-1] ** 2 if len(s) == r else 0.0
            left = np.sum((x - dense(tensor)) ** 2) + least
            assert left > error**2 * np.sum(x**2) * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(2, 5), st.floats(0.02, 0.8))
def test_never_more_numbers_than_the_even_rule(a, b, c, error):
    x = planted((c, a, b), seed=a * b, decay=0.6)
    ranks = []
    for k, n in enumerate(x.shape):
        s = np.linalg.svd(np.moveaxis(x, k, 0).reshape(n, -1), compute_uv=False)
        tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0)
        ranks.append(max(1, int(np.argmax(tails <= error**2 / 3 * np.sum(x**2)))))
    even = math.prod(ranks) + int(np.dot(ranks, x.shape))
    for method in (td.tucker, td.hosvd):
        assert method(x, error=error).n_params <= even


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 4, 3, 5)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_a_budget_is_spent_as_brute_force_would_on_the_same_core(shape, share):
    x = planted(shape, decay=0.7)
    budget = int(share * x.size) + sum(shape) + 1
    full = td.hosvd(x, rank=max(shape))
    core = np.asarray(td.hosvd(x, error=1e-12).tensor.core)
    boxes = itertools.product(*(range(1, n + 1) for n in core.shape))
    kept = max(
        np.sum(core[tuple(slice(r) for r in box)] ** 2)
        for box in boxes
        if math.prod(box) + np.dot(box, shape) <= budget
    )
    fit = td.hosvd(x, budget=budget)
    assert full.error < 1e-12
    assert fit.n_params <= budget
    expected = math.sqrt(max(0, np.sum(x**2) - kept) / np.sum(x**2))
    assert fit.error == pytest.approx(expected, rel=1e-6, abs=1e-8)


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 6), (3, 7, 6), (2, 3, 6, 5)], ids=str)
@pytest.mark.parametrize("which", [(-1,), (-2,), (-2, -1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_is_the_one_in_the_metric(method, shape, which, dtype):
    x = planted(shape, decay=0.8).astype(dtype)
    metric = {k % x.ndim: covariance(shape[k], seed=k % 5) for k in which}
    fit = method(x, rank=2, metric={k: c.astype(dtype) for k, c in metric.items()})
    rest = x.astype(np.float64) - dense(fit.tensor)
    seen, all_of_it = in_metric(rest, metric), in_metric(x.astype(np.float64), metric)
    slack = 100 * tol(dtype, x.size)
    assert fit.error == pytest.approx(np.linalg.norm(seen) / np.linalg.norm(all_of_it), abs=slack)
    assert fit.error_plain == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(x), abs=slack)
    assert fit.tensor.to_dense().dtype == x.dtype


def test_one_matrix_in_a_metric_is_the_svd_of_its_image(rng):
    """Data-aware SVD of W on inputs of covariance C, against numpy's SVD of W C^½."""
    w, c = rng.standard_normal((8, 6)), covariance(6)
    s = np.linalg.svd(w @ root(c), compute_uv=False)
    expected = math.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2))
    for method in (td.svd, td.hosvd, td.tucker):
        fit = method(w, rank=2, names="out in", metric={"in": c})
        assert fit.error == pytest.approx(expected, rel=1e-9)
        assert fit.error_plain > td.svd(w, rank=2).error


def test_the_metric_wins_in_its_own_norm(method):
    x = planted((3, 9, 8), decay=0.9)
    metric = {2: covariance(8)}
    aware, plain = method(x, rank=3, metric=metric), method(x, rank=3)
    rest = in_metric(x - dense(plain.tensor), metric)
    assert aware.error < np.linalg.norm(rest) / np.linalg.norm(in_metric(x, metric))
    assert plain.error < aware.error_plain
    assert plain.error_plain is None


def test_a_metric_of_ones_changes_nothing(method):
    x = planted((3, 7, 6), decay=0.8)
    plain, same = method(x, rank=2), method(x, rank=2, metric={2: np.eye(6)})
    np.testing.assert_allclose(dense(same.tensor), dense(plain.tensor), atol=1e-9)
    assert same.error == pytest.approx(same.error_plain, rel=1e-12)


@pytest.mark.parametrize("target", [{"error": 0.1}, {"error": 0.01}, {"budget": 60}], ids=str)
def test_targets_hold_in_a_metric(method, target):
    x = planted((3, 7, 6), decay=0.8)
    fit = method(x, metric={1: covariance(7), 2: covariance(6)}, **target)
    assert fit.error <= target.get("error", 1)
    assert fit.n_params <= target.get("budget", x.size * 2)


def test_a_singular_metric_gets_a_ridge(method):
    """Directions that no input has cost next to nothing."""
    x = planted((3, 7, 6), decay=0.9)
    c = covariance(6, rank=2)
    fit = method(x, rank={"in": 2} if method is not td.tucker2 else (7, 2), names="l out in",
                 metric={"in": c})  # fmt: skip
    assert fit.error < 1e-2
    assert np.isfinite(dense(fit.tensor)).all()
    assert fit.error_plain > 0.01


def test_a_metric_in_a_mode_that_is_not_compressed():
    x = planted((4, 6, 5), decay=0.8)
    c = np.diag([1.0, 4.0, 9.0, 16.0])
    fit = td.tucker2(x, rank=2, metric={0: c})
    scaled = td.tucker2(x * np.sqrt(np.diag(c))[:, None, None], rank=2)
    assert fit.error == pytest.approx(scaled.error, rel=1e-9)


BAD_METRICS = [
    ({"inn": np.eye(6)}, "no mode 'inn'"),
    ({"in": np.eye(5)}, "shape"),
    ({"in": np.triu(np.ones((6, 6)))}, "symmetric"),
    ({"in": -np.eye(6)}, "positive semidefinite"),
    ({"in": np.zeros((6, 6))}, "not zero"),
    ({"in": np.full((6, 6), np.nan)}, "finite"),
    ({"in": 1j * np.eye(6)}, "real"),
    (np.eye(6), "for each of some modes"),
]


@pytest.mark.parametrize(("metric", "text"), BAD_METRICS, ids=[t for _, t in BAD_METRICS])
def test_bad_metrics_are_refused(metric, text):
    for method in (td.svd, *TUCKERS.values()):
        with pytest.raises(td.ArgumentError, match=text):
            method(planted((3, 7, 6)), rank=2, names="layer out in", metric=metric)


def test_svd_takes_no_metric_for_a_site_mode():
    with pytest.raises(td.ArgumentError, match="matrix modes"):
        td.svd(planted((3, 7, 6)), rank=2, metric={0: np.eye(3)})


def test_a_metric_in_every_library(method, xp):
    x = planted((3, 7, 6), decay=0.8)
    fit = method(xp.asarray(x), rank=2, metric={2: xp.asarray(covariance(6))})
    expected = method(x, rank=2, metric={2: covariance(6)})
    assert fit.error == pytest.approx(expected.error, rel=1e-9)
    assert all(type(a) is type(xp.asarray(x)) for a in fit.tensor.arrays.values())


# --- masks and weights of the entries -------------------------------------------------------------

MASKED = {"tucker": td.tucker, "tucker2": td.tucker2}


@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED.keys())
def test_missing_entries_are_found_again(masked, rng):
    x = low_rank((6, 12, 10), (2, 2, 2))
    mask = rng.random(x.shape) < 0.7
    hidden = np.where(mask, x, np.nan)
    fit = masked(hidden, rank=2, weights=mask, n_iter_max=500, tol=1e-10)
    assert fit.error < 1e-6
    assert np.linalg.norm(x - dense(fit.tensor)) < 1e-4 * np.linalg.norm(x)


@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED.keys())
def test_the_weighted_error_never_rises_and_is_true(masked, rng):
    x = planted((4, 7, 6), decay=0.8)
    weights = rng.random(x.shape)
    fit = masked(x, rank=2, weights=weights, n_iter_max=40, tol=0)
    errors = fit.trace.errors
    assert all(b <= a for a, b in itertools.pairwise(errors))
    rest = np.sqrt(weights) * (x - dense(fit.tensor))
    expected = np.linalg.norm(rest) / np.linalg.norm(np.sqrt(weights) * x)
    assert fit.error == pytest.approx(expected, rel=1e-9)
    assert fit.error == pytest.approx(errors[-1], rel=1e-9)
    start = masked(x, rank=2, weights=weights, n_iter_max=1)
    assert fit.error < start.error


def test_weights_of_one_are_no_weights():
    x = planted((4, 7, 6), decay=0.8)
    plain = td.tucker(x, rank=2, n_iter_max=50, tol=0)
    fit = td.tucker(x, rank=2, weights=np.ones(x.shape), n_iter_max=50, tol=0)
    assert fit.error == pytest.approx(plain.error, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2, "weights": np.ones((3, 7, 5))}, "shape"),
        ({"rank": 2, "weights": -np.ones((3, 7, 6))}, "0 or more"),
        ({"rank": 2, "weights": np.zeros((3, 7, 6))}, "not all 0"),
        ({"rank": 2, "weights": np.ones((3, 7, 6), dtype=complex)}, "real"),
        ({"error": 0.1, "weights": np.ones((3, 7, 6))}, "need rank="),
        ({"rank": 2, "weights": np.ones((3, 7, 6)), "metric": {2: np.eye(6)}}, "combined"),
        ({"rank": 2, "init": "hosvdd"}, "hosvdd"),
        ({"error": 0.1, "init": "random"}, "needs rank="),
        ({"rank": 2, "n_iter_max": -1}, "0 or more"),
        ({"rank": 2, "n_iter_max": 2.5}, "whole number"),
        ({"rank": 2, "tol": None}, "number"),
        ({"rank": 2, "init": np.ones(3)}, "must be 'hosvd'"),
        ({"rank": 2, "init": "random", "random_state": -1}, "random_state"),
        ({"rank": 2, "init": "random", "random_state": "seed"}, "random_state"),
        ({"rank": 2, "modes": []}, "one mode or more"),
        ({"rank": {0: 1, "in": 2}}, "rank names 0"),
    ],
)
def test_contradictory_options_are_refused(options, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.tucker(planted((3, 7, 6)), **options)


# --- starts and SVDs ------------------------------------------------------------------------------


def test_every_start_reaches_the_same_error():
    x = low_rank((5, 8, 7), (2, 2, 2)) + 0.01 * planted((5, 8, 7), seed=3)
    options = {"rank": 2, "n_iter_max": 100, "tol": 1e-12}
    expected = td.tucker(x, **options)
    starts = [
        "random",
        expected.tensor,
        td.tensor_train(x, rank=1).tensor,
        td.svd(x, rank=2).tensor,
    ]
    for init in starts:
        fit = td.tucker(x, init=init, **options)
        assert fit.error == pytest.approx(expected.error, rel=1e-6)
        assert fit.tensor.rank == (2, 2, 2)


def test_a_start_is_not_modified_and_sweeps_begin_there():
    x = planted((5, 8, 7), decay=0.8)
    start = td.tucker(x, rank=3, n_iter_max=100, tol=1e-14)
    before = {k: a.copy() for k, a in start.tensor.arrays.items()}
    fit = td.tucker(x, rank=3, init=start.tensor, n_iter_max=0)
    assert fit.error == pytest.approx(start.error, rel=1e-9)
    assert all((start.tensor.arrays[k] == a).all() for k, a in before.items())
    again = td.tucker(x, rank=3, init="random", random_state=1)
    assert again.error == td.tucker(x, rank=3, init="random", random_state=1).error


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 2], ids=str)
def test_hosvd_without_sequential_truncation_is_the_classical_one(shape):
    x = planted(shape, decay=0.8)
    core = x
    for k, n in enumerate(shape):
        u = np.linalg.svd(np.moveaxis(x, k, 0).reshape(n, -1), full_matrices=False)[0][:, :2]
        core = np.moveaxis(np.tensordot(u @ u.T, core, axes=(1, k)), 0, k)
    fit = td.hosvd(x, rank=min(2, max(shape)), sequential=False)
    np.testing.assert_allclose(dense(fit.tensor), core, atol=1e-12)


SVDS = {
    "svd_full": linalg.svd_full,
    "svd_gram": linalg.svd_gram,
    "svd_qr": linalg.svd_qr,
    "svd_randomized": partial(linalg.svd_randomized, n_power_iter=3),
    "svd_auto": linalg.svd_auto,
}


@pytest.mark.parametrize("name", SVDS)
@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values()])
def test_the_fit_says_which_svd_it_used(method, name):
    x = low_rank((3, 14, 12), (2, 3, 3)) + 1e-3 * planted((3, 14, 12))
    fit, exact = method(x, rank=3, svd=SVDS[name]), method(x, rank=3)
    assert (fit.svd, exact.svd) == (name, "exact")
    assert fit.error == pytest.approx(exact.error, rel=1e-2)


def test_large_matrices_are_sketched_unless_told_otherwise(rng):
    x = rng.standard_normal((3000, 12)) @ rng.standard_normal((12, 600)) * 1.0
    x += 1e-3 * rng.standard_normal(x.shape)
    sketched = td.svd(x.astype(np.float32), rank=12)
    exact = td.svd(x.astype(np.float32), rank=12, svd=linalg.svd_gram)
    assert (sketched.svd, exact.svd) == ("svd_settled", "svd_gram")
    assert sketched.error <= 1.001 * exact.error


# --- formats as input -----------------------------------------------------------------------------

ROUNDED = [c for c in CASES if len(c.shape) > 1]


@each("fmt", ROUNDED)
@each("target", [{"rank": 2}, {"error": 0.3}, {"budget": 90}])
@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values()])
def test_a_format_is_decomposed_as_its_dense_tensor(method, fmt, target):
    """Recompression and inexact conversion: the same answer, without forming the tensor."""
    if method is td.svd and "rank" in target and min(fmt.shape[-2:]) < 2:
        return  # no rank 2
    x = dense(fmt)
    fit, expected = method(fmt, **target), method(x, names=_names(fmt), **target)
    assert fit.tensor.modes == fmt.modes
    true = np.linalg.norm(x - dense(fit.tensor)) / np.linalg.norm(x)
    assert fit.error == pytest.approx(true, abs=tol("float64", x.size) * 10)
    assert fit.error <= target.get("error", math.inf)
    assert fit.n_params <= target.get("budget", math.inf)
    slack = 1e-9 if method is td.svd else 0.05  # the order of the modes may differ
    if "error" not in target:
        assert fit.error <= expected.error * (1 + slack) + 1e-9
    else:
        assert fit.n_params <= expected.n_params * (1 + slack)
    assert fit.error_method == "coordinates"


def _names(fmt) -> list[str]:
    return list(fmt.modes)


def test_rounding_a_sum_gives_the_rank_back():
    fit = td.tucker(low_rank((4, 8, 7), (2, 3, 2)), rank=(2, 3, 2))
    twice = fit.tensor + fit.tensor
    assert twice.rank == (4, 6, 4)
    again = td.tucker(twice, error=1e-9)
    assert again.tensor.rank == (2, 3, 2)
    assert again.error < 1e-9


def test_a_format_far_too_large_to_form(rng):
    """Eight modes of 10⁵: 10⁴⁰ entries."""
    modes = tuple(f"m{k}" for k in range(8))
    cp = td.CP(modes, np.ones(2), tuple(rng.standard_normal((100_000, 2)) for _ in modes))
    fit = td.hosvd(cp, error=1e-6)
    assert fit.tensor.rank == (2,) * 8
    assert fit.error < 1e-6


def test_rounding_of_storage_needs_an_array():
    tensor = td.tucker(planted((3, 7, 6)), rank=2).tensor
    for method in (td.svd, td.tucker):
        with pytest.raises(td.ArgumentError, match="format"):
            method(tensor, rank=1, rounding=lambda a: a)


@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values()])
def test_a_format_in_a_metric(method):
    x = planted((3, 7, 6), decay=0.8)
    exact = td.tucker(x, error=1e-12).tensor
    metric = {2: covariance(6)}
    fit, expected = method(exact, rank=2, metric=metric), method(x, rank=2, metric=metric)
    assert fit.error == pytest.approx(expected.error, rel=1e-5)
    plain = np.linalg.norm(x - dense(fit.tensor)) / np.linalg.norm(x)
    assert fit.error_plain == pytest.approx(plain, rel=1e-9)
    assert method(exact, rank=2).error_plain is None


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [td.hosvd, td.tucker])
def test_one_mode(method):
    x = np.array([3.0, 0.0, 4.0])
    for target in ({"rank": 1}, {"error": 0.1}, {"budget": 4}):
        fit = method(x, **target)
        np.testing.assert_allclose(dense(fit.tensor), x, atol=1e-14)
        assert fit.error < 1e-14


@pytest.mark.parametrize("target", [{"rank": 1}, {"rank": 2}, {"error": 1e-6}], ids=str)
def test_twenty_modes_of_size_two(target):
    x = low_rank((2,) * 20, (1,) * 20)
    x /= np.linalg.norm(x)
    fit = td.hosvd(x, **target)
    assert fit.error < 1e-10
    assert fit.tensor.rank == (2 if target.get("rank") == 2 else 1,) * 20


@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values()])
def test_any_layout_gives_the_same_answer(method):
    x = planted((3, 8, 6))
    expected = method(x, rank=2)
    for layout in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1][::-1]):
        np.testing.assert_allclose(
            dense(method(layout, rank=2).tensor), dense(expected.tensor), atol=1e-12
        )


@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values()])
def test_equal_and_vanishing_singular_values(method):
    x = np.zeros((2, 6, 6))
    x[:, :4, :4] = np.eye(4)
    fit = method(x, rank=4)
    assert fit.error < 1e-7
    assert method(x, error=1e-6).error <= 1e-6
    assert method(x, rank=3).error == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_extreme_scales_of_float64(method, scale):
    x = planted((3, 8, 6))
    assert method(x * scale, rank=2).error == pytest.approx(method(x, rank=2).error, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e20])
@pytest.mark.parametrize("method", [td.tucker, td.tucker2])
def test_extreme_scales_of_large_modes(method, scale, rng):
    """Modes of more than 256 are iterated by products, which must not square the entries."""
    x = rng.standard_normal((2, 300, 3)) @ rng.standard_normal((3, 280))
    x = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    expected = method(x, rank=3).error
    assert method(x * np.float32(scale), rank=3).error == pytest.approx(expected, rel=1e-3)


def test_entries_without_a_square_are_refused():
    for scale in (1e200, 1e-200):
        with pytest.raises(td.DataError, match="divide the array"):
            td.tucker(planted((3, 8, 6)) * scale, rank=2)


def test_torch_tensors_that_require_gradients():
    torch = pytest.importorskip("torch")
    x = torch.asarray(planted((3, 8, 6))).requires_grad_()
    fit = td.tucker2(x, rank=2)
    assert not fit.tensor.core.requires_grad
    assert fit.error == pytest.approx(td.tucker2(to_numpy(x), rank=2).error)


# --- stacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values(), td.tensor_train, td.cp])
@pytest.mark.parametrize("target", [{"rank": 2}, {"error": 0.3}, {"budget": 60}], ids=str)
def test_a_stack_gives_the_fit_of_its_dense_tensor(method, target, rng):
    arrays = {f"h.{i}.w.weight": rng.standard_normal((6, 4)) + 2 for i in range(3)}
    (stack,) = td.Stack.from_arrays(arrays)
    lazy, direct = method(stack, **target), method(stack.dense(), names=stack.modes, **target)
    assert lazy.tensor.rank == direct.tensor.rank
    assert lazy.error == pytest.approx(direct.error, rel=1e-9)
    np.testing.assert_allclose(dense(lazy.tensor), dense(direct.tensor), atol=1e-10)
    np.testing.assert_allclose(lazy.residual, direct.residual, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("target", [{"rank": 2}, {"error": 0.3}, {"budget": 60}], ids=str)
def test_a_stack_that_is_loaded_whole_is_read_once(method, target, rng):
    x, seen = rng.standard_normal((3, 6, 4)) + 2, [0] * 3
    (stack,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})

    def read(site):
        layer = dict(site.labels)["layer"]
        seen[layer] += 1
        return x[layer]

    assert method(td.Stack(stack.group, read), **target).svd == "exact"
    assert set(seen[1:]) == {1}  # the first may be asked for its library


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"error": 1e-6}, 1),
        ({"error": 1e-6, "rounding": lambda a: a + 0}, 2),
        ({"error": 0.15}, 2),
        ({"error": 1e-6, "metric": {2: covariance(7)}}, 3),
    ],
    ids=["nothing is cut", "rounded", "cut", "in a metric, and without"],
)
def test_a_residual_is_formed_again_only_if_the_factors_have_changed(options, times, monkeypatch):
    x, formed = planted((4, 8, 7), decay=0.7), []
    form = residual._of_block
    monkeypatch.setattr(residual, "_of_block", lambda *a: formed.append(1) or form(*a))
    fit = td.tucker(x, **options)
    assert (len(formed), fit.error <= options["error"]) == (times, True)


# --- the figure that is reported ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "noise", "allowed"),
    [
        *(("float32", n, 1e-3) for n in (0.3, 1e-2, 1e-3, 1e-4, 1.2e-5)),
        *(("float32", n, 0.05) for n in (5e-6, 1e-6)),
        *(("float64", n, 1e-3) for n in (0.1, 1e-4, 1e-6, 1e-8, 1e-10, 1e-11)),
    ],
)
@pytest.mark.parametrize("method", [td.svd, *TUCKERS.values(), td.tensor_train, td.cp])
def test_the_reported_error_is_the_dense_float64_residual(method, dtype, noise, allowed):
    """Down to 1e-6 in float32, 1e-11 in float64; noise is what the planted tensor cannot give."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((n, 3)) for n in (5, 40, 30))
    x = np.einsum("ar,br,cr->abc", a, b, c)
    x /= np.linalg.norm(x)
    rest = rng.standard_normal(x.shape)
    x = (x + noise * rest / np.linalg.norm(rest)).astype(dtype)
    fit = method(x, rank=3)
    wide = fit.tensor.with_arrays(
        {k: to_numpy(v).astype(np.float64) for k, v in fit.tensor.arrays.items()}
    )
    true = np.linalg.norm(x.astype(np.float64) - dense(wide)) / np.linalg.norm(x)
    assert fit.error == pytest.approx(true, rel=allowed)
    assert true > 0.5 * noise
