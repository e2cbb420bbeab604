"""The gradient of a weight is a pair of as many columns as there are tokens."""

from __future__ import annotations

import sympy

from tdecomp.modes import Equation
from theory.formulas import size_of

__all__ = ["GRADIENT", "rank_bound"]

GRADIENT = Equation.parse("token out, token in -> out in")
"""``∂loss/∂W = Σ_t δ_t x_tᵀ``: gradients at the outputs and inputs, one column for each token."""


def rank_bound() -> sympy.Expr:
    """Rank of a gradient, at most: the tokens of the batch, or the smaller side.

    So it is for every ΔW after one SGD step; after many, the tokens seen in all.

    Source: Katz, Belinkov, Geva and Wolf [katz2024].

    >>> rank_bound()
    Min(in, out, token)
    """
    return sympy.Min(*map(size_of, ("token", "out", "in")))
