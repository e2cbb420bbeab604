"""Optimisers as steepest descent: the step of size 1 that falls most depends on the norm."""

from __future__ import annotations

import numpy as np

__all__ = ["along_entries", "along_frobenius", "along_spectrum"]


def along_frobenius(g: np.ndarray) -> tuple[np.ndarray, float]:
    """Where ``‖Δ‖_F ≤ 1``: ``-G / ‖G‖``, normalised SGD; it falls by ``‖G‖_F``.

    Each function here returns the step, and the fall ``-⟨G, Δ⟩`` to first order, which is the dual
    norm of G.

    Source: Bernstein and Newhouse [bernstein2024].
    """
    norm = float(np.linalg.norm(g))
    return -g / norm, norm


def along_entries(g: np.ndarray) -> tuple[np.ndarray, float]:
    """Where ``max |Δ| ≤ 1``: ``-sign G``, Adam without memory; it falls by ``Σ |g|``."""
    return -np.sign(g), float(np.abs(g).sum())


def along_spectrum(g: np.ndarray) -> tuple[np.ndarray, float]:
    """Where ``σ₁(Δ) ≤ 1``: ``-U Vᵀ``, Shampoo and Muon without memory; it falls by ``Σ σ``."""
    u, s, vh = np.linalg.svd(g, full_matrices=False)
    return -u @ vh, float(s.sum())
