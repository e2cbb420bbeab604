"""CP: the error falls, planted components come back, and what is asked for is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import parafac

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tests.laws.cases import SHAPES
from tests.laws.cases import planted as decaying

STARTS = ["hosvd", "random", "gevd"]


def components(shape: tuple[int, ...], rank: int, seed: int = 0) -> list[np.ndarray]:
    """Factors whose columns are unit and not too close to each other."""
    rng = np.random.default_rng([seed, 77])
    factors = []
    for n in shape:
        columns = rng.standard_normal((n, rank))
        if 1 < rank <= n:
            u, s, vh = np.linalg.svd(columns, full_matrices=False)
            columns = u * np.clip(s, s[0] / 3, None) @ vh
        factors.append(columns / np.linalg.norm(columns, axis=0))
    return factors


def planted(shape: tuple[int, ...], rank: int, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    x = tensorly.cp_to_tensor((np.linspace(1, 2, rank), components(shape, rank, seed)))
    added = np.random.default_rng([seed, 78]).standard_normal(shape)
    return x + noise * np.linalg.norm(x) / np.linalg.norm(added) * added


def dense_error(x: np.ndarray, fit: td.Fit) -> float:
    x = x.astype(np.float64)
    return float(np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x))


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((7, 8, 9), 3),
        ((20, 6, 11), 4),
        ((4, 1, 6, 5), 2),
        ((1, 5, 6, 7), 3),
        ((5, 6, 7, 1), 3),
        ((3, 9, 8), 4),
        ((60, 2, 3), 5),
        ((4, 5, 6, 3), 6),
        ((2, 3, 4, 3, 5), 4),
        ((10, 10, 10), 10),
        ((6, 7, 5), 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("init", STARTS)
def test_planted_components_come_back(shape, rank, init):
    fit = td.cp(planted(shape, rank), rank=rank, init=init, n_restarts=3, n_iter_max=400)
    assert fit.error < 1e-6
    assert fit.tensor.rank == rank


def test_factors_are_those_planted():
    shape, rank = (7, 8, 9), 3
    fit = td.cp(planted(shape, rank), rank=rank)
    np.testing.assert_allclose(fit.tensor.weights, np.linspace(2, 1, rank), rtol=1e-6)
    for found, true in zip(fit.tensor.factors, components(shape, rank), strict=True):
        np.testing.assert_allclose(np.abs(found.T @ true[:, ::-1]).diagonal(), 1, rtol=1e-6)


def test_eigenvectors_alone_are_exact():
    fit = td.cp(planted((6, 7, 5), 4), rank=4, init="gevd", n_iter_max=1)
    assert fit.error < 1e-8


def test_an_impossible_start_falls_back_and_says_so():
    fit = td.cp(decaying((3, 4, 2)), rank=4, init="gevd")
    assert "gevd failed: fewer than two modes have size 4" in fit.trace.reason


@pytest.mark.parametrize("init", ["hosvd", "gevd"])
def test_structured_tensors_do_not_stand_still(init, rng):
    """Exact singular vectors of a permuted identity are a saddle point of the iteration."""
    x = np.zeros((5, 5, 5))
    x[range(5), rng.permutation(5), rng.permutation(5)] = 1
    assert td.cp(x, rank=5, init=init).error < 1e-10


def test_a_tensor_of_border_rank_two():
    """[desilva2008]: the W state has rank 3 and no best approximation of rank 2."""
    x = np.zeros((3, 3, 3))
    x[0, 0, 1] = x[0, 1, 0] = x[1, 0, 0] = 1
    assert td.cp(x, rank=2).error < 0.05
    assert td.cp(x, rank=3, n_restarts=3).error < 1e-8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 9, 10), 3), ((12, 6, 15), 4), ((4, 5, 6, 3), 2)], ids=str
)
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_no_worse_than_tensorly(shape, rank, noise, seed):
    x = planted(shape, rank, seed, noise)
    theirs = tensorly.cp_to_tensor(parafac(x, rank, init="svd", n_iter_max=100, random_state=0))
    assert td.cp(x, rank=rank).error <= 1.01 * np.linalg.norm(x - theirs) / np.linalg.norm(x)


@pytest.mark.parametrize(
    "options",
    [
        *({"init": start} for start in STARTS),
        {"line_search": False},
        {"compress": False},
        {"ridge": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 2], ids=str)
def test_error_never_rises(shape, options):
    x = decaying(shape, decay=0.9)
    fit = td.cp(x, rank=3 if x.size > 20 else 2, n_iter_max=30, **options)
    slack = tol("float64", x.size)
    assert all(b <= a + slack for a, b in itertools.pairwise(fit.trace.errors))
    if fit.trace.errors:
        assert fit.error <= fit.trace.errors[-1] + slack
        assert fit.trace.errors[0] <= 1


def test_compressing_gives_nothing_away():
    x = planted((30, 25, 20), 3, noise=0.3)
    assert td.cp(x, rank=3).error <= td.cp(x, rank=3, compress=False).error * (1 + 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", [{"rank": 2}, {"error": 0.3}, {"budget": 40}], ids=str)
def test_error_is_the_dense_error(shape, dtype, target):
    x = decaying(shape).astype(dtype)
    fit = td.cp(x, **target)
    assert fit.error == pytest.approx(dense_error(x, fit), abs=tol(dtype, x.size))
    assert all(a.dtype == dtype for a in fit.tensor.arrays.values())
    assert fit.tensor.shape == shape
    assert fit.n_params == fit.tensor.rank * (1 + sum(shape))


@pytest.mark.parametrize("shape", [(7, 5), (1, 6), (4, 1, 6), (2, 1, 1, 5), (1, 1)], ids=str)
def test_a_matrix_gets_its_singular_values(shape):
    x = decaying(shape)
    s = np.linalg.svd(np.atleast_2d(x.squeeze()), compute_uv=False)
    fit = td.cp(x, rank=min(2, len(s)))
    np.testing.assert_allclose(fit.tensor.weights, s[:2], rtol=1e-12)


def test_signs_and_order_are_fixed(rng):
    tensor = td.cp(rng.standard_normal((5, 6, 7)), rank=4).tensor
    assert (np.diff(tensor.weights) <= 0).all()
    assert (tensor.weights >= 0).all()
    for factor in tensor.factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1)
    for factor in tensor.factors[:-1]:
        assert (factor[np.abs(factor).argmax(axis=0), range(4)] > 0).all()


def test_a_rank_deficient_tensor_does_not_fail():
    """TensorLy issue 531: a rank-1 tensor, two components asked for."""
    for init in STARTS:
        fit = td.cp(planted((4, 5, 6), 1), rank=2, init=init, n_restarts=2)
        assert fit.error < 1e-10
        assert fit.tensor.rank == 2


@pytest.mark.parametrize("shape", [(3, 8, 6), (4, 3)], ids=str)
def test_zero_has_error_zero(shape):
    x = np.zeros(shape)
    assert td.cp(x, rank=2).error == 0
    assert td.cp(x, budget=100).error == 0
    assert td.cp(x, error=0.1).n_params == 0


def test_largest_rank_is_exact(rng):
    x = rng.standard_normal((2, 3, 2))
    assert td.cp(x, rank=4, n_restarts=5, n_iter_max=500).error < 1e-6


def test_error_is_met_with_the_planted_rank():
    fit = td.cp(planted((9, 10, 8), 5), error=1e-4)
    assert fit.error <= 1e-4
    assert fit.tensor.rank == 5


@pytest.mark.parametrize("error", [0.7, 0.3, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_error_target_is_met(error, dtype):
    x = decaying((5, 8, 6), decay=0.7).astype(dtype)
    fit = td.cp(x, error=error)
    assert fit.error <= error
    assert dense_error(x, fit) <= error + tol(dtype, x.size)


def test_an_error_out_of_reach_hands_over_the_best(rng):
    x = rng.standard_normal((6, 7, 8))
    with pytest.raises(td.NotReached, match="not reached up to rank 3: the best is") as caught:
        td.cp(x, error=0.01, rank_max=3)
    assert caught.value.best.tensor.rank == 3
    assert caught.value.best.error == pytest.approx(dense_error(x, caught.value.best))


@pytest.mark.parametrize("budget", [20, 39, 40, 59, 60, 10_000])
def test_budget_is_kept(budget):
    x = decaying((4, 5, 10))
    fit = td.cp(x, budget=budget)
    assert fit.n_params == min(budget // 20, 20) * 20


def test_same_seed_same_answer():
    x = planted((6, 7, 8), 3, noise=0.5)
    runs = [td.cp(x, rank=9, init="random", random_state=s, n_iter_max=5) for s in (None, 0, 1)]
    np.testing.assert_array_equal(runs[0].tensor.weights, runs[1].tensor.weights)
    assert not np.allclose(runs[0].tensor.weights, runs[2].tensor.weights)
    generators = [np.random.default_rng(5) for _ in range(2)]
    a, b = (td.cp(x, rank=9, init="random", random_state=g, n_iter_max=5) for g in generators)
    np.testing.assert_array_equal(a.tensor.weights, b.tensor.weights)


def test_no_global_generator_is_touched():
    torch = pytest.importorskip("torch")
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    td.cp(planted((4, 5, 6), 2), rank=6, init="random", n_restarts=2)
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.random.get_rng_state())


def test_nothing_given_is_modified():
    x = planted((6, 7, 8), 3, noise=0.1)
    start = td.cp(x, rank=3, n_iter_max=2).tensor
    kept = {name: a.copy() for name, a in start.arrays.items()}
    before = x.copy()
    for array in (x, *start.arrays.values()):
        array.flags.writeable = False
    for rank in (2, 3, 5):
        td.cp(x, rank=rank, init=start)
    np.testing.assert_array_equal(x, before)
    for name, array in start.arrays.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("rank", [3, 5])
def test_a_given_start_is_never_made_worse(rank, rng):
    x = planted((12, 9, 8), 4, noise=0.2)
    start = td.CP(
        ("m0", "m1", "m2"),
        np.array([1.0, -2.0, 0.5]),
        tuple(rng.standard_normal((n, 3)) for n in x.shape),
    )
    fit = td.cp(x, rank=rank, init=start, n_iter_max=1)
    assert fit.error <= np.linalg.norm(x - start.to_dense()) / np.linalg.norm(x)
    done = td.cp(x, rank=3)
    again = td.cp(x, rank=3, init=done.tensor)
    assert again.error <= done.error * (1 + tol("float64", x.size))
    assert "given" in again.trace.reason
    assert len(again.trace.errors) < len(done.trace.errors)


def test_any_format_is_a_start():
    x = planted((6, 7, 8), 3, noise=0.1)
    for start in (td.tucker(x, rank=3).tensor, td.svd(x, rank=3).tensor):
        fit = td.cp(x, rank=3, init=start)
        assert fit.error == pytest.approx(td.cp(x, rank=3).error, rel=1e-3)


@pytest.mark.parametrize("init", STARTS)
def test_same_answer_in_every_library(xp, init):
    x = planted((6, 9, 8), 4, noise=0.1)
    array = xp.asarray(x.copy())
    fit = td.cp(array, rank=4, init=init, n_restarts=2)
    assert all(type(a) is type(array) for a in fit.tensor.arrays.values())
    expected = td.cp(x, rank=4, init=init, n_restarts=2)
    np.testing.assert_allclose(
        to_numpy(fit.tensor.to_dense()), expected.tensor.to_dense(), atol=1e-8
    )


@pytest.mark.parametrize("target", [{"error": 0.3}, {"budget": 100}], ids=str)
def test_targets_in_every_library(xp, target):
    x = planted((6, 9, 8), 4, noise=0.1)
    fit, expected = td.cp(xp.asarray(x.copy()), **target), td.cp(x, **target)
    assert fit.tensor.rank == expected.tensor.rank
    assert fit.error == pytest.approx(expected.error, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("shape", [(3, 8, 6), (12, 9, 10), (7, 5)], ids=str)
def test_extreme_scales_of_float32(shape, scale):
    x = decaying(shape).astype(np.float32)
    plain, scaled = td.cp(x, rank=2), td.cp(x * np.float32(scale), rank=2)
    assert scaled.error == pytest.approx(plain.error, rel=1e-3)


def test_half_precision_is_widened():
    x = planted((5, 6, 7), 2).astype(np.float16)
    fit = td.cp(x, rank=2)
    assert all(a.dtype == np.float32 for a in fit.tensor.arrays.values())
    assert fit.error == pytest.approx(dense_error(x, fit), abs=tol("float32", x.size))
    torch = pytest.importorskip("torch")
    fit = td.cp(torch.asarray(planted((5, 6, 7), 2)).to(torch.bfloat16), rank=2)
    assert fit.tensor.weights.dtype == torch.float32
    assert fit.error < 0.01


def test_rounding_is_part_of_the_error():
    x = planted((5, 6, 7), 2)
    fit = td.cp(x, rank=2, rounding=lambda a: a.astype(np.float16).astype(np.float64))
    assert 1e-5 < fit.error < 1e-2
    assert fit.error == pytest.approx(dense_error(x, fit))


@pytest.mark.parametrize("shape", [(7, 8, 9), (5, 6, 1, 4)], ids=str)
def test_missing_entries_are_filled_in(shape, rng):
    x = planted(shape, 2)
    mask = rng.random(shape) > 0.3
    fit = td.cp(np.where(mask, x, np.nan), rank=2, weights=mask, n_iter_max=1000, tol=1e-10)
    assert dense_error(x, fit) < 1e-5
    again = td.cp(np.where(mask, x, 1e6), rank=2, weights=mask, n_iter_max=1000, tol=1e-10)
    np.testing.assert_array_equal(fit.tensor.weights, again.tensor.weights)


@pytest.mark.parametrize("shape", [(7, 8, 9), (6, 5)], ids=str)
@pytest.mark.parametrize("init", STARTS)
def test_weighted_error_is_true_and_never_rises(shape, init, xp, rng):
    x, weights = decaying(shape, decay=0.9), 5 * rng.random(shape)
    fit = td.cp(xp.asarray(x), rank=2, weights=xp.asarray(weights), init=init, n_restarts=2)
    root = np.sqrt(weights)
    expected = np.linalg.norm(root * (x - to_numpy(fit.tensor.to_dense())))
    assert fit.error == pytest.approx(expected / np.linalg.norm(root * x), rel=1e-9)
    assert fit.error == pytest.approx(fit.trace.errors[-1], rel=1e-9)
    assert all(b <= a for a, b in itertools.pairwise(fit.trace.errors))


def test_equal_weights_change_nothing():
    x = planted((6, 7, 8), 3, noise=0.3)
    fit = td.cp(x, rank=3, weights=np.full(x.shape, 7.0), tol=1e-9)
    assert fit.error == pytest.approx(td.cp(x, rank=3, tol=1e-9).error, rel=1e-6)


def test_weighted_targets(rng):
    x = planted((6, 7, 8), 3)
    mask = rng.random(x.shape) > 0.1
    fit = td.cp(x, error=0.01, weights=mask, n_iter_max=500, tol=1e-8)
    assert fit.error <= 0.01
    assert fit.tensor.rank == 3
    assert td.cp(x, budget=50, weights=mask).n_params == 44
    start = td.cp(x, rank=1).tensor
    assert td.cp(x, rank=2, weights=mask, init=start).error < td.cp(x, rank=1, weights=mask).error


def test_large_float32_data_are_not_widened_whole(monkeypatch):
    x = planted((12, 9, 8), 3, noise=0.1).astype(np.float32)
    expected = td.cp(x, rank=3).error
    monkeypatch.setattr("tdecomp.decomposition.methods.cp.solve._SMALL", 0)
    monkeypatch.setattr("tdecomp.decomposition.methods.cp.sweeps._TILE", 50)
    assert td.cp(x, rank=3).error == pytest.approx(expected, rel=1e-4)


def test_a_stack_is_loaded(rng):
    weights = {f"h.{i}.att.{p}.weight": rng.standard_normal((6, 4)) for i in range(3) for p in "qk"}
    (stack,) = td.Stack.from_arrays(weights)
    fit, expected = td.cp(stack, rank=3), td.cp(stack.dense(), rank=3)
    assert fit.tensor.modes == ("layer", "proj", "out", "in")
    assert fit.error == pytest.approx(expected.error)


def test_names_and_progress():
    seen: list[float] = []
    fit = td.cp(
        planted((5, 6, 7), 2, noise=0.1), rank=2, names="layer out in", progress=seen.append
    )
    assert fit.tensor.modes == ("layer", "out", "in")
    assert seen == sorted(seen)
    assert 0 < seen[-1] <= 1


BAD = [
    ({}, "exactly one"),
    ({"rank": 2, "error": 0.1}, "exactly one"),
    ({"rank": 0}, "1 or more"),
    ({"rank": 1.5}, "whole number"),
    ({"rank": (2, 2, 2)}, "CP has one rank"),
    ({"rank": 99}, "no tensor of shape"),
    ({"error": 1.5}, "between 0 and 1"),
    ({"error": 1e-9}, "below 1e-06"),
    ({"budget": 0}, "positive"),
    ({"budget": 17}, "below rank 1: the smallest possible is 18 numbers"),
    ({"rank": 2, "init": "svd"}, "must be one of hosvd, random, gevd, or a format"),
    ({"rank": 2, "init": 3}, "or a format"),
    ({"rank": 2, "n_restarts": 0}, "n_restarts"),
    ({"rank": 2, "n_iter_max": 0}, "n_iter_max"),
    ({"rank": 2, "ridge": -1.0}, "ridge"),
    ({"rank": 2, "tol": float("nan")}, "tol"),
    ({"rank": 2, "weights": np.ones((3, 8))}, "weights has the shape"),
    ({"rank": 2, "weights": -np.ones((3, 8, 6))}, "0 or more"),
    ({"rank": 2, "weights": np.zeros((3, 8, 6))}, "not all 0"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=str)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.cp(decaying((3, 8, 6)).astype(np.float32), **arguments)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones(0), "none empty"),
        (np.ones((2, 0, 3)), "none empty"),
        (np.full((2, 3, 3), np.nan), "NaN"),
        (np.array([[[1.0, np.inf]]]), "Inf"),
        (np.ones((2, 3, 4), dtype=np.complex64), "real arrays, got complex64"),
    ],
    ids=["no entries", "empty", "nan", "inf", "complex"],
)
def test_bad_arrays_are_refused(array, text):
    with pytest.raises(td.DataError, match=text):
        td.cp(array, rank=1)


def test_a_start_of_another_shape_or_library_is_refused(rng):
    x = decaying((3, 8, 6))
    start = td.cp(x, rank=1).tensor
    with pytest.raises(td.ArgumentError, match="init has the shape"):
        td.cp(x[:, :7], rank=1, init=start)
    torch = pytest.importorskip("torch")
    with pytest.raises(td.DataError, match="one library"):
        td.cp(torch.asarray(x), rank=1, init=start)


# -- data that are not of low rank: a core loses something ---------------------


def serology() -> np.ndarray:
    from tensorly.datasets.data_imports import load_covid19_serology

    return np.asarray(load_covid19_serology().tensor, float)  # (438, 6, 11)


@pytest.mark.parametrize(("rank", "explained"), [(2, 0.744066), (3, 0.77938)])
def test_serology_is_explained_as_well_as_by_the_best_of_ten_starts_of_tensorly(rank, explained):
    """TensorLy's parafac, 1000 iterations: 0.744067 and 0.779389."""
    fit = td.cp(serology(), rank=rank, n_iter_max=1000, tol=1e-10)
    assert 1 - fit.error**2 >= explained
    assert fit.trace.converged == (len(fit.trace.errors) < 1000)


def test_more_sweeps_and_more_starts_are_never_worse():
    x = serology()
    by_sweeps = [td.cp(x, rank=3, n_iter_max=n, tol=0).error for n in (100, 150)]
    assert by_sweeps == sorted(by_sweeps, reverse=True)
    noise = np.random.default_rng(0).standard_normal((3, 9, 8, 7))
    for y in noise:
        by_sweeps = [td.cp(y, rank=4, n_iter_max=n, tol=0).error for n in (1, 5, 20, 60, 120)]
        assert all(more <= less + 1e-12 for less, more in itertools.pairwise(by_sweeps)), by_sweeps
    by_starts = [td.cp(x, rank=3, n_iter_max=30, n_restarts=n).error for n in (1, 4)]
    assert by_starts == sorted(by_starts, reverse=True)


def test_sweeps_on_the_data_are_as_many_as_asked_for():
    fit = td.cp(serology(), rank=3, n_iter_max=150, tol=1e-12)
    assert "stopped after 150 sweeps" in fit.trace.reason
    assert not fit.trace.converged


@pytest.mark.parametrize("shape", [(6, 7, 5), (20, 4, 30), (9, 8)])
def test_fixed_modes_keep_their_columns_and_the_others_fit_best(shape):
    factors = components(shape, 2)
    x = td.CP(tuple("abc"[: len(shape)]), np.array([3.0, 2.0]), tuple(factors)).to_dense()
    rng = np.random.default_rng(3)
    start = td.CP.random(shape, 2, random_state=4)
    held = start.factors[0]
    noisy = x + 0.1 * rng.standard_normal(shape)
    options = {"rank": 2, "init": start, "fixed": start.modes[0], "n_iter_max": 300, "tol": 0.0}
    fit = td.cp(noisy, names=start.modes, n_restarts=2, **options)
    kept = fit.tensor.factors[0]
    cosines = kept.T @ (held / np.linalg.norm(held, axis=0))
    np.testing.assert_allclose(np.sort(np.max(abs(cosines), axis=0)), 1.0)
    if len(shape) == 2:  # the best partner of given columns is known
        best = held @ np.linalg.lstsq(held, noisy, rcond=None)[0]
        assert fit.error == pytest.approx(np.linalg.norm(noisy - best) / np.linalg.norm(noisy))
    free = td.cp(noisy, names=start.modes, **(options | {"fixed": None}))
    assert free.error <= fit.error + 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": "a"}, "give a CP tensor as init"),
        ({"fixed": "a b c", "init": True}, "leave one"),
        ({"fixed": "q", "init": True}, "no mode 'q'"),
        ({"fixed": "a", "init": True, "rank": 3}, "keep the 2 columns"),
        ({"fixed": "a", "init": True, "rank": None, "error": 0.1}, "keep the 2 columns"),
    ],
)
def test_fixed_modes_that_cannot_be(options, message):
    start = td.CP.random((4, 5, 6), 2, names="a b c", random_state=0)
    options = {"rank": 2, "names": "a b c"} | options
    if options.get("init"):
        options["init"] = start
    with pytest.raises(td.ArgumentError, match=message):
        td.cp(np.ones((4, 5, 6)), **options)


@pytest.mark.filterwarnings("ignore::UserWarning:tensorly")  # a mode is shorter than the rank
@pytest.mark.parametrize("rank", [4, 8])
def test_several_starts_are_tried_where_sweeps_are_cheap(rank):
    x = np.nan_to_num(np.asarray(tensorly.datasets.load_IL2data().tensor, dtype=np.float64))
    options = {"rank": rank, "n_iter_max": 100, "tol": 1e-8}
    fit, one = td.cp(x, **options), td.cp(x, init="hosvd", **options)
    theirs = parafac(x, rank, init="svd", n_iter_max=100, tol=1e-8, random_state=0)
    left = np.linalg.norm(tensorly.cp_to_tensor(theirs) - x) / np.linalg.norm(x)
    assert fit.error <= left
    assert "of 8 tried" in fit.trace.reason
    assert "tried" not in one.trace.reason
    assert np.array_equal(fit.tensor.to_dense(), td.cp(x, **options).tensor.to_dense())
    assert td.cp(x, n_restarts=3, **options).error <= fit.error


def test_one_start_is_enough_where_no_other_could_win(rng):
    """A planted tensor: its core keeps only a trace of the noise."""
    a, b, c = (rng.standard_normal((n, 3)) for n in (30, 31, 32))
    x = np.einsum("ir,jr,kr->ijk", a, b, c)
    noisy = x + 0.1 * rng.standard_normal(x.shape)
    for data in (x, noisy):
        assert "start 1 of 1: hosvd" in td.cp(data, rank=3).trace.reason
