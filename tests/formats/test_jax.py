"""jax arrays, with float64 off and on: numpy's answers, gradients, and norms in float64."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import namespace, tol
from tdecomp.formats import hadamard, mode_product, normalised, to_lowrank, to_tucker
from tests.formats.cases import dense, ids, space

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


@pytest.mark.slow
def test_gradient_of_the_norm(dtype):
    cp = PARAFAC
    arrays = {k: jax.numpy.asarray(a, dtype=dtype) for k, a in cp.arrays.items()}
    with jax.enable_x64(True):
        gradient = jax.grad(lambda a: cp.with_arrays(a).norm())(arrays)
    direct = jax.grad(lambda a: jax.numpy.linalg.norm(cp.with_arrays(a).to_dense()))(arrays)
    for key, found in gradient.items():
        assert found.dtype == dtype
        np.testing.assert_allclose(found, direct[key], rtol=1e-3, atol=1e-4)


def in_jax(fmt, dtype):
    return fmt.with_arrays({k: jax.numpy.asarray(a, dtype=dtype) for k, a in fmt.arrays.items()})


def test_formats_are_pytrees(dtype):
    for fmt in space():
        ours = in_jax(fmt, dtype)
        leaves, tree = jax.tree.flatten(ours)
        assert len(leaves) == len(fmt.arrays)
        hash(tree)
        again = jax.tree.unflatten(tree, leaves)
        assert type(again) is type(fmt)
        assert (again.modes, again.shape, again.layout) == (fmt.modes, fmt.shape, fmt.layout)
        assert jax.tree.structure(in_jax(fmt, dtype)) == tree
        marked = jax.tree.unflatten(tree, [object()] * len(leaves))
        assert type(marked) is type(fmt)
        same = jax.tree.map(lambda a: a, ours)
        assert all(same.arrays[key] is array for key, array in ours.arrays.items())


def everything(t):
    xp = namespace(*t.arrays.values())
    ones = xp.ones((2, t.shape[-1]), dtype=t.to_dense().dtype)
    return {
        "dense": t.to_dense(),
        "norm": t.norm(),
        "inner": t.inner(t),
        "sum": (t + t - t * 3.0).to_dense(),
        "select": t[1, ..., ::2].to_dense(),
        "mode product": mode_product(t, ones, -1).to_dense(),
        "tucker": to_tucker(t).to_dense(),
        "hadamard": hadamard(t, t).to_dense(),
        "svd": to_lowrank(t, ranks=1).to_dense(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("fmt", space(), ids=ids)
def test_compiled_gives_what_numpy_gives(fmt, dtype):
    expected, compiled = everything(fmt), jax.jit(everything)(in_jax(fmt, dtype))
    for name, array in expected.items():
        assert compiled[name].dtype == ("float64" if name in ("norm", "inner") else dtype), name
        bound = 1e3 * tol(dtype, 1) * float(np.abs(array).max())
        np.testing.assert_allclose(compiled[name], array, atol=bound, err_msg=name)


def test_compiled_functions_take_and_give_formats(dtype):
    for fmt in (PARAFAC, PARAFAC + LOWRANK):
        ours = in_jax(fmt, dtype)
        found = jax.jit(lambda t: (t + t)[..., 0])(ours)
        np.testing.assert_allclose(found.to_dense(), 2 * dense(fmt)[..., 0], atol=1e-4)


GRADIENTS = [PARAFAC, pytest.param(PARAFAC + LOWRANK, marks=pytest.mark.slow)]


@pytest.mark.parametrize("fmt", GRADIENTS, ids=ids)
def test_gradients_are_formats(fmt, dtype):
    ours = in_jax(fmt, dtype)
    with jax.enable_x64(True):
        square = jax.jit(jax.grad(lambda t: t.norm() ** 2))(ours)
        inner = jax.jit(jax.grad(lambda t: t.inner(ours)))(ours)
    assert type(square) is type(fmt)
    expected = jax.jit(jax.grad(lambda t: (t.to_dense() ** 2).sum()))(ours)
    for key, gradient in expected.arrays.items():
        scale = float(np.abs(gradient).max()) + 1.0
        bound = 100 * tol(dtype, gradient.size) * scale
        np.testing.assert_allclose(square.arrays[key], gradient, atol=bound)
        np.testing.assert_allclose(2 * inner.arrays[key], gradient, atol=bound)
        assert square.arrays[key].dtype == dtype


def test_formats_made_before_jax_are_registered_on_request():
    code = (
        "import sys, numpy as np, tdecomp as td, tdecomp.formats as f;"
        "cp = td.CP(('a', 'b'), np.ones(1), (np.ones((2, 1)), np.ones((3, 1))));"
        "f.register_pytrees(); assert 'jax' not in sys.modules;"
        "import jax; f.register_pytrees(); f.register_pytrees();"
        "assert len(jax.tree.leaves(cp)) == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
