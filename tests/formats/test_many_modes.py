"""Formats of 21 to 200 modes: more than there are letters, and than arrays may have axes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import tdecomp as td
from tdecomp._xp import tol
from tdecomp.formats import hadamard, to_tt


def train(d: int, seed: int = 0) -> td.TT:
    rng, bonds = np.random.default_rng(seed), [1, *[3] * (d - 1), 1]
    cores = [rng.standard_normal((a, 2, b)) / 2 for a, b in zip(bonds, bonds[1:], strict=False)]
    return td.TT(tuple((f"m{k}",) for k in range(d)), tuple(cores))


def components(d: int, seed: int = 0) -> td.CP:
    rng = np.random.default_rng(seed)
    factors = tuple(rng.standard_normal((2, 3)) for _ in range(d))
    return td.CP(tuple(f"m{k}" for k in range(d)), np.ones(3), factors)


def tucker(d: int, seed: int = 0) -> td.Tucker:
    rng = np.random.default_rng(seed)
    core = rng.standard_normal((2,) * 5 + (1,) * (d - 5))
    factors = tuple(rng.standard_normal((2, r)) for r in core.shape)
    return td.Tucker(tuple(f"m{k}" for k in range(d)), core, factors)


SIZES = [(train, 21), (train, 65), (train, 200), (components, 33), (components, 200)]
SIZES += [(tucker, 21), (tucker, 33), (tucker, 64)]


@pytest.mark.parametrize(("make", "d"), SIZES)
def test_algebra_of_many_modes(make, d):
    a, b = make(d), make(d, seed=1)
    square = float(a.norm()) ** 2
    assert float(a.inner(a)) == pytest.approx(square, rel=1e-9)
    total = square + 2 * float(a.inner(b)) + float(b.norm()) ** 2
    assert float((a + b).norm()) ** 2 == pytest.approx(total, rel=1e-9)
    assert float((2 * a).norm()) == pytest.approx(2 * float(a.norm()), rel=1e-12)
    assert a[0].shape == (2,) * (d - 1)
    entry = (1, *[0] * (d - 1))
    product = float(hadamard(a, b)[entry].to_dense())
    assert product == pytest.approx(float(a[entry].to_dense() * b[entry].to_dense()), rel=1e-9)
    assert "more" in repr(a)
    assert len(repr(a)) < 400


@pytest.mark.parametrize(("make", "d"), SIZES)
def test_trains_and_files_of_many_modes(make, d, tmp_path):
    a = make(d)
    assert float(to_tt(a).inner(a)) == pytest.approx(float(a.norm()) ** 2, rel=1e-9)
    rounded = td.tensor_train(a, rank=3)
    assert rounded.error <= 1
    td.save(a, tmp_path / "a.safetensors")
    back = td.load(tmp_path / "a.safetensors")
    assert all((x == back.arrays[n]).all() for n, x in a.arrays.items())


@pytest.mark.parametrize(("make", "d"), [(train, 65), (components, 200), (tucker, 64)])
def test_what_would_fill_the_memory_is_refused_with_its_size(make, d):
    with pytest.raises(td.ArgumentError, match=r"an array of \S+ numbers \(\S+ GB\)"):
        make(d).to_dense()
    with pytest.raises(td.DataError, match=r"each of the \S+ matrices"):
        td.svd(make(d), rank=1)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("make", [train, components, tucker])
def test_norms_of_small_floats_are_those_of_the_widened(make, dtype):
    wide = make(6)
    small = wide.with_arrays({n: a.astype(dtype) for n, a in wide.arrays.items()})
    wide = wide.with_arrays({n: a.astype(np.float64) for n, a in small.arrays.items()})
    assert float(small.norm()) == pytest.approx(float(wide.norm()), rel=tol("float64", 100))


def test_formats_of_odd_arrays_are_refused():
    x = np.eye(3)
    for odd, text in (
        (torch.tensor(x).to_sparse(), "sparse"),
        (np.ma.masked_array(x, x > 0), "masked"),
        (x.astype(object), "object"),
        (x.view(np.matrix), "asarray"),
    ):
        with pytest.raises(td.DataError, match=text):
            td.Tucker(("a", "b"), odd, (odd, odd))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_format_may_be_traced():
    eye, x = torch.eye(5), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    dense = torch.jit.trace(lambda a: td.Tucker(("a", "b"), a, (None, eye)).to_dense(), x)
    assert torch.equal(dense(2 * x), 2 * x)
