"""jax arrays, with float64 off and on: numpy's answers, gradients, and norms in float64."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp.formats import mode_product, normalised
from tests.formats.cases import dense, space

jax = pytest.importorskip("jax")
LOWRANK = next(f for f in space() if isinstance(f, td.LowRank))  # few: jax compiles every shape
PARAFAC = next(f for f in space() if isinstance(f, td.CP))


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def dtype(request):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield "float64" if request.param else "float32"
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_jax_gives_numpys_answer(dtype):
    fmt = LOWRANK
    arrays = {k: jax.numpy.asarray(a, dtype=dtype) for k, a in fmt.arrays.items()}
    ours, full = fmt.with_arrays(arrays), dense(fmt)
    ones = jax.numpy.ones(fmt.shape[-1], dtype=dtype)
    for found, expected in [
        (ours[1, ..., ::2], full[1, ..., ::2]),
        (ours - 3.0 * ours, -2 * full),
        (mode_product(ours, ones, -1), full.sum(-1)),
    ]:
        assert all(a.dtype == dtype for a in found.arrays.values())
        np.testing.assert_allclose(found.to_dense(), expected, atol=1e-4)
    assert ours.norm().dtype == np.float64
    np.testing.assert_allclose(ours.norm(), np.linalg.norm(full), rtol=1e-6)


def test_normalised_keeps_the_dtype(dtype):
    cp = PARAFAC
    ours = cp.with_arrays({k: jax.numpy.asarray(a, dtype=dtype) for k, a in cp.arrays.items()})
    unit = normalised(ours)
    assert all(a.dtype == dtype for a in unit.arrays.values())
    np.testing.assert_allclose(unit.to_dense(), dense(cp), atol=1e-4)


def test_gradient_of_the_norm(dtype):
    cp = PARAFAC
    arrays = {k: jax.numpy.asarray(a, dtype=dtype) for k, a in cp.arrays.items()}
    with jax.enable_x64(True):
        gradient = jax.grad(lambda a: cp.with_arrays(a).norm())(arrays)
    direct = jax.grad(lambda a: jax.numpy.linalg.norm(cp.with_arrays(a).to_dense()))(arrays)
    for key, found in gradient.items():
        assert found.dtype == dtype
        np.testing.assert_allclose(found, direct[key], rtol=1e-3, atol=1e-4)
