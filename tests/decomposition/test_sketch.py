"""Large stacks: the two long modes from a few passes of skinny products, one slice at a time."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp import linalg
from tdecomp._xp import to_numpy, tol
from tdecomp.decomposition import _sketch

SHAPES = [(6, 320, 300), (2, 3, 300, 320), (340, 330)]


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    """Exact bases count as dear from a fraction of the usual size on."""
    monkeypatch.setattr(_sketch, "is_cheap", lambda shape, width: 4 * width > min(shape))


def stack(shape, noise: float, dtype="float32", seed: int = 0) -> np.ndarray:
    """Shared bases of rank 12 with decaying strength, and white noise of a relative size."""
    rng = np.random.default_rng(seed)
    *sites, out, in_ = shape
    left = rng.standard_normal((out, 12)) * 0.8 ** np.arange(12)
    x = left @ rng.standard_normal((*sites, 12, 12)) @ rng.standard_normal((12, in_))
    if dtype.startswith("complex"):
        x = x * (1 + 1j * rng.standard_normal((in_,)))
    e = rng.standard_normal(shape)
    return (x / np.linalg.norm(x) + noise * e / np.linalg.norm(e)).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("method", [td.tucker2, td.tucker, td.hosvd])
def test_the_error_is_that_of_exact_bases(method, shape, noise):
    x = stack(shape, noise)
    fit, exact = method(x, rank=12), method(x, rank=12, svd=linalg.svd_full)
    assert ("sketch" in fit.svd, exact.svd) == (True, "svd_full")
    assert fit.error <= 1.001 * exact.error + 2e-6
    assert fit.tensor.rank == exact.tensor.rank
    true = np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x)
    assert fit.error == pytest.approx(true, rel=1e-3, abs=tol("float32", 1000))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128"])
def test_other_dtypes(dtype):
    x = stack(SHAPES[0], 0.0, dtype)
    fit = td.tucker2(x, rank=12)
    assert "sketch" in fit.svd
    assert fit.error < (1e-5 if dtype == "complex64" else 1e-12)
    assert fit.tensor.core.dtype == x.dtype


def test_sweeps_count_the_whole_tensor():
    x = stack(SHAPES[0], 0.3)
    fit = td.tucker(x, rank=(3, 12, 12), n_iter_max=20, tol=0)
    assert fit.trace.errors[-1] == pytest.approx(fit.error, rel=1e-3)


def test_a_stack_is_never_whole_in_memory():
    x = stack(SHAPES[0], 0.3)
    (lazy,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    object.__setattr__(lazy, "dense", None)
    fit, direct = td.tucker2(lazy, rank=12), td.tucker2(x[:, None], rank=12)
    assert "sketch" in fit.svd
    assert fit.error == pytest.approx(direct.error, rel=1e-6)


def test_the_seed_is_the_callers():
    x = stack(SHAPES[0], 3.0)
    one, same, other = (td.tucker2(x, rank=12, random_state=s) for s in (1, 1, 2))
    assert (one.tensor.left == same.tensor.left).all()
    assert (one.tensor.left != other.tensor.left).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_the_sketch(bad):
    x = stack(SHAPES[0], 0.3)
    x[3, 100, 7] = bad
    with pytest.raises(td.DataError, match="NaN or Inf"):
        td.tucker2(x, rank=12)


def test_zero_and_extreme_scales():
    x = stack(SHAPES[0], 0.3)
    assert td.tucker2(0 * x, rank=12).error == 0
    expected = td.tucker2(x, rank=12).error
    for scale in (1e-20, 1e20):
        assert td.tucker2(x * np.float32(scale), rank=12).error == pytest.approx(expected, rel=1e-3)
