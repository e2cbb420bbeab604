"""A merge rule: options in its fields, and one pure function of what the members are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from tdecomp.collections.merging.site import MergeSite
from tdecomp.errors import ArgumentError

__all__ = ["Combination", "MergeRule", "StackRule", "shares"]


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """How several deltas of one weight become one; the first line of a subclass says how.

    Attributes
    ----------
    scale
        Factor of the merged delta.
    """

    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Combination(MergeRule, ABC):
    """``Σ_t c_t ΔW_t``: exact in the factors, whatever their ranks."""

    @abstractmethod
    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """``c (task,)`` from the inner products ``⟨ΔW_s, ΔW_t⟩`` and the members' weights."""


@dataclass(frozen=True, kw_only=True)
class StackRule(MergeRule, ABC):
    """A matrix from a stack of matrices, which are deltas, or their cores in common bases."""

    @abstractmethod
    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        """``(p, q)`` from ``(task, p, q)``."""


def shares(weights: np.ndarray) -> np.ndarray:
    """Weights that add up to 1; refuses those that add up to 0."""
    total = weights.sum()
    if abs(total) < np.finfo(float).eps * np.abs(weights).sum() or total == 0:
        raise ArgumentError(
            "the weights add up to 0, a mean needs another sum", tip="take weighted_sum"
        )
    return weights / total
