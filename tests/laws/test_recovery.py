"""Exact-rank data come back to rounding: algorithms × spectra × dtypes × backends."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tests.tables import BACKENDS

SPECTRA = {
    "flat": lambda r: np.ones(r),
    "decaying": lambda r: 0.5 ** np.arange(r),
    "a gap": lambda r: np.where(np.arange(r) < 1, 1.0, 1e-3),
    "one zero": lambda r: np.where(np.arange(r) < r - 1, 1.0, 0.0),
}
"""Weights of the planted components."""

RANK = 3
SHAPE = (4, 9, 8)


def planted(spectrum: str, dtype: str) -> np.ndarray:
    """A CP tensor with orthonormal factors: rank 3 in every mode, bond, slice and as a CP."""
    rng = np.random.default_rng(0)
    factors = []
    for n in SHAPE:
        a = rng.standard_normal((n, RANK))
        if dtype.startswith("complex"):
            a = a + 1j * rng.standard_normal((n, RANK))
        factors.append(np.linalg.qr(a)[0])
    return np.einsum("r,ar,br,cr->abc", SPECTRA[spectrum](RANK), *factors).astype(dtype)


METHODS = {
    "svd": lambda x: td.svd(x, rank=RANK),
    "hosvd": lambda x: td.hosvd(x, rank=RANK),
    "tucker": lambda x: td.tucker(x, rank=RANK),
    "tucker2": lambda x: td.tucker2(x, rank=RANK),
    "partial tucker": lambda x: td.tucker(x, rank=RANK, modes=[1]),
    "tensor_train": lambda x: td.tensor_train(x, rank=RANK),
    "mpo": lambda x: td.mpo(x, out=(3, 3), inp=(4, 2), rank=9),
    "cp": lambda x: td.cp(x, rank=RANK, n_restarts=4, n_iter_max=400, tol=1e-10),
}
REAL_ONLY = {"cp"}


def recoverable():
    """Rows of the table; complex where the method takes it, jax (which compiles) with one each."""
    for name, spectrum in itertools.product(METHODS, SPECTRA):
        for dtype in ("float32", "float64", "complex64", "complex128"):
            if dtype.startswith("complex") and name in REAL_ONLY:
                continue
            yield name, spectrum, dtype, BACKENDS
    for name in set(METHODS) - {"cp"}:  # cp: test_jax.py
        yield name, "decaying", "float32", ("jax.numpy",)


@pytest.mark.parametrize(("name", "spectrum", "dtype", "backends"), sorted(recoverable()), ids=str)
def test_exact_rank_is_recovered(name, spectrum, dtype, backends):
    x = planted(spectrum, dtype)
    for backend in backends:
        array = importlib.import_module(backend).asarray(x.copy())
        fit = METHODS[name](array)
        assert fit.error <= 20 * tol(dtype, x.size)
        assert type(next(iter(fit.tensor.arrays.values()))) is type(array)
        np.testing.assert_allclose(
            to_numpy(fit.tensor.to_dense()), x, atol=20 * tol(dtype, x.size) * np.abs(x).max()
        )


SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=4)
ARRAY_METHODS = {
    "svd": td.svd,
    "hosvd": td.hosvd,
    "tucker": td.tucker,
    "tucker2": td.tucker2,
    "tensor_train": td.tensor_train,
}


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
@pytest.mark.parametrize("name", ARRAY_METHODS)
def test_scaling_the_data_scales_the_answer(name, shape, seed, scale):
    x = np.random.default_rng(seed).standard_normal(shape)
    method = ARRAY_METHODS[name]
    one, other = method(x, rank=1), method(scale * x, rank=1)
    assert other.error == pytest.approx(one.error, rel=1e-6, abs=1e-9)
    assert other.tensor.rank == one.tensor.rank


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), rank=st.integers(1, 4))
@pytest.mark.parametrize("name", ["svd", "hosvd", "tucker", "tucker2", "tensor_train"])
def test_decomposing_an_answer_again_changes_nothing(name, shape, seed, rank):
    """Every method is a projection: its own result, as data or as a format, is fitted exactly."""
    x = np.random.default_rng(seed).standard_normal(shape)
    method, rank = ARRAY_METHODS[name], min(rank, *shape)
    first = method(x, rank=rank)
    dense = to_numpy(first.tensor.to_dense())
    for again in (method(dense, rank=rank), method(first.tensor, rank=rank)):
        assert again.error < 1e-6
        np.testing.assert_allclose(to_numpy(again.tensor.to_dense()), dense, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), error=st.floats(0.01, 0.9))
@pytest.mark.parametrize("name", ARRAY_METHODS)
def test_an_error_is_met_and_a_larger_one_is_no_dearer(name, shape, seed, error):
    x = np.random.default_rng(seed).standard_normal(shape)
    tight, loose = (ARRAY_METHODS[name](x, error=e) for e in (error, min(0.99, 1.5 * error)))
    assert tight.error <= error
    assert loose.n_params <= 1.2 * tight.n_params  # greedy and local: not strictly monotone


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), share=st.floats(0.05, 1.5))
@pytest.mark.parametrize("name", ARRAY_METHODS)
def test_a_budget_is_never_exceeded(name, shape, seed, share):
    x = np.random.default_rng(seed).standard_normal(shape)
    budget = int(share * x.size) + sum(shape) * 2 + 1 + x.size // min(x.size, shape[-1] * shape[-2])
    assert 0 < ARRAY_METHODS[name](x, budget=budget).n_params <= budget


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(2, 6), min_size=3, max_size=4), seed=st.integers(0, 10**6))
def test_the_order_of_the_modes_does_not_matter_to_tucker(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    order = np.random.default_rng(seed).permutation(len(shape))
    names = [f"m{k}" for k in range(len(shape))]
    options = {"error": 0.5, "n_iter_max": 0}
    fit = td.tucker(x, **options, names=names)
    turned = td.tucker(x.transpose(order), **options, names=[names[k] for k in order])
    assert turned.n_params <= 1.1 * fit.n_params
    assert fit.n_params <= 1.1 * turned.n_params
    assert max(fit.error, turned.error) <= 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_answer_whatever_the_global_one(seed):
    x = np.random.default_rng(seed).standard_normal((3, 5, 4))
    calls = [
        lambda: td.cp(x, rank=2, init="random", random_state=seed).tensor,
        lambda: td.tucker(x, rank=2, init="random", random_state=seed).tensor,
    ]
    for call in calls:
        np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
        first = call()
        np.random.seed(2)  # noqa: NPY002
        second = call()
        assert all((first.arrays[k] == second.arrays[k]).all() for k in first.arrays)
