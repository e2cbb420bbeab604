"""Ranks that random tensors have with positive probability, over a named field."""

from __future__ import annotations

import numpy as np

__all__ = ["real_typical_ranks", "splits_over_reals"]


def real_typical_ranks(p: int, q: int) -> set[int]:
    """Typical ranks over ℝ of ``p x q x 2`` tensors.

    For p ≥ q: ``{2 q}`` from p = 2 q on, ``{p}`` between, and ``{p, p + 1}`` for p = q. Over ℂ a
    shape has one, the smallest of these: `theory.dimensions.generic_rank`.

    Source: ten Berge and Kiers [tenberge1999].

    >>> real_typical_ranks(2, 2), real_typical_ranks(3, 2), real_typical_ranks(5, 2)
    ({2, 3}, {3}, {4})
    """
    p, q = max(p, q), min(p, q)
    return {p, p + 1} if p == q else {min(p, 2 * q)}


def splits_over_reals(x: np.ndarray) -> bool:
    """Whether a generic real ``p x p x 2`` tensor has rank p over ℝ.

    It has where ``X₂ X₁⁻¹`` has real eigenvalues only; then its eigenvectors are the components.
    Complex ones come in pairs and need one component more.

    Source: ten Berge and Kiers [tenberge1999].
    """
    values = np.linalg.eigvals(x[:, :, 1] @ np.linalg.inv(x[:, :, 0]))
    return bool(np.all(np.isreal(values)))
