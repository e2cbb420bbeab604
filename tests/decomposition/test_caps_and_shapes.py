"""Ranks given one by one are the shapes that come out; a largest rank is never exceeded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tdecomp as td
from tdecomp.linalg import completed
from tests.laws.cases import planted

BY_MODE = {
    "tucker": td.tucker,
    "hosvd": td.hosvd,
    "all modes at once": lambda x, **target: td.hosvd(x, sequential=False, **target),
    "without sweeps": lambda x, **target: td.tucker(x, n_iter_max=0, **target),
}


@pytest.mark.parametrize("method", BY_MODE.values(), ids=BY_MODE.keys())
@pytest.mark.parametrize("shape", [(3, 4, 3), (2, 8, 8), (9, 2, 2), (5, 4)], ids=str)
def test_a_core_has_exactly_the_shape_asked_for(method, shape):
    x = planted(shape, decay=0.9)
    for rank in itertools.product(*(sorted({1, n // 2 + 1, n}) for n in shape)):
        for given in (rank, {f"m{k}": r for k, r in enumerate(rank)}):
            fit = method(x, rank=given)
            assert fit.tensor.rank == rank
            error = np.linalg.norm(x - fit.tensor.to_dense()) / np.linalg.norm(x)
            assert fit.error == pytest.approx(error, abs=1e-13)
            for u in fit.tensor.factors:
                np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-12)


def test_tucker2_and_formats_and_rounded_factors_keep_the_shape(xp):
    y = planted((2, 8, 8), decay=0.9)
    half = lambda a: a.astype(np.float16).astype(np.float64)
    for x in (y, td.tucker2(y, rank=3).tensor):
        fit = td.tucker2(x, rank=(8, 2))
        assert (fit.tensor.rank, fit.tensor.core.shape) == ((8, 2), (2, 8, 2))
    assert td.tucker2(xp.asarray(y), rank=(8, 2)).tensor.rank == (8, 2)
    rounded = td.tucker2(y, rank=(8, 2), rounding=half).tensor
    assert rounded.rank == (8, 2)
    np.testing.assert_array_equal(half(rounded.left), rounded.left)
    (fit,) = td.decompose([y], td.tucker2, rank=(8, 2))
    assert fit.tensor.rank == (8, 2)


def test_an_int_is_cut_to_what_the_modes_can_use():
    y = planted((2, 8, 8), decay=0.9)
    assert td.tucker2(y[:1], rank=8).tensor.rank == (8, 8)
    assert td.tucker(planted((9, 2, 2)), rank=9).tensor.rank == (4, 2, 2)
    assert td.tensor_train(planted((3, 4, 2, 2)), rank=4).tensor.rank == (1, 3, 4, 2, 1)


def test_trains_have_exactly_the_bonds_asked_for():
    x = planted((3, 4, 5), decay=0.9)
    tt = td.tensor_train(x, rank=(3, 5)).tensor
    for bonds in itertools.product((1, 2, 3), (1, 2, 5)):
        for given in (bonds, (1, *bonds, 1)):
            assert td.tensor_train(x, rank=given).tensor.rank == (1, *bonds, 1)
        small = td.tt_round(tt, rank=bonds)
        assert small.rank == (1, *bonds, 1)
        same = td.tensor_train(x, rank=bonds, n_iter_max=0)
        error = np.linalg.norm(x - small.to_dense()) / np.linalg.norm(x)
        assert error == pytest.approx(same.error, rel=0.2)
    w = planted((12, 10))
    assert td.mpo(w, out=(2, 6), inp=(2, 5), rank=(4,)).tensor.rank == (1, 4, 1)


ABOVE = [
    (lambda x: td.tucker(x, rank=(4, 4, 5)), "rank 4 is above the size 3 of the mode 'm0'"),
    (lambda x: td.hosvd(x, rank={"m2": 6}), "rank 6 is above the size 5 of the mode 'm2'"),
    (lambda x: td.tucker2(x, rank=(4, 6)), "rank 6 is above the size 5 of the mode 'm2'"),
    (lambda x: td.tensor_train(x, rank=(1, 5, 4, 1)), "rank 5 is above 3, the most the bond"),
    (lambda x: td.tt_round(td.tensor_train(x, rank=2).tensor, rank=(3, 2)), "rank 3 is above 2"),
]


@pytest.mark.parametrize(("call", "text"), ABOVE, ids=[text for _, text in ABOVE])
def test_what_no_tensor_of_the_shape_can_have_is_refused(call, text):
    with pytest.raises(td.ArgumentError, match=text):
        call(planted((3, 4, 5)))


@pytest.mark.parametrize(("n", "k", "width"), [(6, 2, 5), (4, 0, 4), (5, 5, 3), (1000, 3, 4)])
def test_bases_are_completed_by_orthonormal_columns(n, k, width, rng):
    u = np.linalg.qr(rng.standard_normal((n, max(k, 1))))[0][:, :k]
    q = completed(u, width)
    np.testing.assert_array_equal(q[:, :k], u)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-14)
    assert q.shape[1] == max(k, width)


CAPPED = {
    "svd": td.svd,
    "tucker": td.tucker,
    "tucker2": td.tucker2,
    "hosvd": td.hosvd,
    "tensor_train": td.tensor_train,
    "mpo": lambda x, **target: td.mpo(x, out=(2, 4), inp=(3, 2), **target),
    "cp": td.cp,
    "interpolative": td.interpolative,
}


def largest(fit: td.Fit) -> int:
    """Rank of any mode that is compressed."""
    if isinstance(fit.tensor, td.Tucker):
        pairs = zip(fit.tensor.rank, fit.tensor.factors, strict=True)
        return max(r for r, factor in pairs if factor is not None)
    return int(np.max(np.atleast_1d(fit.tensor.rank)))


def within(method, x, error, most) -> td.Fit:
    """The fit, or the best one that an error that was not reached carries."""
    try:
        fit = method(x, error=error, rank_max=most)
    except td.NotReached as short:
        fit = short.best
        if fit.error <= error:
            raise AssertionError("what is not reached is met") from short
        return fit
    if fit.error > error:
        raise AssertionError("an error was not met")
    return fit


@pytest.mark.parametrize("name", CAPPED)
def test_an_error_is_met_within_the_largest_rank_or_not_reached(name):
    method, x = CAPPED[name], planted((5, 8, 6), decay=0.5)
    for error in (0.5, 0.05):
        free = method(x, error=error)
        most = largest(free)
        same = method(x, error=error, rank_max=most)
        assert same.error <= error
        assert largest(same) <= most
        assert largest(within(method, x, error, 1)) <= 1
    with pytest.raises(td.NotReached, match="rank_max") as caught:
        method(x, error=1e-3, rank_max=2)
    assert largest(caught.value.best) <= 2
    assert 1e-3 < caught.value.best.error < 1


@pytest.mark.parametrize("name", [n for n in CAPPED if n != "cp"])
def test_a_budget_keeps_to_the_largest_rank(name):
    method, x = CAPPED[name], planted((5, 8, 6), decay=0.9)
    for most in (1, 2, 3):
        fit = method(x, budget=200, rank_max=most)
        assert fit.n_params <= 200
        assert largest(fit) <= most


@pytest.mark.parametrize("method", [td.svd, td.tucker2, td.tensor_train])
def test_several_inputs_share_a_largest_rank(method):
    xs = [planted((3, 8, 6), decay=0.6), planted((2, 8, 6), 1, decay=0.9)]
    fits = td.decompose(xs, method, error=0.3, rank_max=6)
    assert fits.error <= 0.3
    with pytest.raises(td.NotReached) as caught:
        td.decompose(xs, method, error=0.02, rank_max=2)
    assert isinstance(caught.value.best, td.Fits)
    assert max(map(largest, caught.value.best)) <= 2


def test_trains_are_rounded_within_a_largest_bond():
    tt = td.tensor_train(planted((4, 5, 6, 3), decay=0.8), rank=4).tensor
    assert max(td.tt_round(tt, error=0.5, rank_max=4).rank) <= 4
    assert max(td.tt_round(tt, budget=60, rank_max=2).rank) <= 2
    with pytest.raises(td.NotReached, match="rank_max=1") as caught:
        td.tt_round(tt, error=1e-3, rank_max=1)
    assert caught.value.best.rank == (1,) * 5


REFUSED = [
    (lambda x: td.tucker(x, rank=2, rank_max=3), "goes with error= or budget="),
    (lambda x: td.svd(x, error=0.1, rank_max=0), "whole number, 1 or more"),
    (lambda x: td.tensor_train(x, error=0.1, rank_max=2.5), "whole number, 1 or more"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_a_largest_rank_that_says_nothing_is_refused(call, text):
    with pytest.raises(td.ArgumentError, match=text):
        call(planted((3, 4, 5)))
