"""Sums of different formats: exact, nothing recompressed, and refused where no sum exists."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import tdecomp as td
from tdecomp.formats import Sum, hadamard, to_cp, to_lowrank, to_tt, to_tucker
from tests.formats.cases import CASES, agree, chain, dense, factor, ids, network, space, sum_cases

MODES = ("layer", "out", "in")
SPACE = [f for f in space() if f.modes == MODES]
SUMS = pytest.mark.parametrize("fmt", [c for c in CASES if isinstance(c, Sum)], ids=ids)


@pytest.mark.parametrize(("a", "b"), list(product(SPACE, SPACE)), ids=ids)
def test_any_two_formats_add_up(a, b):
    total = a + b
    agree(total, dense(a) + dense(b))
    agree(a - b, dense(a) - dense(b))
    if type(a) is not type(b):
        assert isinstance(total, Sum)
        assert total.n_params == a.n_params + b.n_params


def test_formats_of_another_chain_equation_or_basis_add_up(rng):
    chains = [
        td.TT((("layer",), ("out",), ("in",)), chain(rng, (4,), (7,), (5,))),
        td.TT((("out",), ("layer",), ("in",)), chain(rng, (7,), (4,), (5,)), MODES),
    ]
    bases = [
        td.Tucker2(MODES, factor(rng, 4, 2, 3), factor(rng, 7, 2), factor(rng, 5, 3)),
        td.Tucker2(
            MODES, factor(rng, 2, 7, 3), factor(rng, 4, 2), factor(rng, 5, 3), ("layer", "in")
        ),
    ]
    networks = [
        network("layer out r, layer in r -> layer out in", rng),
        network("out r, layer in r -> layer out in", rng),
        network("layer out, in -> layer out in", rng),
    ]
    falling_apart = [networks[2], networks[2]]
    for a, b in [chains, bases, networks[:2], falling_apart]:
        assert isinstance(a + b, Sum)
        agree(a + b, dense(a) + dense(b))


def test_sums_are_flat_and_keep_their_parts():
    a, b, c, *_ = SPACE
    total = (a + b) + (c + b)
    assert isinstance(total, Sum)
    assert total.parts == (a, b, c, b)
    assert Sum((Sum((a,)), b)).parts == (a, b)


def test_a_sum_of_shared_bases_shares_its_basis(rng):
    a, b = (
        td.Tucker2(MODES, factor(rng, 4, 1, 1), factor(rng, 7, 1), factor(rng, 5, 1)),
        td.CP(MODES, factor(rng, 1), (factor(rng, 4, 1), factor(rng, 7, 1), factor(rng, 5, 1))),
    )
    total = a + b
    assert total.shares_in
    assert total.pair(2, shared_in=True)[1].shape == (2, 5)
    assert total.pair(2)[0].shape == (7, 2)


def test_a_part_without_rank_is_zero(rng):
    none = td.LowRank(MODES, (4,), (0,) * 4, factor(rng, 7, 0), np.ones(0), factor(rng, 0, 5))
    other = td.Tucker2(MODES, factor(rng, 4, 2, 3), factor(rng, 7, 2), factor(rng, 5, 3))
    total = none + other
    for found in (total, total.to_network(), to_tucker(total), to_tt(total), to_lowrank(total)):
        agree(found, dense(other))
    np.testing.assert_allclose(total.norm(), np.linalg.norm(dense(other)))
    agree(none + none, np.zeros((4, 7, 5)))
    assert to_lowrank(none + none).ranks == (0,) * 4


def test_sums_of_vectors_and_numbers():
    fmt = next(f for f in sum_cases() if f.modes == MODES)
    vector = fmt[:, 0, 1]
    full = dense(fmt)
    agree(vector, full[:, 0, 1])
    agree(vector.to_network(), full[:, 0, 1])
    agree(to_tucker(vector), full[:, 0, 1])
    agree(to_tt(vector), full[:, 0, 1])
    agree(to_cp(vector), full[:, 0, 1])
    agree(hadamard(vector, vector), full[:, 0, 1] ** 2)
    number = vector[2]
    agree(number.to_network(), full[2, 0, 1])
    np.testing.assert_allclose(number.norm(), abs(full[2, 0, 1]))


@SUMS
def test_a_tucker_of_a_sum_is_no_wider_than_its_parts(fmt):
    tucker = to_tucker(fmt)
    parts = [to_tucker(part).rank for part in fmt.parts]
    for width, n, ranks in zip(tucker.rank, fmt.shape, zip(*parts, strict=True), strict=True):
        assert width <= min(n, sum(ranks))


def test_a_tucker_of_a_large_sum_never_forms_it(rng):
    n = 3000
    modes = ("a", "b", "c")
    parts = [td.CP(modes, np.ones(2), tuple(factor(rng, n, 2) for _ in modes)) for _ in range(2)]
    tucker = td.Tucker(modes, factor(rng, 2, 2, 2), tuple(factor(rng, n, 2) for _ in modes))
    total = Sum((parts[0], tucker, parts[1]))
    assert to_tucker(total).rank == (6, 6, 6)
    np.testing.assert_allclose(to_tucker(total).norm(), total.norm(), rtol=1e-10)
    assert to_tt(total).rank == (1, 6, 6, 1)


def test_what_is_no_sum_is_refused(rng):
    a = td.CP(MODES, np.ones(1), (factor(rng, 4, 1), factor(rng, 7, 1), factor(rng, 5, 1)))
    with pytest.raises(td.ArgumentError, match="cannot have a part over layer out in of sizes"):
        Sum((a, a[:2]))
    with pytest.raises(td.ArgumentError, match="one part or more"):
        Sum(())
    trains = [
        td.TT((("a",), ("b", "in")), chain(rng, (m,), (n, 3)), (("a", "b"), "in"))
        for m, n in ((2, 4), (4, 2))
    ]
    with pytest.raises(td.ArgumentError, match="split both in the same way"):
        trains[0] + trains[1]


def test_a_split_axis_and_a_whole_one_of_the_same_name_make_one_network(rng):
    train = td.TT((("a",), ("b", "in")), chain(rng, (2,), (3, 4)), (("a", "b"), "in"))
    whole = to_tucker(train) * 2.0
    for total in (train + whole, whole + train):
        agree(total, 3 * dense(train))
        agree(total.to_network(), 3 * dense(train))
        np.testing.assert_allclose(total.norm(), 3 * np.linalg.norm(dense(train)))
