"""Sums of rank-one tensors with exact entries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import sympy

__all__ = ["is_exactly", "outer_sum"]


def outer_sum(factors: Sequence[np.ndarray]) -> np.ndarray:
    """``Σ_r a_r ∘ b_r ∘ ..`` of factors ``(n, r)`` with entries of any kind, exact ones too.

    >>> outer_sum([np.eye(2, dtype=int), np.eye(2, dtype=int)])
    array([[1, 0],
           [0, 1]])
    """
    columns = zip(*(f.T for f in factors), strict=True)
    return sum(reduce(np.multiply.outer, column) for column in columns)  # pyright: ignore


def is_exactly(factors: Sequence[np.ndarray], tensor: np.ndarray) -> bool:
    """Whether the components add up to the tensor, by exact arithmetic."""
    differences = (outer_sum(factors) - tensor).ravel()
    return all(sympy.expand_complex(sympy.sympify(entry)) == 0 for entry in differences)
