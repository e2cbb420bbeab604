"""Formats state their own einsum: shape, count, slices and rebuilding follow from it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import tol
from tdecomp.formats import FORMATS, Sum
from tdecomp.modes import Equation
from tests.formats.cases import CASES, chain
from tests.tables import each

EINSUM = [c for c in CASES if not isinstance(c, td.LowRank | Sum)]


@each("fmt", EINSUM)
def test_dense_is_the_einsum_of_the_equation(fmt):
    dense = np.einsum(fmt.equation.symbols, *fmt.arrays.values()).reshape(fmt.shape)
    np.testing.assert_allclose(fmt.to_dense(), dense, atol=tol("float64", dense.size))
    assert fmt.to_dense().shape == fmt.shape
    assert Equation.parse(str(fmt.equation)) == fmt.equation


@each("fmt", CASES)
def test_sites_are_slices_of_the_dense_tensor(fmt):
    matrices = fmt.to_dense().reshape(-1, *fmt.shape[-2:])
    assert fmt.n_sites == len(matrices)
    for site, matrix in enumerate(matrices):
        np.testing.assert_allclose(fmt.matrix(site), matrix, atol=tol("float64", matrix.size))
        left, right = fmt.pair(site)
        assert left.shape[1] == right.shape[0] <= max(fmt.shape)


@each("fmt", [c for c in CASES if c.shares_in])
def test_a_shared_basis_is_the_same_for_every_site(fmt):
    rights = [fmt.pair(site, shared_in=True)[1] for site in range(fmt.n_sites)]
    assert all(np.array_equal(right, rights[0]) for right in rights)


@each("fmt", CASES)
def test_rebuilt_from_its_arrays_and_layout(fmt):
    layout = json.loads(json.dumps(fmt.layout))
    again = FORMATS[type(fmt).__name__].build(fmt.modes, fmt.arrays, layout)
    np.testing.assert_array_equal(again.to_dense(), fmt.to_dense())
    assert again.rank == fmt.rank


def test_independent_svds_share_no_basis():
    with pytest.raises(td.ArgumentError, match="no common basis"):
        CASES[8].pair(0, shared_in=True)


def test_other_arrays_must_have_the_same_names():
    with pytest.raises(td.ArgumentError, match="expected the arrays"):
        CASES[0].with_arrays({"core": CASES[0].core})


BROKEN = [
    lambda: td.Tucker(("out", "in"), np.ones((2, 2)), (np.ones((3, 1)), None)),
    lambda: td.Tucker(("out", "in"), np.ones((2, 2)), (None,)),
    lambda: td.Tucker2(("out", "in"), np.ones((2, 2)), np.ones((3, 1)), np.ones((3, 2))),
    lambda: td.LowRank(("out", "in"), (), (2,), np.ones((3, 1)), np.ones(1), np.ones((1, 4))),
    lambda: td.CP(("out", "in"), np.ones(2), (np.ones((3, 2)), np.ones((4, 1)))),
    lambda: td.TT((("out",), ("in",)), (np.ones((1, 3, 2)), np.ones((1, 4, 1)))),
    lambda: td.TT((("out",), ("in",)), (np.ones((1, 3, 2)), np.ones((2, 4)))),
    lambda: td.TT((("out",), ("in",)), chain(np.random.default_rng(0), (3,), (4,)), ("out", "it")),
    lambda: td.Network(
        Equation.parse("out out r, r in -> out in"), (np.ones((3, 3, 1)), np.ones((1, 2)))
    ),
    lambda: td.LowRank(("l", "out", "in"), (), (1,), np.ones((3, 1)), np.ones(1), np.ones((1, 4))),
    lambda: td.LowRank(("out", "in"), (), (1,), np.ones(3), np.ones(1), np.ones((1, 4))),
    lambda: td.Tucker(("out",), np.ones(1), (np.ones(2),)),
    lambda: td.Tucker2(("out", "in"), np.ones((1, 1, 1)), np.ones((3, 1)), np.ones((4, 1))),
    lambda: td.LowRank(
        ("l", "out", "in"), (3,), (1,), np.ones((3, 1)), np.ones(1), np.ones((1, 4))
    ),
]


ONE = np.ones((1, 1))


@pytest.mark.parametrize(("name", "message"), [("in", "named twice"), ("my mode", "cannot name a")])
def test_names_that_no_equation_can_hold_are_refused(name, message):
    for build in (
        lambda modes: td.CP(modes, np.ones(1), (ONE, ONE)),
        lambda modes: td.Tucker(modes, ONE, (None, None)),
        lambda modes: td.Tucker2(modes, ONE, ONE, ONE, modes),
        lambda modes: td.LowRank(modes, (), (1,), ONE, np.ones(1), ONE),
        lambda modes: td.TT((modes,), (np.ones((1, 1, 1, 1)),)),
    ):
        with pytest.raises(td.ArgumentError, match=message):
            build((name, "in"))


@pytest.mark.parametrize("build", BROKEN)
def test_arrays_that_do_not_fit_are_refused(build):
    with pytest.raises(td.ArgumentError, match="fit|cannot have"):
        build()


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_an_uncompressed_tucker_is_paired_through_its_shorter_side(shape):
    fmt = td.Tucker(("out", "in"), np.arange(15.0).reshape(shape), (None, None))
    left, right = fmt.pair(0)
    assert left.shape[1] == 3
    np.testing.assert_array_equal(left @ right, fmt.core)


def test_a_network_of_parts_that_share_no_name_has_pairs_of_rank_one():
    vectors = tuple(np.arange(1.0, n + 1) for n in (3, 4, 5))
    outer = td.Network(Equation.parse("layer, out, in -> layer out in"), vectors)
    left, right = outer.pair(1)
    assert (left.shape, right.shape) == ((4, 1), (1, 5))
    np.testing.assert_array_equal(left @ right, outer.to_dense()[1])
    assert td.formats.to_lowrank(outer).rank == (1, 1, 1)
