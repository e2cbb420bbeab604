"""What only looks like an array of numbers: a right answer, or what to give in one sentence."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import tdecomp as td
from tests.tables import each

X = np.random.default_rng(0).standard_normal((4, 6, 5))
RING = "a r, b r s, c s -> a b c"
METHODS = {
    "svd": lambda x: td.svd(x, rank=2),
    "tucker": lambda x: td.tucker(x, rank=2),
    "tensor_train": lambda x: td.tensor_train(x, rank=2),
    "cp": lambda x: td.cp(x, rank=2),
    "als": lambda x: td.als(x, RING, rank=2),
    "ranks": td.ranks,
    "explore": td.explore,
    "a stack": lambda x: td.svd(td.Stack.from_arrays(slices(x))[0], rank=2),
    "a stack, whole": lambda x: td.cp(td.Stack.from_arrays(slices(x))[0], rank=2),
}


def slices(x) -> dict:
    return {f"h.{i}.w.weight": part for i, part in enumerate(x)}


REFUSED = {
    "sparse": (lambda: torch.tensor(X).to_sparse(), r"a sparse tensor .*to_dense\(\)"),
    "meta": (lambda: torch.empty(4, 6, 5, device="meta"), "without numbers"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.tensor(X).float(), 0.1, 0, torch.qint8),
        r"dequantize\(\)",
    ),
    "masked": (lambda: np.ma.masked_array(X, X > 1), "mask is not read"),
    "objects": (lambda: X.astype(object), "an array of object"),
    "texts": (lambda: X.astype(str), "an array of <U"),
    "dates": (lambda: np.zeros(X.shape, "M8[s]"), "an array of datetime64"),
    "records": (lambda: np.zeros(X.shape, [("a", "f4")]), r"give one field, x\['name'\]"),
    "bytes": (lambda: np.zeros(X.shape, "V4"), "an array of |V4"),
    "too large": (lambda: np.full(X.shape, 3e38, np.float32), "may not fit float32"),
    "too small": (lambda: X * 1e-310, "has no square in float64"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@each("name", REFUSED)
@pytest.mark.parametrize("method", METHODS)
def test_what_holds_no_plain_numbers_is_refused(method, name):
    make, text = REFUSED[name]
    with pytest.raises(td.DataError, match=text):
        METHODS[method](make())


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_other_kinds_of_matrices_are_refused():
    with pytest.raises(td.DataError, match=r"numpy.asarray\(x\)"):
        td.svd(X[0].view(np.matrix), rank=1)
    with pytest.raises(td.DataError, match="to_dense"):
        td.svd(torch.tensor(X[0]).to_sparse_csr(), rank=1)
    with pytest.raises(td.DataError, match="one by one"):
        td.svd(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)]), rank=1)


SMALL = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("method", ["svd", "tucker", "tensor_train", "cp", "a stack"])
def test_small_floats_of_ml_dtypes_are_widened(method, dtype):
    x = (2 * X).astype(dtype)
    fit, wide = METHODS[method](x), METHODS[method](x.astype(np.float32))
    assert fit.error == wide.error
    assert all(a.dtype == np.float32 for a in fit.tensor.arrays.values())


@pytest.mark.parametrize("method", ["svd", "tucker", "tensor_train", "cp"])
def test_subnormal_float32_is_decomposed(method):
    x = (X * 1e-40).astype(np.float32)  # a few digits are left
    wide = METHODS[method](x.astype(np.float64) * 1e40)
    assert METHODS[method](x).error == pytest.approx(wide.error, rel=1e-3)


@pytest.mark.parametrize("order", [("float16", "float64"), ("int8", "float64")])
def test_slices_of_several_dtypes_keep_their_digits(order):
    x = X if order[0] == "float16" else np.concatenate([np.round(X[:1]), X[1:]])
    x[0] = x[0].astype(order[0])
    parts = {n: a.astype(order[min(i, 1)]) for i, (n, a) in enumerate(slices(x).items())}
    assert (td.Stack.from_arrays(parts)[0].dense().reshape(x.shape) == x).all()


@pytest.mark.parametrize("method", ["svd", "tucker", "tensor_train", "cp"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_decomposition_under_a_tracer_is_refused(method):
    x, dense = torch.tensor(X), lambda a: METHODS[method](a).tensor.to_dense()
    with pytest.raises(td.DataError, match="cannot be traced"):
        torch.jit.trace(dense, x)
    with pytest.raises(td.DataError, match="cannot be traced"):
        torch.vmap(dense)(torch.stack([x, x]))
