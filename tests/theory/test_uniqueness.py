"""Where Kruskal's condition holds the components come back, where it fails there are others."""

from __future__ import annotations

import numpy as np
import pytest
from sympy import Matrix, eye

import tdecomp as td
from theory.components import is_exactly, outer_sum
from theory.uniqueness import kruskal_holds, kruskal_rank


def test_kruskal_ranks():
    assert kruskal_rank(Matrix([[1, 2, 0], [0, 0, 1]])) == 1  # two columns in parallel
    assert kruskal_rank(Matrix([[1, 0, 1, 1], [0, 1, 1, 2], [0, 0, 0, 0]])) == 2
    assert kruskal_rank(eye(4)) == 4
    assert kruskal_rank(Matrix([[0, 1], [0, 1]])) == 0


def test_the_core_finds_unique_components_again(rng):
    """Rank 4 in 3 x 4 x 4: beyond the sizes of one mode."""
    factors = [rng.integers(-4, 5, (n, 4)) for n in (3, 4, 4)]
    assert kruskal_holds([Matrix(f.tolist()) for f in factors])
    fit = td.cp(outer_sum(factors).astype(float), rank=4, init="gevd")
    assert fit.error < 1e-5
    for mine, theirs in zip(factors, fit.tensor.factors, strict=True):
        unit = mine / np.linalg.norm(mine, axis=0)
        match = np.abs(unit.T @ theirs)
        assert np.allclose(np.sort(match.max(axis=0)), 1, atol=1e-3)
        assert sorted(match.argmax(axis=0)) == [0, 1, 2, 3]


def test_where_it_fails_by_one_there_are_other_components():
    """A factor with two columns in parallel: the other two mix like those of a matrix."""
    a, b = np.array([[1, 2], [0, 1]]), np.array([[1, 1], [3, 0]])
    c, m = np.array([[1, 1], [2, 2]]), np.array([[1, 1], [0, 1]])
    assert [kruskal_rank(Matrix(f.tolist())) for f in (a, b, c)] == [2, 2, 1]  # 5 < 2 * 2 + 2
    assert not kruskal_holds([Matrix(f.tolist()) for f in (a, b, c)])
    inverse = np.array([[1, -1], [0, 1]])
    other = [a @ m, b @ inverse.T, c]
    assert is_exactly(other, outer_sum([a, b, c]))
    angles = np.abs(np.linalg.det(np.stack([a[:, 1], other[0][:, 1]], axis=1)))
    assert angles > 0.5  # a column that is no multiple of the one before


@pytest.mark.parametrize("order", [3, 4, 5])
def test_more_factors_allow_more_components(order):
    """Generic 2 x .. x 2: Σ k = 2 N, enough for (N + 1) / 2 components."""
    generic = Matrix([[1, 0, 1, 1], [0, 1, 1, 2]])
    for r in (2, 3, 4):
        assert kruskal_holds([generic[:, :r]] * order) == (2 * order >= 2 * r + order - 1)
