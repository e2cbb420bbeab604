"""Truncations keep their bounds, and some tensors reach them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tdecomp as td
from theory.truncation import (
    hosvd_factor,
    sequential_sum,
    tail,
    train_family,
    tt_svd_factor,
    tucker_family,
)

TENSORS = st.lists(st.integers(1, 4), min_size=3, max_size=4).flatmap(
    lambda shape: arrays(
        np.float64,
        tuple(shape),
        elements=st.integers(-4, 4).map(float) | st.floats(-1, 1, width=16),
    )
)


def squared(fit, x):
    return float(np.sum((x - fit.tensor.to_dense()) ** 2))


def slack(x):
    """What rounding may add to a squared error."""
    return 1e-12 * float(np.sum(x**2))


@settings(max_examples=60, deadline=None)
@given(x=TENSORS, rank=st.integers(1, 3), sequential=st.booleans())
def test_hosvd_is_within_the_sum_of_the_tails(x, rank, sequential):
    ranks = [min(rank, n) for n in x.shape]
    tails = [tail(x, [k], r) for k, r in enumerate(ranks)]
    truncated = sum(r < n for r, n in zip(ranks, x.shape, strict=True))
    off = squared(td.hosvd(x, rank=tuple(ranks), sequential=sequential), x)
    assert max(tails) <= off + slack(x)
    assert (
        off
        <= sum(tails) + slack(x)
        <= float(hosvd_factor(truncated)) ** 2 * max(tails) + (2 * slack(x))
    )


@settings(max_examples=40, deadline=None)
@given(x=TENSORS, rank=st.integers(1, 3))
def test_tucker2_is_within_the_root_of_two(x, rank):
    out, inp = x.ndim - 2, x.ndim - 1
    ranks = {k: min(rank, x.shape[k]) for k in (out, inp)}
    tails = [tail(x, [k], r) for k, r in ranks.items()]
    off = squared(td.tucker2(x, rank=tuple(ranks.values()), n_iter_max=0), x)
    assert max(tails) - slack(x) <= off <= float(hosvd_factor(2)) ** 2 * max(tails) + slack(x)


@settings(max_examples=40, deadline=None)
@given(x=TENSORS, rank=st.integers(1, 3))
def test_tt_svd_is_within_the_sum_of_the_tails(x, rank):
    bonds = range(1, x.ndim)
    sides = [(math.prod(x.shape[:k]), math.prod(x.shape[k:])) for k in bonds]
    ranks = [min(rank, *pair) for pair in sides]
    tails = [tail(x, range(k), r) for k, r in zip(bonds, ranks, strict=True)]
    off = squared(td.tensor_train(x, rank=tuple(ranks), n_iter_max=0), x)
    factor = float(tt_svd_factor(x.ndim)) ** 2
    assert (
        max(tails) - slack(x)
        <= off
        <= sum(tails) + slack(x)
        <= factor * max(tails) + (2 * slack(x))
    )


@settings(max_examples=30, deadline=None)
@given(x=arrays(np.float64, (3, 5, 4), elements=st.floats(-1, 1, width=16)))
def test_sequential_truncation_loses_exactly_its_tails(x):
    """At the ranks of the core's own order of modes: that with the fewest flops."""
    fit = td.hosvd(x, rank=(2, 2, 2))
    off = squared(fit, x)
    orders = [(0, 2, 1), (0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    sums = [sequential_sum(x, (2, 2, 2), order) for order in orders]
    assert min(abs(off - said) for said in sums) <= 1e-9 * max(1.0, float(np.sum(x**2)))


@pytest.mark.parametrize("n_truncated", [2, 3, 4])
@pytest.mark.parametrize("sequential", [True, False])
def test_hosvd_reaches_its_bound(n_truncated, sequential):
    x, better = tucker_family(n_truncated, 0.05)
    modes = tuple(range(1, n_truncated + 1))
    assert all(np.linalg.matrix_rank(np.moveaxis(better, k, 0).reshape(3, -1)) == 2 for k in modes)
    fit = td.hosvd(x, rank=(2,) * n_truncated, modes=modes, sequential=sequential)
    ratio = math.sqrt(squared(fit, x)) / np.linalg.norm(x - better)
    bound = float(hosvd_factor(n_truncated))
    assert 0.95 * bound <= ratio <= bound
    assert ratio == pytest.approx(math.sqrt(n_truncated / 1.05))


@pytest.mark.parametrize("n_truncated", [2, 3])
def test_errors_of_the_family_are_exact(n_truncated):
    """In fractions: rows of an unfolding share no column, so that their norms are its values."""
    x, better = tucker_family(n_truncated, 0.25)
    kept = x.copy()
    for mode in range(1, n_truncated + 1):
        rows = np.moveaxis(x, mode, 0).reshape(3, -1)
        assert np.count_nonzero(rows, axis=0).max() == 1
        energy = [sum(map(exact_square, row)) for row in rows]
        assert energy[1] == 1 < energy[2] == Fraction(5, 4) < energy[0]
        np.moveaxis(kept, mode, 0)[1] = 0  # what each mode on its own drops
    assert sum(map(exact_square, (x - kept).flat)) == n_truncated
    assert sum(map(exact_square, (x - better).flat)) == Fraction(5, 4)
    assert squared(td.hosvd(x, rank=(2,) * n_truncated, modes=range(1, n_truncated + 1)), x) == (
        pytest.approx(n_truncated)
    )


def exact_square(entry):
    """The square of an entry of the families, as the fraction that it stands for."""
    return Fraction(float(entry) ** 2).limit_denominator(100)


def test_tucker2_reaches_its_bound():
    x, better = tucker_family(2, 0.05)
    fit = td.tucker2(x, rank=(2, 2), n_iter_max=0)
    ratio = math.sqrt(squared(fit, x)) / np.linalg.norm(x - better)
    assert 0.95 * math.sqrt(2) <= ratio <= math.sqrt(2)


@pytest.mark.parametrize("order", [3, 4, 5])
def test_tt_svd_reaches_its_bound(order):
    x, better = train_family(order, 0.05)
    fit = td.tensor_train(x, rank=(2,) * (order - 1), n_iter_max=0)
    train = td.tensor_train(better, rank=(2,) * (order - 1), n_iter_max=0).tensor.to_dense()
    ratio = math.sqrt(squared(fit, x)) / np.linalg.norm(x - train)
    bound = float(tt_svd_factor(order))
    assert 0.95 * bound <= ratio <= bound


def test_no_tie_decides_in_the_families():
    """Kept and dropped singular values are apart in every unfolding that is truncated."""
    for x, modes in (
        *((tucker_family(n, 0.05)[0], [[k] for k in range(1, n + 1)]) for n in (2, 3, 4)),
        *((train_family(n, 0.05)[0], [range(k) for k in range(1, n)]) for n in (3, 4, 5)),
    ):
        for rows in modes:
            kept, dropped = (tail(x, rows, k) - tail(x, rows, k + 1) for k in (1, 2))
            assert kept > 1.04 * dropped > 0.9
