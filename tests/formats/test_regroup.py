"""The modes of a train regrouped: numpy's reshape of the dense tensor, at narrow bonds."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import regroup, to_tt
from tests.formats.cases import dense

SPLITS = [
    ((12,), (2, 2, 3)),
    ((2, 2, 3), (12,)),
    ((4, 6, 5), (2, 2, 2, 3, 5)),
    ((2, 2, 2, 3, 5), (4, 6, 5)),
    ((4, 6), (6, 4)),  # the products never agree: one core on the way
    ((8, 9, 4), (2, 12, 3, 4)),
    ((4, 6, 5), (4, 6, 5)),
    ((1, 4, 1, 5, 1), (2, 2, 5)),
    ((4, 5), (1, 4, 1, 5, 1)),
    ((2, 2, 6), (1, 4, 1, 6)),
    ((2,) * 10, (4,) * 5),
    ((4,) * 5, (2,) * 10),
    ((1,), (1, 1)),
]


@pytest.mark.parametrize(("old", "new"), SPLITS, ids=str)
def test_a_train_is_reshaped(old, new):
    check_reshaped(old, new, np.ones(1, "float32"))


def test_trains_of_every_library(xp):
    check_reshaped((4, 6, 5), (2, 2, 2, 3, 5), xp.asarray([1.0], dtype=xp.float32))


def check_reshaped(old, new, like) -> None:
    train = td.TT.random(old, 3, random_state=1, like=like)
    made = regroup(train, new)
    assert made.shape == new
    expected = dense(train).reshape(new)
    np.testing.assert_allclose(dense(made), expected, atol=100 * tol("float32", expected.size))
    back = regroup(made, old)
    assert all(r <= q for r, q in zip(back.rank, train.rank, strict=True))
    for core in made.cores[:-1]:
        columns = to_numpy(core).reshape(-1, core.shape[-1])
        np.testing.assert_allclose(columns.T @ columns, np.eye(core.shape[-1]), atol=1e-4)


PAIRS = [
    ([(6, 4)], [(2, 2), (3, 2)]),
    ([(2, 2), (3, 2)], [(6, 4)]),
    ([(4, 9), (6, 2)], [(2, 3), (2, 3), (2, 1), (3, 2)]),
    ([(2, 1), (1, 3)], [(1, 3), (2, 1)]),
    ([(2, 3), (4, 5), (1, 2)], [(8, 15), (1, 2)]),
]


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=str)
def test_a_matrix_stays_the_matrix(old, new):
    train = td.TT.random(old, 4, random_state=1)
    made = regroup(train, new)
    assert [core.shape[1:-1] for core in made.cores] == new
    np.testing.assert_allclose(dense(made), dense(train), atol=1e-12)


def test_bonds_are_as_narrow_as_the_values_allow():
    line = td.TT("x", (np.arange(2.0**16)[None, :, None],))
    made = regroup(line, (2,) * 16)
    assert made.rank == (1, *[2] * 15, 1)
    assert float((regroup(made, (2**16,)) - td.TT("m0", line.cores)).norm()) < 1e-14 * 2**24
    wide = td.TT.random((4,) * 12, 5, random_state=2)
    assert max(regroup(wide, (2,) * 24).rank) <= 10
    assert regroup(regroup(wide, (2,) * 24), (4,) * 12).rank == wide.rank


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_a_core_is_cut_by_the_norm_of_the_tensor(scale):
    """What a neighbour magnifies is not cut off, what it hides is."""
    rng = np.random.default_rng(0)
    first = np.diag([1.0, 1e-20])[None]  # (1, 2, 2)
    last = (np.asarray([[1.0], [1e20]]) * rng.standard_normal((2, 6)))[..., None]
    train = td.TT("a b", (scale * first, last))
    expected = dense(train).reshape(12)
    made = dense(regroup(train, (2, 2, 3))).reshape(12)
    np.testing.assert_allclose(made, expected, atol=1e-13 * np.abs(expected).max())
    assert regroup(0 * train, (12,)).rank == (1, 1)


def test_rounding_to_an_error_is_one_more_call():
    smooth = np.exp(-(np.linspace(0, 1, 2**12) ** 2))
    fine = regroup(td.TT("x", (smooth[None, :, None],)), (2,) * 12)
    short = td.tt_round(fine, error=1e-5)
    assert float((fine - short).norm()) <= 1e-5 * float(fine.norm())
    assert short.n_params < fine.n_params < 2**12
    np.testing.assert_allclose(dense(short).reshape(-1), smooth, atol=1e-3)


def test_names_are_those_given():
    train = td.TT.random((4, 6), 2, names="out in")
    assert regroup(train, (2, 2, 6), names="o1 o2 in").modes == ("o1", "o2", "in")
    mpo = regroup(td.TT.eye((6,)), [(2, 2), (3, 3)], names="(a b) (c d)")
    assert mpo.modes == ("(a c)", "(b d)")
    np.testing.assert_array_equal(dense(mpo).round(12), np.eye(6))


TRAIN = td.TT.random((4, 6), 2, names="out in")
REFUSED = {
    "sizes": (lambda: regroup(TRAIN, (5, 5)), r"\(5, 5\) multiplies to 25, .* \(4, 6\) to 24"),
    "pairs": (lambda: regroup(TRAIN, [(2, 2), (2, 3)]), "multiplies to 4 x 6, .*to 24"),
    "sides": (lambda: regroup(td.TT.eye((6,)), [(2, 3), (3, 2)] * 2), "multiplies to 36 x 36"),
    "order": (lambda: regroup(TRAIN.permute("in out"), (24,)), "make a train of them"),
    "no sizes": (lambda: regroup(TRAIN, ()), "must be sizes"),
    "a size of 0": (lambda: regroup(TRAIN, (0, 24)), "1 or more"),
    "names": (lambda: regroup(TRAIN, (24,), names="a b"), "must be 1 different names"),
    "one large core": (
        lambda: regroup(td.TT.random((3,) * 20 + (2,), 2), (2,) + (3,) * 20),
        "would be joined to one core of .* rows: choose sizes",
    ),
}


@pytest.mark.parametrize(("act", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_regrouped_is_refused(act, text):
    with pytest.raises(td.ArgumentError, match=text):
        act()


def test_other_chains_by_way_of_a_train(rng):
    turned = TRAIN.permute("in out")
    np.testing.assert_allclose(dense(regroup(to_tt(turned), (24,))), dense(turned).reshape(24))
