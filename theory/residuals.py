"""How much of a gradient a pair of rank r cannot take up, at best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sympy

from tdecomp.errors import ArgumentError

__all__ = ["best_bases", "tangent_residual"]


def tangent_residual(sigma: Sequence[sympy.Expr], rank: int) -> sympy.Expr:
    """Least ``‖(1 - P_U) G (1 - P_V)‖²`` over bases U, V of rank r: ``Σ_{j > 2 r} σ_j²``.

    A change of ΔW from a pair with column space U and row space V can follow G up to this part.
    ``G - (1 - P_U) G (1 - P_V)`` has rank 2 r at most, so by Eckart and Young nothing is smaller;
    `best_bases` reach it. Where ``2 r ≥ min(out, in)`` the sum is empty.

    Source: Eckart and Young [eckart1936]; the two halves of the bases are LoRA-GA's
    [wang2024loraga].

    >>> tangent_residual([5, 4, 3, 2, 1], 2)
    1
    >>> tangent_residual([5, 4, 3, 2, 1], 1)
    14
    """
    return sympy.Add(*(s**2 for s in sorted(sigma, reverse=True)[2 * rank :]))


def best_bases(g: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases that leave `tangent_residual`: the first r left and the next r right singular vectors.

    Any way to divide the first 2 r indices between both sides will do; one basis of the same r
    indices on both sides would leave ``Σ_{j > r}``.

    Parameters
    ----------
    g
        The gradient, ``(out, in)``.
    rank
        Of both bases, ``2 r`` at most the smaller side.

    Returns
    -------
    u, v
        ``(out, r)`` and ``(in, r)``.
    """
    if 2 * rank > min(g.shape):
        raise ArgumentError(
            f"rank {rank} needs {2 * rank} singular vectors, a gradient of {g.shape} has"
            f" {min(g.shape)}: ask for {min(g.shape) // 2} or less"
        )
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    return u[:, :rank], vh[rank : 2 * rank].T
