"""Merges that ask what a member's data say of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdecomp.collections.merging.rule import MergeRule, StackRule, shares
from tdecomp.collections.merging.site import Merged, MergeSite
from tdecomp.errors import ArgumentError

__all__ = ["FisherMean", "RegressionMean"]


@dataclass(frozen=True, kw_only=True)
class FisherMean(StackRule):
    """``Σ w_t F_t ΔW_t / Σ w_t F_t`` entry by entry, F the diagonal Fisher information.

    Entries of which no member knows anything get the weighted mean.

    Notes
    -----
    [matena2022].
    """

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        weights = shares(np.asarray(site.weights))[:, None, None]
        each = weights * np.stack(_given(site, site.fishers, site.shape, "Fisher diagonal"))
        unknown = each.sum(axis=0) == 0
        each = np.where(unknown, weights, each)
        return (each * stack).sum(axis=0) / each.sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class RegressionMean(MergeRule):
    """What is nearest to all members on their own inputs: ``(Σ w_t ΔW_t C_t) (Σ w_t C_t)⁻¹``.

    C is the second moment of the inputs, ``(in, in)``; exact in the factors, the ranks add up.

    Attributes
    ----------
    off_diagonal
        Factor of all entries of C but the diagonal.

    Notes
    -----
    [jin2023].
    """

    off_diagonal: float = 0.9

    def product(self, site: MergeSite) -> Merged:
        """The merged delta, ``(out, Σ r)`` and ``(Σ r, in)``."""
        width = site.shape[1]
        moments = [
            weight * (self.off_diagonal * c + (1 - self.off_diagonal) * np.diag(np.diag(c)))
            for weight, c in zip(
                site.weights,
                _given(site, site.inputs, (width, width), "second moment of inputs"),
                strict=True,
            )
        ]
        inverse = np.linalg.pinv(sum(moments), hermitian=True)
        rows = [a @ c for (_, a), c in zip(site.pairs, moments, strict=True)]
        b = np.concatenate([b for b, _ in site.pairs], axis=1)
        return Merged(b, np.concatenate(rows) @ inverse)


def _given(
    site: MergeSite, arrays: tuple[np.ndarray, ...], shape: tuple[int, int], what: str
) -> tuple[np.ndarray, ...]:
    """What was captured, of the right shape for every member."""
    if len(arrays) != site.count:
        raise ArgumentError(
            f"{site.name}: {len(arrays)} arrays of the {what} for {site.count} members"
        )
    for array in arrays:
        if array.shape != shape:
            raise ArgumentError(f"{site.name}: the {what} is {array.shape}, expected {shape}")
    return arrays
