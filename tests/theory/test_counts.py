"""The formulas count what the formats store."""

from __future__ import annotations

import numpy as np
import pytest

from tests.laws.cases import METHODS, SHAPES, planted
from theory.counts import break_even_rank, dense_count, size_of, stored_count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.name != "svd"])
def test_the_formula_counts_the_stored_numbers(method, shape):
    tensor = method(planted(shape), rank=2).tensor
    arrays = list(tensor.arrays.values())
    sizes = tensor.equation.sizes([a.shape for a in arrays])
    values = {size_of(name): n for name, n in sizes.items()}
    assert stored_count(tensor.equation).subs(values) == tensor.n_params
    assert dense_count(tensor.equation).subs(values) == np.prod(shape)


def test_lotr_counts_of_its_paper():
    """LoTR (arXiv 2402.01376): 2 d r + L r² for square weights."""
    d, r, layers = size_of("d"), size_of("r"), size_of("layer")
    count = stored_count("out r, layer r s, in s -> layer out in")
    square = count.subs({size_of("out"): d, size_of("in"): d, size_of("s"): r})
    assert square.equals(2 * d * r + layers * r**2)


def test_break_even_is_where_the_counts_meet():
    shared, lora = (
        "out r, layer r s, in s -> layer out in",
        "layer out k, layer k in -> layer out in",
    )
    rank = break_even_rank(shared, lora, "k")
    sizes = {size_of(n): v for n, v in {"out": 7, "in": 5, "layer": 3, "r": 2, "s": 4}.items()}
    meet = rank.subs(sizes)
    assert stored_count(lora).subs(sizes | {size_of("k"): meet}) == stored_count(shared).subs(sizes)
