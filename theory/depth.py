"""What low-rank changes of several linear layers do together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import sympy

from theory.formulas import size_of

__all__ = ["rank_bound_of_product", "spread_over_layers"]


def rank_bound_of_product() -> sympy.Expr:
    """Rank of the change of ``W_L .. W₁`` where each of the square layers changes by rank r.

    ``Π W'_l - Π W_l`` is a sum of one term for each layer (change one after the other), each of
    rank r. So L layers come as close to a target as ``σ_{L r + 1}`` of what it differs by, in the
    spectral norm, and no closer; `spread_over_layers` does.

    Source: Zeng and Lee [zeng2024], for linear networks.

    >>> rank_bound_of_product()
    Min(out, layer*r)
    """
    return sympy.Min(size_of("layer") * size_of("r"), size_of("out"))


def spread_over_layers(
    weights: Sequence[np.ndarray], target: np.ndarray, rank: int
) -> list[np.ndarray]:
    """Changed weights, each by rank r, whose product is the best of rank ``L r`` off the target.

    The truncated SVD of ``target - W_L .. W₁`` is cut in L parts of r components; each layer takes
    one, pulled back through the layers after it and those before it, changed already.

    Parameters
    ----------
    weights
        W₁ first, each ``(n, n)``; all must be invertible, the changed ones too, as they are for
        almost all weights.
    target
        ``(n, n)``.
    rank
        Of each change.
    """
    product = lambda ws: reduce(lambda done, w: w @ done, ws, np.eye(len(target)))
    u, s, vh = np.linalg.svd(target - product(weights))
    changed: list[np.ndarray] = []
    for k, w in enumerate(weights):
        part = slice(k * rank, (k + 1) * rank)
        piece = (u[:, part] * s[part]) @ vh[part]
        after, before = product(weights[k + 1 :]), product(changed)
        changed.append(w + np.linalg.solve(after, piece) @ np.linalg.inv(before))
    return changed
