"""Means of products of Gaussian tensors."""

from __future__ import annotations

import sympy

from theory.formulas import size_of
from theory.moments import expected


def test_moments_of_one_normal_number():
    """1, 3, 15: the number of pairings; 0 for an odd number."""
    found = [expected([("z", ())] * k, {}) for k in range(7)]
    assert found == [1, 0, 1, 0, 3, 0, 15]


def test_moments_of_the_length_of_a_vector():
    """``E‖x‖⁴ = n (n + 2)`` and ``E‖x‖⁶ = n (n + 2) (n + 4)``."""
    n = size_of("n")
    for k, said in ((2, n * (n + 2)), (3, n * (n + 2) * (n + 4))):
        copies = [("x", (f"i{j}",)) for j in range(k) for _ in range(2)]
        sizes = {f"i{j}": "n" for j in range(k)}
        assert sympy.expand(expected(copies, sizes) - said) == 0
