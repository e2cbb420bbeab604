"""Frequent directions: a few rows that stand for many ([liberty2013], [ghashami2016])."""

from __future__ import annotations

import numpy as np

__all__ = ["shrunk"]


def shrunk(rows: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """At most k rows B with ``0 ≤ AᵀA - BᵀB ≤ lost · I`` for the rows A, ``(m, n)``.

    Returns
    -------
    tuple
        ``(k, n)``, padded by zeros, and the largest eigenvalue that was taken off everywhere.

    Examples
    --------
    >>> few, lost = shrunk(np.diag([3.0, 2.0, 1.0]), 2)
    >>> (few**2).sum().round(6), round(lost, 6)
    (np.float64(11.0), 1.0)
    """
    if len(rows) <= k:
        return np.concatenate([rows, np.zeros((k - len(rows), rows.shape[1]))]), 0.0
    _, s, vh = np.linalg.svd(rows, full_matrices=False)
    lost = float(s[k] ** 2) if len(s) > k else 0.0
    kept = np.sqrt(np.clip(s[:k] ** 2 - lost, 0, None))
    found = kept[:, None] * vh[:k]  # (k, n)
    return np.concatenate([found, np.zeros((k - len(found), rows.shape[1]))]), lost
