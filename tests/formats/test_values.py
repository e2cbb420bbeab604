"""Formats and fits as values: equality, hash, numpy's protocol, and what they may be made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import tdecomp as td
from tdecomp._xp import to_numpy
from tdecomp.modes import Equation
from tests.formats.cases import CASES, chain, dense, like
from tests.tables import each

EACH = each("fmt", CASES)
EYE, ONES, A, B = np.eye(2), np.ones(2), np.ones((3, 2)), np.ones((4, 2))


@EACH
def test_equal_is_the_same_format_of_the_same_numbers(fmt):
    same = copy.deepcopy(fmt)
    assert fmt == same
    assert hash(fmt) == hash(same)
    assert fmt in [same]
    assert {fmt: 1}[same] == 1
    others = [like(fmt, seed=3), 2 * fmt, fmt.to_dense(), None, CASES[0][1:]]
    if type(fmt) is not td.Network:
        others.append(fmt.to_network())
    name, array = next(iter(fmt.arrays.items()))
    others.append(fmt.with_arrays(fmt.arrays | {name: array.astype(np.float32)}))
    changed = array.copy()
    changed[(0,) * array.ndim] += 1e-15 + abs(changed[(0,) * array.ndim]) * 1e-15
    others.append(fmt.with_arrays(fmt.arrays | {name: changed}))
    for other in others:
        assert fmt != other
    assert fmt not in others


def test_equality_in_every_library(xp):
    make = lambda like: like.with_arrays(
        {k: xp.asarray(a.tolist()) for k, a in like.arrays.items()}
    )
    for fmt in CASES:
        assert make(fmt) == make(fmt)
        assert hash(make(fmt)) == hash(make(fmt))
        assert make(fmt) != make(-1 * fmt)


def test_what_differs_beside_the_numbers():
    cp = td.CP("a b", ONES, (A, B))
    assert cp != td.CP("a c", ONES, (A, B))
    assert cp != td.CP("a b", torch.ones(2), (torch.ones(3, 2), torch.ones(4, 2)))
    assert cp != td.CP("a b", ONES, (A, np.ones((5, 2))))
    assert td.Tucker2("out in", EYE, A, A) != td.Tucker2("out in", EYE, A, A, ("in", "out"))
    odd = td.CP("a b", ONES, (A * np.nan, B))
    assert odd == copy.deepcopy(odd)
    nowhere = td.CP("a", None, (torch.ones(3, 2, device="meta"),))
    assert nowhere == nowhere
    assert nowhere != td.CP("a", None, (torch.ones(3, 2, device="meta"),))


def test_fits_and_spectra_are_values_too(rng):
    x = rng.standard_normal((4, 5, 6))
    for make in (
        lambda: td.tucker(x, rank=2),
        lambda: td.decompose([x, 2 * x], td.svd, rank=1),
        lambda: td.ranks(x),
        lambda: td.cp(x, rank=2),
    ):
        first, again = make(), make()
        assert first == again
        assert first == copy.deepcopy(first)
        assert hash(first) == hash(again)
        assert first in [again]
    assert td.tucker(x, rank=2) != td.tucker(x, rank=3)
    assert td.tucker(x, rank=2) != td.tucker(2 * x, rank=2)


@EACH
def test_numpy_makes_the_dense_array(fmt):
    expected = dense(fmt)
    for made in (np.asarray(fmt), np.array(fmt), np.asarray(fmt, dtype=np.complex64)):
        np.testing.assert_array_equal(made, expected.astype(made.dtype))
    assert np.asarray(fmt).dtype == np.float64
    assert np.linalg.norm(fmt) == pytest.approx(np.linalg.norm(expected))
    assert np.stack([fmt, fmt]).shape == (2, *fmt.shape)
    np.array(fmt)[...] = 0  # no view of the factors
    np.testing.assert_array_equal(dense(fmt), expected)


def test_numpy_and_the_other_libraries(xp):
    cp = CASES[10]
    own = cp.with_arrays({k: xp.asarray(a.tolist()) for k, a in cp.arrays.items()})
    np.testing.assert_array_equal(np.asarray(own), to_numpy(own.to_dense()))


def test_numpy_of_numbers_it_has_not():
    half = td.CP("a b", None, (torch.ones(3, 2).bfloat16(), torch.ones(4, 2).bfloat16()))
    assert np.asarray(half).dtype == np.float32
    tracked = td.CP("a", None, (torch.ones(3, 2, requires_grad=True),))
    assert np.asarray(tracked).tolist() == [2.0] * 3


def test_numpy_is_told_what_would_fill_the_memory():
    train = td.TT([f"m{k}" for k in range(65)], chain(np.random.default_rng(0), *[(2,)] * 65))
    with pytest.raises(td.ArgumentError, match=r"an array of \S+ numbers .*ask for"):
        np.asarray(train)
    with pytest.raises(ValueError, match="copy"):
        CASES[0].__array__(copy=False)


MADE = {
    "CP without weights": (
        lambda: td.CP(["a", "b"], None, [A, B]),
        td.CP(("a", "b"), ONES, (A, B)),
    ),
    "Tucker": (lambda: td.Tucker("a b", EYE, [A, None]), td.Tucker(("a", "b"), EYE, (A, None))),
    "Tucker2": (
        lambda: td.Tucker2("x y", EYE, A, B, "x y"),
        td.Tucker2(("x", "y"), EYE, A, B, ("x", "y")),
    ),
    "LowRank": (
        lambda: td.LowRank("l a b", np.array([2]), np.array([1, 1]), A, ONES, B.T),
        td.LowRank(("l", "a", "b"), (2,), (1, 1), A, ONES, B.T),
    ),
    "TT": (
        lambda: td.TT(["a", "b"], [A[None], B.T[..., None]]),
        td.TT((("a",), ("b",)), (A[None], B.T[..., None])),
    ),
    "MPO": (
        lambda: td.TT("(a b)", (np.ones((1, 3, 4, 1)),), "b a"),
        td.TT((("a", "b"),), (np.ones((1, 3, 4, 1)),), ("b", "a")),
    ),
    "Network": (
        lambda: td.Network("a r, b r -> a b", [A, B]),
        td.Network(Equation.parse("a r, b r -> a b"), (A, B)),
    ),
    "Sum": (
        lambda: td.formats.Sum([CASES[0], CASES[1]]),
        td.formats.Sum((CASES[0], CASES[1])),
    ),
}


@pytest.mark.parametrize(("make", "expected"), MADE.values(), ids=MADE.keys())
def test_names_as_text_and_lists_for_tuples(make, expected):
    made = make()
    assert made == expected
    assert hash(made) == hash(expected)
    np.testing.assert_array_equal(dense(made), dense(expected))


TURNED = td.CP("b a", None, (B, A))
REFUSED = {
    "factors 1 a list": (lambda: td.CP("a b", ONES, (A, B.tolist())), r"factors\[1\] must be an"),
    "one array for factors": (lambda: td.CP("a b", ONES, A), "factors must be a tuple of arrays"),
    "weights of numbers": (lambda: td.CP("a b", [1.0, 1.0], (A, B)), "weights must be an array"),
    "weights matrix": (lambda: td.CP("a b", A, (A, B)), "cannot have weights"),
    "one weight more": (lambda: td.CP("a b", np.ones(3), (A, B)), r"cannot have weights \(3,\)"),
    "no factors": (lambda: td.CP("", None, ()), "weights=None stands for ones"),
    "vectors for factors": (lambda: td.CP("a", None, (ONES,)), "weights=None stands for ones"),
    "modes of numbers": (lambda: td.CP((0, 1), ONES, (A, B)), "modes: 0 is not the name"),
    "one mode a number": (lambda: td.CP(2, ONES, (A, B)), "modes=2 must be text"),
    "three modes": (lambda: td.CP("a b c", ONES, (A, B)), "one .n, R. factor per mode"),
    "a mode twice": (lambda: td.CP("a a", ONES, (A, B)), "'a' is named twice"),
    "core a list": (lambda: td.Tucker("a b", EYE.tolist(), (A, B)), "core must be an array"),
    "factors None": (lambda: td.Tucker("a b", EYE, None), "factors must be a tuple of arrays"),
    "a core of two modes": (
        lambda: td.Tucker("a b c", EYE, (A, B, A)),
        r"cannot have a core \(2, 2\)",
    ),
    "a wide factor": (lambda: td.Tucker("a b", EYE, (A.T, B)), "factors of widths"),
    "left None": (lambda: td.Tucker2("out in", EYE, None, A), "left must be an array"),
    "one basis": (lambda: td.Tucker2("out in", EYE, A, A, "out"), "two names of modes"),
    "no such basis": (lambda: td.Tucker2("a b", EYE, A, A), "no mode 'out'"),
    "ranks a number": (lambda: td.LowRank("a b", (), 2, A, ONES, B.T), "ranks=2 must be a tuple"),
    "half a rank": (lambda: td.LowRank("a b", (), (1.5,), A, ONES, B.T), "must be whole numbers"),
    "negative ranks": (
        lambda: td.LowRank("l a b", (2,), (3, -1), A, ONES, B.T),
        "must be whole numbers, 0 or more",
    ),
    "sites text": (lambda: td.LowRank("a b", "l", (2,), A, ONES, B.T), "sites='l' must be"),
    "ranks of other sites": (lambda: td.LowRank("l a b", (3,), (2,), A, ONES, B.T), "do not fit"),
    "s None": (lambda: td.LowRank("a b", (), (2,), A, None, B.T), "s must be an array"),
    "cores an array": (lambda: td.TT("a b", np.ones((1, 3, 1))), "cores must be a tuple"),
    "axes numbers": (lambda: td.TT((1, 2), (A[None], B.T[..., None])), "axes: 1 is not the name"),
    "a core without bonds": (lambda: td.TT("a b", (A, B)), "cannot have cores of shapes"),
    "too few cores": (lambda: td.TT("a b", (A[None],)), "cannot have cores of shapes"),
    "no cores": (lambda: td.TT("", ()), "cannot have cores of shapes"),
    "other output": (lambda: td.TT("a", (np.ones((1, 3, 1)),), "b"), "name every mode once"),
    "a wide end": (lambda: td.TT("a", (A[None],)), "the outer bonds are 1"),
    "tensors first": (lambda: td.Network((A, B), "a r, b r -> a b"), "an equation and its tensors"),
    "no arrow": (lambda: td.Network("a r, b r", (A, B)), "no '->'"),
    "one tensor": (lambda: td.Network("a r, b r -> a b", (A,)), "has 2 factors, got 1"),
    "a sum of one": (lambda: td.formats.Sum(TURNED), "a tuple of formats, got CP"),
    "a sum of arrays": (lambda: td.formats.Sum((A, A)), "a tuple of formats"),
    "an empty sum": (lambda: td.formats.Sum(()), "one part or more"),
    "a sum of two shapes": (lambda: td.formats.Sum((TURNED, TURNED[1:])), "cannot have a part"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_parts_are_refused_by_name(make, text):
    with pytest.raises(td.ArgumentError, match=text):
        make()


def test_ranks_as_arrays(rng):
    x = rng.standard_normal((4, 5, 6))
    assert td.tucker(x, rank=np.array([2, 3, 2])) == td.tucker(x, rank=(2, 3, 2))
    assert td.cp(x, rank=np.array(2)) == td.cp(x, rank=2)
    with pytest.raises(td.ArgumentError, match="needs 3 entries"):
        td.tucker(x, rank=np.array([2, 3]))
    with pytest.raises(td.ArgumentError, match="whole number"):
        td.tucker(x, rank=np.array([2.5, 3, 2]))
