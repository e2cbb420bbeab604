"""When the components of a CP tensor are the only ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import sympy

__all__ = ["kruskal_holds", "kruskal_rank"]


def kruskal_rank(factor: sympy.Matrix) -> int:
    """The largest k such that any k columns are linearly independent, exact.

    >>> kruskal_rank(sympy.Matrix([[1, 0, 1], [0, 1, 1]]))
    2
    >>> kruskal_rank(sympy.Matrix([[1, 0, 2], [0, 1, 0]]))
    1
    """
    for k in range(1, factor.cols + 1):
        chosen = combinations(range(factor.cols), k)
        if any(factor.extract(range(factor.rows), some).rank() < k for some in chosen):
            return k - 1
    return factor.cols


def kruskal_holds(factors: Sequence[sympy.Matrix]) -> bool:
    """Whether Kruskal's condition proves that a CP decomposition is unique and R its rank.

    ``Σ k_n ≥ 2 R + N - 1`` for N factors of Kruskal ranks k_n and R columns: no other R components
    add up to the tensor, but for their order and the scales within a component. The condition is
    sufficient; for R of 2 and 3 and three factors it is also necessary.

    Source: Kruskal [kruskal1977]; Sidiropoulos and Bro [sidiropoulos2000] for more than three
    factors; ten Berge and Sidiropoulos [tenberge2002] for the necessity.

    >>> kruskal_holds([sympy.eye(2)] * 3), kruskal_holds([sympy.eye(2)] * 2)
    (True, False)
    """
    ranks = map(kruskal_rank, factors)
    return sum(ranks) >= 2 * factors[0].cols + len(factors) - 1
