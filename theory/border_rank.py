"""Tensors that are limits of lower rank: the W state, and all real ``2 x 2 x 2`` tensors."""

from __future__ import annotations

import numpy as np
import sympy
from sympy import Expr, Matrix

__all__ = ["complex_rank", "hyperdeterminant", "real_rank", "w_components", "w_sequence", "w_state"]


def w_state() -> np.ndarray:
    """``e₁∘e₁∘e₂ + e₁∘e₂∘e₁ + e₂∘e₁∘e₁``: rank 3 and border rank 2 over ℝ and ℂ.

    Source: de Silva and Lim [desilva2008].
    """
    w = np.zeros((2, 2, 2), dtype=int)
    w[0, 0, 1] = w[0, 1, 0] = w[1, 0, 0] = 1
    return w


def w_components() -> list[np.ndarray]:
    """Three components that add up to `w_state`: factors ``(2, 3)``."""
    return [
        np.array([[int(k != n) for k in range(3)], [int(k == n) for k in range(3)]])
        for n in range(3)
    ]


def w_sequence(n: Expr | float) -> list[np.ndarray]:
    """Two components whose sum goes to `w_state` as n grows: ``n (e₁ + e₂ / n)^∘3 - n e₁^∘3``.

    The difference is of size ``√3 / n``; both components grow like n and cancel. So W has no best
    approximation of rank 2, and every method that looks for one diverges.

    Source: de Silva and Lim [desilva2008].
    """
    column = np.array([[1, 1], [1 / n, 0]], dtype=object)
    return [column * np.array([n, -n], dtype=object), column, column]


def hyperdeterminant(x: np.ndarray) -> Expr:
    """Cayley's hyperdeterminant of a ``2 x 2 x 2`` tensor.

    The discriminant in t of ``det(X₀ + t X₁)``. Invertible matrices on the three modes multiply it
    by the squares of their determinants, so its sign says something of the tensor alone.

    Source: de Silva and Lim [desilva2008].

    >>> hyperdeterminant(w_state())
    0
    """
    t = sympy.Symbol("t")
    first, second = (Matrix(2, 2, [sympy.nsimplify(v) for v in part.ravel()]) for part in x)
    a, b, c = (sympy.Poly((first + t * second).det(), t).coeff_monomial(t**k) for k in (2, 1, 0))
    return b**2 - 4 * a * c


def real_rank(x: np.ndarray) -> int:
    """Rank over ℝ of a ``2 x 2 x 2`` tensor, exact.

    By its multilinear ranks and the sign of its hyperdeterminant: positive has rank 2, negative
    rank 3; both are open sets, so 2 and 3 are the typical ranks.

    Source: de Silva and Lim [desilva2008].

    >>> real_rank(w_state())
    3
    """
    return _rank(x, full=2 if hyperdeterminant(x) > 0 else 3)


def complex_rank(x: np.ndarray) -> int:
    """Rank over ℂ of a ``2 x 2 x 2`` tensor, exact: 3 on the orbit of W alone.

    Source: de Silva and Lim [desilva2008].
    """
    return _rank(x, full=3 if hyperdeterminant(x) == 0 else 2)


def _rank(x: np.ndarray, full: int) -> int:
    """Rank where that of tensors with all multilinear ranks 2 is known."""
    ranks = [
        Matrix(2, 4, [sympy.nsimplify(v) for v in np.moveaxis(x, k, 0).ravel()]).rank()
        for k in range(3)
    ]
    return full if min(ranks) == 2 else max(ranks)
