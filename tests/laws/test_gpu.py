"""CUDA: numpy's answers, on the device of the input. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tests.laws.cases import METHODS, planted

pytestmark = pytest.mark.gpu

TARGETS = [{"rank": 2}, {"error": 0.1}, {"budget": 60}]


@pytest.fixture(params=["torch", "cupy"])
def to_device(request):
    """Numpy array to an array of the library on the GPU."""
    library = pytest.importorskip(request.param)
    if request.param == "cupy":
        return library.asarray
    return lambda x: library.asarray(x, device="cuda")


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("method", [*METHODS.values(), td.cp], ids=[*METHODS, "cp"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gpu_gives_numpys_answer(method, target, dtype, to_device):
    x = planted((3, 8, 6)).astype(dtype)
    array = to_device(x)
    fit, expected = method(array, **target), method(x, **target)
    for part in fit.tensor.arrays.values():
        assert type(part) is type(array)
        assert part.device == array.device
    assert fit.tensor.rank == expected.tensor.rank
    assert fit.error == pytest.approx(expected.error, abs=10 * tol(dtype, x.size))
    np.testing.assert_allclose(
        to_numpy(fit.tensor.to_dense()), expected.tensor.to_dense(), atol=20 * tol(dtype, x.size)
    )


def test_a_large_stack_stays_on_the_device(to_device):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 256, 16)) @ rng.standard_normal((16, 512))
    array = to_device(x.astype(np.float32))
    fit = td.tucker2(array, rank=16)
    assert fit.error < 1e-3
    assert fit.tensor.core.device == array.device
