"""jax arrays, with float64 off and on: numpy's answers, in jax, and the setting left alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import tol
from tests.laws.cases import METHODS, planted

TARGETS = [{"rank": 2}, {"error": 0.2}]
SHAPES = [(6, 1), (2, 3, 6, 4)]
PAIRS = list(zip(SHAPES, TARGETS, strict=True))  # jax compiles every operation for every shape


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def dtype(request):
    """Widest float dtype of jax under the setting."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield "float64" if request.param else "float32"
    assert jax.config.jax_enable_x64 == request.param
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def in_jax(monkeypatch):
    """Small arrays are not handed to numpy: what large ones go through."""
    monkeypatch.setattr("tdecomp.decomposition.run.wants_numpy", lambda method, xs: False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_steps_in_jax_give_numpys_answer(method, in_jax, dtype):
    check(method, SHAPES[1], TARGETS[0], dtype)


@pytest.mark.parametrize("method", [td.tucker2, td.tensor_train], ids=lambda f: f.__name__)
def test_steps_in_jax_meet_an_error(method, in_jax, dtype):
    check(method, (3, 6, 4), TARGETS[1], dtype)  # above: of more modes


@pytest.mark.parametrize(("shape", "target"), PAIRS, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_jax_gives_numpys_answer(method, shape, target, dtype):
    check(method, shape, target, dtype)


def check(method, shape, target, dtype):
    """Equal ranks, errors and tensors from jax and numpy; arrays of jax in the dtype given."""
    x = planted(shape).astype(dtype)
    fit, expected = method(jax.numpy.asarray(x), **target), method(x, **target)
    assert all(isinstance(a, jax.Array) and a.dtype == dtype for a in fit.tensor.arrays.values())
    assert fit.tensor.rank == expected.tensor.rank
    assert fit.error == pytest.approx(expected.error, abs=tol(dtype, x.size))
    near = 20 * tol(dtype, x.size)
    if dtype == "float32" and "error" not in target and method is td.tensor_train:
        near = max(near, 1e-3)  # its sweeps stop at a change of 1e-6: √ of that, in the factors
    # Made in numpy: jax would compile for a second what tests/formats/test_jax.py looks at.
    np.testing.assert_allclose(np.asarray(fit.tensor), expected.tensor.to_dense(), atol=near)


@pytest.mark.slow
def test_a_stack_of_jax_arrays(dtype):
    rng = np.random.default_rng(0)
    arrays = {f"h.{i}.w.weight": rng.standard_normal((6, 4)).astype(dtype) for i in range(3)}
    (stack,) = td.Stack.from_arrays({n: jax.numpy.asarray(a) for n, a in arrays.items()})
    (plain,) = td.Stack.from_arrays(arrays)
    np.testing.assert_array_equal(stack.dense(), plain.dense())
    fit = td.tucker2(stack, rank=2)
    assert isinstance(fit.tensor.core, jax.Array)
    assert fit.error == pytest.approx(td.tucker2(plain, rank=2).error, abs=tol(dtype, 72))


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (td.cp, {"rank": 2}),
        (td.cp, {"error": 0.05}),
        (td.tensor_train, {"error": 0.05}),
        (td.tensor_train, {"budget": 60}),
    ],
)
def test_the_other_methods_take_jax_arrays(method, target, dtype):
    rng = np.random.default_rng(0)
    x = np.einsum("ar,br,cr->abc", *(rng.standard_normal((n, 2)) for n in (4, 6, 5))).astype(dtype)
    fit, expected = method(jax.numpy.asarray(x), **target), method(x, **target)
    assert all(isinstance(a, jax.Array) and a.dtype == dtype for a in fit.tensor.arrays.values())
    assert fit.tensor.rank == expected.tensor.rank
    assert fit.error == pytest.approx(expected.error, abs=10 * tol(dtype, x.size))
