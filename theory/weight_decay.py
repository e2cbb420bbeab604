"""Which of all equal pairs weight decay prefers: the balanced one."""

from __future__ import annotations

import numpy as np

__all__ = ["balanced", "decay"]


def decay(b: np.ndarray, a: np.ndarray) -> float:
    """``(‖B‖² + ‖A‖²) / 2``: what weight decay of both factors adds to the loss."""
    return float(np.sum(b**2) + np.sum(a**2)) / 2


def balanced(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair with the same product ``B A = U Σ Vᵀ`` and the least decay: ``U √Σ``, ``√Σ Vᵀ``.

    Its decay is the nuclear norm, the sum of the singular values. So decay of the factors pulls
    towards low rank, where decay of the product, ``‖B A‖²``, only shrinks it, and no gauge changes
    that one. Balancing again now and then keeps both factors of one size.

    Source: Srebro, Rennie and Jaakkola [srebro2004], lemma 1.

    Returns
    -------
    b, a
        ``(out, k)`` and ``(k, in)``, k the smallest of all sizes.
    """
    left, right = np.linalg.qr(b), np.linalg.qr(a.T)
    u, s, vh = np.linalg.svd(left.R @ right.R.T, full_matrices=False)
    root = np.sqrt(s)
    return (left.Q @ u) * root, root[:, None] * (vh @ right.Q.T)
