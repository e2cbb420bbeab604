"""Every SVD against LAPACK's, and sketches against their targets."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import tdecomp as td
from tdecomp import linalg
from tdecomp._xp import to_numpy, tol
from tests.tables import each, in_every_library

EXACT = {
    "truncated": linalg.truncated_svd,
    "full": linalg.svd_full,
    "gram": linalg.svd_gram,
    "qr": linalg.svd_qr,
    "auto": linalg.svd_auto,
}
SKETCHED = {
    "sketch": linalg.svd_randomized,
    "sketch without power steps": partial(linalg.svd_randomized, n_power_iter=0),
    "sketch of a seed": partial(linalg.svd_randomized, n_power_iter=3, random_state=7),
}
SIZES = [(9, 6), (6, 9), (1, 5), (5, 1), (1, 1), (40, 30)]


def decaying(shape: tuple[int, int], decay: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    return u * decay ** np.arange(k) @ v.T


def best_error(x: np.ndarray, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(x, compute_uv=False)[rank:]))


def check_triplets(x, u, s, vh, rank: int) -> np.ndarray:
    u, s, vh = map(to_numpy, (u, s, vh))
    assert (u.shape, s.shape, vh.shape) == ((x.shape[0], rank), (rank,), (rank, x.shape[1]))
    assert u.dtype == vh.dtype == x.dtype
    small = tol(x.real.dtype, x.size)
    np.testing.assert_allclose(u.conj().T @ u, np.eye(rank), atol=small)
    np.testing.assert_allclose(vh @ vh.conj().T, np.eye(rank), atol=small)
    assert (np.diff(s) <= 0).all()
    return u * s @ vh


@pytest.mark.parametrize("svd", EXACT.values(), ids=EXACT.keys())
@each("shape", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@in_every_library
def test_exact_ones_are_the_best(svd, shape, dtype, xp):
    x = decaying(shape).astype(dtype)
    for rank in {0, 1, min(shape) // 2, min(shape)}:
        approximation = check_triplets(x, *svd(xp.asarray(x), rank), rank)
        error = np.linalg.norm(x - approximation)
        assert error <= best_error(x, rank) + tol(dtype, x.size) * np.linalg.norm(x)


@pytest.mark.parametrize("svd", (EXACT | SKETCHED).values(), ids=(EXACT | SKETCHED).keys())
def test_complex_matrices(svd, rng):
    x = rng.standard_normal((7, 3)) @ (rng.standard_normal((3, 9)) * (1 + 2j))
    for matrix in (x, x.T):
        error = np.linalg.norm(matrix - check_triplets(matrix, *svd(matrix, 3), 3))
        assert error <= tol("float64", x.size) * np.linalg.norm(x)


@pytest.mark.parametrize("svd", SKETCHED.values(), ids=SKETCHED.keys())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@in_every_library
def test_sketches_are_nearly_the_best(svd, dtype, xp):
    x = decaying((60, 80), decay=0.9).astype(dtype)
    approximation = check_triplets(x, *svd(xp.asarray(x), 8), 8)
    factor = np.sqrt(1 + 8 / 9)  # theorem 10.5 of Halko et al., in expectation, no power steps
    assert np.linalg.norm(x - approximation) <= factor * best_error(x, 8)


@pytest.mark.parametrize("svd", SKETCHED.values(), ids=SKETCHED.keys())
@each("shape", SIZES)
def test_sketches_of_full_rank_are_exact(svd, shape):
    x = decaying(shape)
    for rank in {0, 1, min(shape)}:
        approximation = check_triplets(x, *svd(x, rank), rank)
    np.testing.assert_allclose(approximation, x, atol=tol("float64", x.size))


def test_power_steps_help():
    x = decaying((200, 150), decay=0.99)
    errors = []
    for q in (0, 1, 4):
        u, s, vh = linalg.svd_randomized(x, 10, n_oversamples=2, n_power_iter=q)
        errors.append(np.linalg.norm(x - u * s @ vh) / best_error(x, 10))
    assert errors[0] > errors[1] > errors[2] > 1
    assert errors[2] < 1.01


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_krylov_bases_hold_the_ones_before_and_end_where_nothing_is_left(dtype, xp):
    x = decaying((60, 40), decay=0.9).astype(dtype)
    rank_five = x[:, :5] @ x[:5, :]
    for matrix, width, widths in ((x, 16, [16, 32, 40]), (x.T, 30, [30, 40]), (rank_five, 8, [8])):
        before = matrix[:, :0]
        rng = np.random.default_rng(0)
        for q, b in linalg.krylov_steps(xp.asarray(matrix), width, rng):
            q, b = to_numpy(q), to_numpy(b)
            assert q.shape[1] == widths.pop(0)
            close = {"atol": tol(dtype, x.size), "rtol": 0}
            np.testing.assert_allclose(q.conj().T @ q, np.eye(q.shape[1]), **close)
            np.testing.assert_allclose(b, q.conj().T @ matrix, **close)
            assert (q[:, : before.shape[1]] == before).all()
            before = q
        assert not widths


@pytest.mark.parametrize("decay", [0.9, 0.97, 0.99])
def test_two_krylov_steps_capture_more_than_three_power_steps(decay):
    x = decaying((200, 150), decay=decay)

    def captured(steps, n):
        for _ in range(n + 1):
            _, b = next(steps)
        return np.sum(np.linalg.svd(b, compute_uv=False)[:10] ** 2)

    krylov = captured(linalg.krylov_steps(x, 14, np.random.default_rng(0)), 2)
    assert krylov > captured(linalg.power_steps(x, 14, np.random.default_rng(0)), 3)


@each("shape", [(200, 30), (200, 400), (64, 3)])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@in_every_library
def test_a_sparse_sketch_adds_every_row_to_one_of_its_own_by_a_random_sign(shape, dtype, xp):
    width, near = 51, linalg._NEAR
    signs = to_numpy(linalg.sparse_sketch(xp.asarray(np.eye(shape[0])), width, rng := seeded()))
    assert (np.sum(signs != 0, axis=0) == 1).all()
    assert set(np.unique(signs)) <= {-1.0, 0.0, 1.0}
    assert signs.shape[0] == min(width, shape[0])
    x = decaying(shape, 0.9).astype(dtype)
    for _ in range(2):  # in one piece, and in several
        sketch = to_numpy(linalg.sparse_sketch(xp.asarray(x), width, seeded()))
        close = {"atol": tol(dtype, x.size), "rtol": 0}
        np.testing.assert_allclose(sketch, signs @ x, **close)
        linalg._NEAR = 100
    linalg._NEAR = near
    assert rng.random() != seeded().random()  # it was drawn from


def seeded() -> np.random.Generator:
    return np.random.default_rng(5)


@each("rows", [np.arange(12), np.arange(12) * 45, np.arange(12) * 90 + 3, np.arange(12) * 64])
def test_rows_that_meet_in_the_sketch_are_found_by_the_steps(rows):
    """All others are zero: what the sketch lost would never come back by itself."""
    x = np.zeros((1100, 300), np.float32)
    x[rows] = np.random.default_rng(1).standard_normal((12, 300))
    u, s, vh = linalg.svd_settled(x, 12)
    assert linalg._starts_wide(x, 22)
    assert np.linalg.norm(x - u * s @ vh) <= tol("float32", x.size) * np.linalg.norm(x)


def test_excess_counts_what_may_be_taken_in_place_of_what_is_kept():
    s = np.array([4.0, 2.0, 2.0, 1.0])
    alike = linalg.excess(s[:3], 2, 0.0, 1, "float64")  # the third is as strong as the second
    assert alike == pytest.approx((16 - 4) * (2 / 4) ** 2 / 4)
    assert linalg.excess(s, 2, 0.0, 3, "float64") < linalg.excess(s, 2, 0.0, 1, "float64")
    wider = linalg.excess(s, 2, 0.0, 1, "float64", columns=23)
    assert wider == pytest.approx(linalg.excess(s, 2, 0.0, 1, "float64") / 20)
    assert linalg.excess(np.array([4.0, 0.0]), 1, 0.0, 1, "float64") == 0


def test_power_steps_keep_small_singular_values_of_float32():
    x = decaying((80, 60), decay=0.5).astype(np.float32)
    s = linalg.svd_randomized(x, 16, n_power_iter=4)[1]
    np.testing.assert_allclose(s, 0.5 ** np.arange(16), rtol=0.02)


def test_sketches_follow_their_seed(xp):
    x = decaying((60, 50), decay=0.95)
    sketch = partial(linalg.svd_randomized, rank=4, n_oversamples=1, n_power_iter=0)
    first, again, zero = (sketch(x, random_state=s)[1] for s in (None, None, 0))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, zero)
    assert not np.allclose(first, sketch(x, random_state=1)[1])
    np.testing.assert_allclose(to_numpy(sketch(xp.asarray(x))[1]), first, rtol=1e-10)


def test_auto_sketches_large_matrices_until_the_energy_settles(monkeypatch):
    monkeypatch.setattr(linalg, "_EXACT_FLOPS", 0)
    x = decaying((300, 200), decay=0.98)
    u, s, vh = linalg.svd_auto(x, 20)
    best = np.linalg.svd(x, compute_uv=False)[:20]
    assert np.sum(s**2) >= (1 - 1e-3) * np.sum(best**2)
    assert np.linalg.norm(x - u * s @ vh) <= 1.01 * best_error(x, 20)
    zero = linalg.svd_auto(np.zeros_like(x), 5)
    assert zero[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (1, 7), (7, 1)], ids=str)
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float64", 1e-10)])
@each("block", [1, 7, 100])
@in_every_library
def test_ranges_meet_their_error(shape, dtype, error, block, xp):
    x = decaying(shape, decay=0.7).astype(dtype)
    q = to_numpy(linalg.range_basis(xp.asarray(x), error=error, block=block))
    wide = q.astype(np.float64)
    residual = np.linalg.norm(x - wide @ (wide.T @ x))
    assert residual <= error * np.linalg.norm(x) * (1 + tol(dtype, x.size) / error)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=tol(dtype, x.size))
    s = np.linalg.svd(x, compute_uv=False)
    smallest = int(np.sum(np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]) > error * np.linalg.norm(x)))
    assert q.shape[1] <= min(smallest + block + 4, *shape)


@pytest.mark.parametrize("error", [0.3, 1e-2, 1e-5])
def test_svd_to_an_error_has_nearly_the_smallest_rank(error):
    x = decaying((50, 70), decay=0.7)
    u, s, vh = linalg.svd_to_error(x, error)
    assert np.linalg.norm(x - u * s @ vh) <= error * np.linalg.norm(x) * (1 + 1e-9)
    tails = np.sqrt(np.cumsum(np.linalg.svd(x, compute_uv=False)[::-1] ** 2)[::-1])
    smallest = int(np.sum(tails > error * np.linalg.norm(x)))
    assert smallest <= len(s) <= smallest + 1


def test_zero_has_an_empty_range():
    zero = np.zeros((5, 4))
    assert linalg.range_basis(zero, error=0.1).shape == (5, 0)
    assert linalg.svd_to_error(zero, 0.1)[2].shape == (0, 4)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_scales_of_float32(scale):
    x = decaying((30, 20)).astype(np.float32) * np.float32(scale)
    for svd in (EXACT | SKETCHED).values():
        np.testing.assert_allclose(svd(x, 3)[1] / scale, [1, 0.5, 0.25], rtol=1e-4)
    assert linalg.range_basis(x, error=0.1, block=1).shape[1] <= 5


def test_a_tall_unfolding_needs_no_large_gram(monkeypatch):
    x = decaying((500, 6)).astype(np.float32)
    seen = []
    monkeypatch.setattr(linalg, "gram", lambda a, mode: seen.append(a.shape[mode]) or a @ a.T)
    u, s = linalg.left_basis(x, 0)
    assert seen == [6]
    np.testing.assert_allclose(s, 0.5 ** np.arange(6), rtol=1e-4)
    np.testing.assert_allclose(u.T @ u, np.eye(6), atol=tol("float32", x.size))


REFUSED = [
    (lambda x: linalg.svd_full(x, 9), "rank 9 of a"),
    (lambda x: linalg.svd_gram(x, -1), "rank -1 of a"),
    (lambda x: linalg.svd_randomized(x, 2, n_oversamples=-1), "must be 0 or more"),
    (lambda x: linalg.range_basis(x, error=0.0), "between 1e-14"),
    (lambda x: linalg.range_basis(x.astype(np.float32), error=1e-7), "between 1e-06"),
    (lambda x: linalg.range_basis(x, error=0.1, block=0), "block=0"),
    (lambda x: linalg.svd_full(x, 1.5), "rank 1.5 of a"),
    (lambda x: linalg.left_basis(x, 2), "no mode 2 in an array of shape"),
    (lambda x: linalg.left_basis(x[0, 0], 0), "no mode 0"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[t for _, t in REFUSED])
def test_bad_arguments_are_refused(call, text):
    with pytest.raises(td.ArgumentError, match=text):
        call(decaying((5, 4)))


OF_MATRICES = {
    **{name: partial(svd, rank=2) for name, svd in (EXACT | SKETCHED).items()},
    "settled": lambda x: linalg.svd_settled(x, 2),
    "singular values": linalg.singular_values,
    "orthonormal": linalg.orthonormal,
    "range": lambda x: linalg.range_basis(x, error=0.1),
    "to an error": lambda x: linalg.svd_to_error(x, 0.1),
    "power steps": lambda x: next(linalg.power_steps(x, 2, np.random.default_rng(0))),
    "krylov steps": lambda x: next(linalg.krylov_steps(x, 2, np.random.default_rng(0))),
}


@pytest.mark.parametrize("act", OF_MATRICES.values(), ids=OF_MATRICES.keys())
@each("shape", [(), (6,), (2, 6, 5), (40, 3, 2), (2, 2, 2, 2)])
def test_only_matrices_are_taken(act, shape):
    """Of a tensor, rows of the first two axes would be taken for a matrix."""
    with pytest.raises(td.ArgumentError, match=r"a matrix \(out, in\) is needed.*unfold"):
        act(np.ones(shape))
