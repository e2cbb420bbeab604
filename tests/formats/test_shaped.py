"""Formats from sizes and ranks: random ones, zeros, ones and the identity, in every library."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy
from tests.formats.cases import dense

SIZES = (4, 6, 5)
SHAPED = {
    "CP": (td.CP, SIZES, 3),
    "Tucker": (td.Tucker, SIZES, (2, 3, 2)),
    "Tucker2": (td.Tucker2, SIZES, 2),
    "LowRank": (td.LowRank, SIZES, (2, 0, 5, 1)),
    "TT": (td.TT, SIZES, 3),
    "MPO": (td.TT, [(2, 3), (3, 2), (2, 4)], 4),
}
EACH = pytest.mark.parametrize(("kind", "shape", "rank"), SHAPED.values(), ids=SHAPED.keys())


def size_of(shape) -> tuple[int, ...]:
    return (12, 24) if isinstance(shape[0], tuple) else tuple(shape)


@EACH
def test_random_ones_follow_their_seed(kind, shape, rank):
    make = lambda seed: kind.random(shape, rank, random_state=seed)
    assert make(0) == kind.random(shape, rank) == make(np.random.default_rng(0))
    assert make(1) != make(0)
    assert make(0).shape == size_of(shape)
    assert {a.dtype.name for a in make(0).arrays.values()} == {"float64"}
    assert isinstance(make(0), kind)


@EACH
def test_random_entries_have_mean_0_and_variance_1(kind, shape, rank):
    entries = [dense(kind.random(shape, rank, random_state=seed)) for seed in range(200)]
    if kind is td.LowRank:  # a site of rank 0 is zero
        entries = [x[[0, 2, 3]] for x in entries]
    assert abs(np.mean(entries)) < 0.1
    assert np.mean(np.square(entries)) == pytest.approx(1, abs=0.25)


@EACH
def test_random_in_every_library_and_dtype(kind, shape, rank, xp):
    for dtype in ("float32", "float64", "complex64"):
        like = xp.asarray([1.0], dtype=xp.float32)
        if dtype == "float64" and "jax" in xp.__name__:
            continue  # outside its x64 scope
        fmt = kind.random(shape, rank, like=like, dtype=getattr(xp, dtype))
        for name, array in kind.random(shape, rank, dtype=dtype).arrays.items():
            assert type(fmt.arrays[name]) is type(like)
            np.testing.assert_array_equal(to_numpy(fmt.arrays[name]), array)
    for array in kind.random(shape, rank, like=xp.asarray([1.0], dtype=xp.float32)).arrays.values():
        assert array.dtype == xp.float32


@EACH
def test_zeros_and_ones(kind, shape, rank):
    del rank
    for make, value in ((kind.zeros, 0.0), (kind.ones, 1.0)):
        fmt = make(shape, dtype="float32")
        np.testing.assert_array_equal(dense(fmt), np.full(size_of(shape), value, "float32"))
        assert dense(fmt).dtype == np.float32


def test_names_and_ranks_are_literal():
    assert (
        td.TT.random(SIZES, (2, 3)).rank == td.TT.random(SIZES, (1, 2, 3, 1)).rank == (1, 2, 3, 1)
    )
    assert td.TT.random(SIZES, 100).rank == (1, 4, 5, 1)
    assert td.TT.random(np.array(SIZES), np.array([2, 3])).rank == (1, 2, 3, 1)
    assert td.Tucker.random(SIZES, np.int64(9)).rank == SIZES
    assert td.LowRank.random((6, 5), 2).ranks == (2,)
    assert td.CP.random(SIZES, 40, names="layer out in").modes == ("layer", "out", "in")
    assert td.Tucker2.random(SIZES, (2, 3), names=["a", "b", "c"]).compressed == ("b", "c")
    mpo = td.TT.random([(2, 3), (4, 5)], 2, names="(a b) (c d)")
    assert mpo.modes == ("(a c)", "(b d)")
    assert td.TT.random([(2, 3)], 2).modes == ("o1", "i1")


def test_networks_of_sizes():
    sizes = {"head": 2, "hd": 3, "in": 4, "r": 2, "s": 3}
    text = "head r s, hd r, in s -> (head hd) in"
    entries = [dense(td.Network.random(text, sizes, random_state=k)) for k in range(200)]
    assert entries[0].shape == (6, 4)
    assert np.mean(np.square(entries)) == pytest.approx(1, abs=0.25)
    with pytest.raises(td.ArgumentError, match="no size for s of"):
        td.Network.random(text, {"head": 2, "hd": 3, "in": 4, "r": 2})


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (2, 1, 4)])
def test_the_identity(sizes, xp):
    eye = td.TT.eye(sizes, like=xp.asarray([1.0]), dtype="float32")
    np.testing.assert_array_equal(dense(eye), np.eye(int(np.prod(sizes))))
    assert set(eye.rank) == {1}


@EACH
def test_astype(kind, shape, rank):
    fmt = kind.random(shape, rank)
    for dtype in ("float32", np.float32, np.dtype("float32"), np.zeros(1, "float32").dtype):
        small = fmt.astype(dtype)
        assert {a.dtype.name for a in small.arrays.values()} == {"float32"}
        assert type(small) is kind
        np.testing.assert_allclose(dense(small), dense(fmt), atol=1e-4)
    assert fmt.astype("float64") == fmt
    assert fmt.astype(complex).astype("complex64") == fmt.astype("complex64")
    total = (fmt + fmt.to_network()).astype("float32")
    assert total.to_dense().dtype == np.float32


REFUSED = {
    "Tucker rank": (
        lambda: td.Tucker.random(SIZES, (2, 7, 2)),
        "7 of the mode 'm1' must be 1 to 6",
    ),
    "Tucker ranks": (lambda: td.Tucker.random(SIZES, (2, 2)), "needs 3 entries: m0, m1, m2"),
    "Tucker2 rank": (lambda: td.Tucker2.random(SIZES, (2, 6), names="l out in"), "'in' must be"),
    "Tucker2 of a vector": (lambda: td.Tucker2.random((4,), 1), "two modes or more"),
    "LowRank rank": (lambda: td.LowRank.random(SIZES, (2, 6, 0, 0)), "'site 1' must be 0 to 5"),
    "LowRank ranks": (lambda: td.LowRank.random(SIZES, (2, 2)), "needs 4 entries: site 0"),
    "LowRank of a vector": (lambda: td.LowRank.random((4,), 1), "two modes"),
    "TT bond": (lambda: td.TT.random(SIZES, (5, 3)), "'bond 1' must be 1 to 4"),
    "TT bonds": (lambda: td.TT.random(SIZES, (2, 3, 2)), "needs 2 entries: bond 1, bond 2"),
    "TT ends": (lambda: td.TT.random(SIZES, (2, 3, 3, 1)), "outer bonds of a TT are 1"),
    "CP rank": (lambda: td.CP.random(SIZES, 0), "rank=0 must be 1 or more"),
    "CP ranks": (lambda: td.CP.random(SIZES, (2, 2)), "must be whole numbers"),
    "half a rank": (lambda: td.TT.random(SIZES, 2.5), "must be whole numbers"),
    "no sizes": (lambda: td.CP.random((), 2), "must be sizes of modes"),
    "a size of 0": (lambda: td.Tucker.ones((3, 0)), "1 or more each"),
    "one size": (lambda: td.CP.zeros(4), "shape=4 must be a tuple"),
    "cores of two kinds": (lambda: td.TT.random([(2, 3), 4], 2), "as many modes for every core"),
    "names": (lambda: td.CP.random(SIZES, 2, names="a b"), "must be 3 different names"),
    "names of an MPO": (lambda: td.TT.eye((2, 3), names="a b"), "2 groups of 2 names"),
    "dtype": (lambda: td.CP.random(SIZES, 2, dtype="float8"), "no numbers of dtype 'float8'"),
    "whole numbers": (lambda: td.CP.random(SIZES, 2, dtype="int64"), "real or complex floats"),
    "imaginary parts": (
        lambda: td.CP.random(SIZES, 2, dtype="complex64").astype("float32"),
        "would lose imaginary parts",
    ),
    "no dtype": (lambda: td.CP.random(SIZES, 2).astype("word"), "numpy has no numbers of dtype"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_sizes_that_do_not_fit_their_ranks_are_refused_by_name(make, text):
    with pytest.raises(td.ArgumentError, match=text):
        make()
