"""Factor matching against TensorLy's congruence, and against every permutation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy
from tdecomp.formats import match_factors
from tests.formats.cases import dense

SIZES = (4, 6, 5)


def shuffled(cp: td.CP, seed: int, noise: float = 0.0) -> td.CP:
    """The same tensor with its terms in another order and its columns turned and stretched."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(cp.rank)
    scale = rng.choice([-3.0, -0.5, 2.0], (len(cp.factors), cp.rank))
    factors = [f[:, order] * c for f, c in zip(cp.factors, scale, strict=True)]
    factors = [f + noise * rng.standard_normal(f.shape) for f in factors]
    return td.CP(cp.modes, cp.weights[order] / scale.prod(axis=0), tuple(factors))


@pytest.mark.parametrize("rank", [1, 2, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_tensor_is_found_again(rank, weighted):
    a = td.CP.random(SIZES, rank, random_state=1)
    b = shuffled(a, seed=2)
    found = match_factors(a, b, weighted=weighted)
    assert found.score == pytest.approx(1, abs=1e-12)
    assert found == match_factors(a, b, weighted=weighted)
    np.testing.assert_allclose(dense(found.tensor), dense(b), atol=1e-12)
    for f, g in zip(a.factors[:-1], found.tensor.factors[:-1], strict=True):
        assert (np.sum(f * g, axis=0) > 0).all()
    terms = [c.weights * np.prod([f[0] for f in c.factors], axis=0) for c in (a, found.tensor)]
    np.testing.assert_allclose(terms[0], terms[1])


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_tensorly(seed):
    factors = pytest.importorskip("tensorly.metrics.factors")
    a, b = (td.CP.random(SIZES, 4, random_state=10 * seed + k) for k in range(2))
    score, permutation = factors.congruence_coefficient(list(a.factors), list(b.factors))
    found = match_factors(a, b)
    assert found.score == pytest.approx(score, rel=1e-12)
    assert list(found.permutation) == list(permutation)


@pytest.mark.parametrize("seed", range(3))
def test_the_weighted_score_is_the_best_of_all_orders(seed):
    a = td.CP.random(SIZES, 4, random_state=seed)
    b = shuffled(2 * a, seed=seed, noise=0.3)
    sizes = [
        c.weights * np.prod([np.linalg.norm(f, axis=0) for f in c.factors], axis=0) for c in (a, b)
    ]
    sizes = np.abs(sizes)

    def score(order) -> float:
        total = 1 - abs(sizes[0] - sizes[1][order]) / np.maximum(sizes[0], sizes[1][order])
        for f, g in zip(a.factors, b.factors, strict=True):
            f, g = f / np.linalg.norm(f, axis=0), g[:, order] / np.linalg.norm(g[:, order], axis=0)
            total = total * abs(np.sum(f * g, axis=0))
        return float(total.mean())

    best = max(permutations(range(4)), key=lambda order: score(list(order)))
    found = match_factors(a, b, weighted=True)
    assert found.permutation == best
    assert found.score == pytest.approx(score(list(best)))
    assert found.congruence.mean() == pytest.approx(found.score)


def test_complex_columns_are_turned_by_their_phase():
    a = td.CP.random(SIZES, 3, dtype="complex128")
    turns = np.exp(1j * np.arange(9.0).reshape(3, 3))
    b = td.CP(a.modes, a.weights, tuple(f * t for f, t in zip(a.factors, turns, strict=True)))
    found = match_factors(a, b)
    assert found.score == pytest.approx(1)
    np.testing.assert_allclose(found.tensor.factors[0], a.factors[0], atol=1e-12)
    np.testing.assert_allclose(dense(found.tensor), dense(b), atol=1e-12)


def test_every_library_keeps_its_arrays(xp):
    like = xp.asarray([1.0], dtype=xp.float32)
    a = td.CP.random(SIZES, 3, like=like)
    found = match_factors(a, a[::, ::, ::] * -2.0)
    assert found.score == pytest.approx(1, abs=1e-6)
    assert {type(x) for x in found.tensor.arrays.values()} == {type(like)}
    assert {x.dtype for x in found.tensor.arrays.values()} == {like.dtype}
    np.testing.assert_allclose(to_numpy(found.tensor.weights), -2 * np.ones(3))


def test_a_column_of_zeros_agrees_with_nothing():
    a = td.CP("x y", None, (np.eye(3, 2), np.eye(4, 2)))
    b = td.CP("x y", None, (np.eye(3, 2) * [1, 0], np.eye(4, 2)))
    for weighted in (False, True):
        assert match_factors(a, b, weighted=weighted).congruence.tolist() == [1, 0]
    huge = td.CP("x y", None, (1e300 * np.eye(3, 2), 1e-300 * np.eye(4, 2)))
    assert match_factors(a, huge).score == 1


A = td.CP.random(SIZES, 2)
REFUSED = [
    (lambda: match_factors(A, td.CP.random(SIZES, 3)), "the same modes, sizes and rank"),
    (lambda: match_factors(A, td.CP.random(SIZES, 2, names="a b c")), "the same modes"),
    (lambda: match_factors(A, A[:2]), "the same modes, sizes"),
    (lambda: match_factors(A, dense(A)), "expected two CP, got CP and ndarray"),
]


@pytest.mark.parametrize(("act", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_only_two_cp_of_one_kind_are_matched(act, text):
    with pytest.raises(td.ArgumentError, match=text):
        act()
