"""Slices that are worked on side by side: the same numbers, whatever the number of threads."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import tdecomp as td
from tdecomp.formats import Format
from tdecomp.linalg import truncated_svd
from tdecomp.passes import slices
from tdecomp.stack import Stack
from tests.waiting import wait_until

SHAPE = (7, 300, 260)
SKETCHED = (7, 620, 600)  # so large that the bases of all slices are sketched


def data(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(0)
    n, rows, columns = shape
    left, right = rng.standard_normal((n, rows, 6)), rng.standard_normal((6, columns))
    return (left @ right + rng.standard_normal(shape)).astype(np.float32)


def stack_of(x: np.ndarray) -> Stack:
    names = {f"h.{i}.att.q.weight": matrix for i, matrix in enumerate(x)}
    (stack,) = Stack.from_arrays(names)
    return stack


@pytest.fixture
def side_by_side(monkeypatch):
    """Three threads for whatever may be worked on in several; returns the most at once so far."""
    used = []

    def three(pieces: int, at_most: int | None = None) -> int:
        used.append(min(3, at_most or 3))
        return used[-1]

    monkeypatch.setattr(slices, "workers", three)
    return used


def arrays_of(fit) -> dict[str, np.ndarray]:
    tensor = fit.tensor if hasattr(fit, "tensor") else fit
    assert isinstance(tensor, Format)
    return dict(tensor.arrays)


CALLS = {
    "svd": lambda x: td.svd(x, rank=4),
    "svd by error": lambda x: td.svd(x, error=0.3),
    "svd in a metric": lambda x: td.svd(x, rank=3, metric={-1: np.diag(np.arange(1.0, 261))}),
    "tucker2": lambda x: td.tucker2(x, rank=4),
    "train": lambda x: td.tensor_train(x, rank=4),
    "interpolative": lambda x: td.interpolative(x, rank=4),
}


LARGE = CALLS["svd"], CALLS["tucker2"], CALLS["train"]
LIGHT = CALLS["tucker2"], CALLS["train"]  # a product with each matrix: arrays are taken in turn


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["array", "stack"])
def test_the_same_bits_whatever_the_number_of_threads(call, kind, side_by_side, monkeypatch):
    x = data(SKETCHED if call in LARGE else SHAPE)
    given = x if kind == "array" else replace(stack_of(x), concurrent=True)
    with threadpool_limits(limits=1, user_api="blas"):
        several = call(given)
        in_turn = kind == "array" and call in LIGHT
        assert set(side_by_side) == (set() if in_turn else {3})
        monkeypatch.setattr(slices, "workers", lambda pieces, at_most=None: 1)
        one = call(given)
    assert several.error == one.error
    for name, array in arrays_of(several).items():
        assert np.array_equal(array, arrays_of(one)[name]), name


def test_an_exploration_is_the_same(side_by_side, monkeypatch):
    with threadpool_limits(limits=1, user_api="blas"):
        several = td.explore(data(), names="layer out in")
        assert set(side_by_side) == {3}
        monkeypatch.setattr(slices, "workers", lambda pieces, at_most=None: 1)
        assert td.explore(data(), names="layer out in") == several


def test_a_stack_that_does_not_say_so_is_read_in_one_thread(side_by_side):
    seen = set()
    stack = stack_of(data())
    read = stack.read
    counted = replace(stack, read=lambda site: seen.add(threading.get_ident()) or read(site))
    td.svd(counted, rank=2)
    assert seen == {threading.get_ident()}
    assert not side_by_side
    others = set()

    def read_beside_another(site):
        """Another thread has come before this one goes on: one could be done with all of them.

        The caller's reads one slice for its library, where jax is loaded.
        """
        if seen != {threading.get_ident()}:
            others.add(threading.get_ident())
            assert wait_until(lambda: len(others) > 1)
        return read(site)

    td.svd(replace(stack, read=read_beside_another, concurrent=True), rank=2)
    assert len(others) > 1


def test_an_svd_of_the_users_sees_the_matrices_in_turn(side_by_side):
    seen = []

    def own(matrix, rank):
        seen.append((threading.get_ident(), float(matrix[0, 0])))
        return truncated_svd(matrix, rank)

    x = data()
    td.svd(x, rank=2, svd=own)
    assert seen == [(threading.get_ident(), float(m[0, 0])) for m in x]


def test_nan_in_one_slice_is_refused_as_ever(side_by_side):
    x = data()
    x[5, 3, 2] = np.nan
    for call in (CALLS[name] for name in ("svd by error", "svd in a metric", "interpolative")):
        with pytest.raises(td.DataError, match="NaN or Inf"):
            call(x)
    assert side_by_side


def test_a_small_limit_keeps_fewer_slices_in_memory(side_by_side):
    stack = replace(stack_of(data()), concurrent=True)
    assert slices.slices_at_once(stack) == 4
    numbers = SHAPE[1] * SHAPE[2]
    small = replace(stack, max_memory=8 * 3 * 2 * numbers)
    assert slices.slices_at_once(small) == 3
    assert side_by_side == [3, 2]
