"""Group algebras: components by representations are exact, and bounds say where they are least."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from theory.components import is_exactly
from theory.group_algebras import (
    alder_strassen,
    cyclic,
    cyclic_irreps,
    fourier_components,
    fourier_count,
    group_tensor,
    symmetric,
    symmetric_irreps,
    z3_over_reals,
)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_abelian_groups_have_the_rank_of_their_order(n):
    """By characters, exactly; no fewer will do, as all unfoldings have full rank."""
    tensor = group_tensor(cyclic(n))
    factors = fourier_components(cyclic(n), cyclic_irreps(n))
    assert factors[0].shape[1] == fourier_count([1] * n) == alder_strassen(n, n) == n
    assert is_exactly(factors, tensor)
    assert np.linalg.matrix_rank(tensor.reshape(n, -1)) == n


def test_nine_products_of_the_symmetric_group():
    factors = fourier_components(symmetric(3), symmetric_irreps())
    assert factors[0].shape[1] == fourier_count([1, 1, 2]) == alder_strassen(6, 3) == 9
    assert is_exactly(factors, group_tensor(symmetric(3)))


def test_representations_are_homomorphisms():
    where = {g: k for k, g in enumerate(symmetric(3))}
    for irrep in symmetric_irreps():
        for g, i in where.items():
            for h, j in where.items():
                assert irrep[i] * irrep[j] == irrep[where[tuple(g[k] for k in h)]]


def test_the_reals_need_one_product_more_for_three_rotations():
    factors = z3_over_reals()
    assert is_exactly(factors, group_tensor(cyclic(3)))
    assert factors[0].shape[1] == alder_strassen(3, 2) == 4


@pytest.mark.parametrize(("group", "rank"), [(cyclic(3), 4), (symmetric(3), 9)], ids=["Z3", "S3"])
def test_the_core_finds_the_rank_and_nothing_below(group, rank):
    tensor = group_tensor(group).astype(float)

    def errors(r):
        for seed in range(6):
            fit = td.cp(tensor, rank=r, init="random", random_state=seed, n_iter_max=400)
            yield fit.error

    assert any(error < 1e-3 for error in errors(rank))
    assert all(error > 0.1 for error in errors(rank - 1))
