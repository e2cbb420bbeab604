"""Merges that are weighted sums: exact in the factors, with the ranks added up.

The coefficients depend on inner products of the deltas at most, which the cores tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdecomp.collections.merging.rule import Combination, shares
from tdecomp.errors import ArgumentError

__all__ = ["TaskDifference", "Karcher", "Mean", "ModelStock", "MultiSlerp", "Slerp", "WeightedSum"]


@dataclass(frozen=True, kw_only=True)
class Mean(Combination):
    """``Σ_t w_t ΔW_t / Σ_t w_t``.

    Notes
    -----
    [wortsman2022], uniform soup.
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return shares(weights)


@dataclass(frozen=True, kw_only=True)
class WeightedSum(Combination):
    """``Σ_t w_t ΔW_t``.

    Notes
    -----
    [ilharco2023]: task arithmetic, with `scale` for its λ.
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weights


@dataclass(frozen=True, kw_only=True)
class TaskDifference(Combination):
    """The first member minus all others: ``w_1 ΔW_1 − Σ_{t>1} w_t ΔW_t``.

    Notes
    -----
    [ilharco2023]: negation of tasks.
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.concatenate([weights[:1], -weights[1:]])


@dataclass(frozen=True, kw_only=True)
class Slerp(Combination):
    """Two members along the arc between them: ``(sin((1−t)Ω) ΔW_1 + sin(tΩ) ΔW_2) / sin Ω``.

    t is the second member's share of the weights, Ω the angle between the two. Parallel members
    are interpolated along the line.

    Notes
    -----
    [shoemake1985].
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if len(weights) != 2:
            raise ArgumentError(
                f"slerp takes two members, got {len(weights)}", tip="take multi_slerp or karcher"
            )
        share = shares(weights)
        angle = np.arccos(np.clip(_cosines(gram)[0, 1], -1.0, 1.0))
        if np.sin(angle) < _PARALLEL:
            return share
        return np.sin(share * angle) / np.sin(angle)


@dataclass(frozen=True, kw_only=True)
class MultiSlerp(Combination):
    """The weighted mean of the directions, at the weighted mean of the norms.

    The step in the tangent space that the source takes from there is zero: the projections of the
    members add up to the mean's own, which vanishes.

    Notes
    -----
    [goddard2024].
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        norms, share = np.sqrt(np.diag(gram)), shares(weights)
        along = share / _positive(norms)  # of the members in the mean of their directions
        return along * (norms @ share) / _length(along, gram)


@dataclass(frozen=True, kw_only=True)
class Karcher(Combination):
    """The mean on the sphere: ``argmin_m Σ_t w_t arccos²⟨m, ΔW_t/‖ΔW_t‖⟩``, at the mean norm.

    Attributes
    ----------
    sweeps
        Steps of the gradient descent along the sphere, at most.

    Notes
    -----
    [karcher1977].
    """

    sweeps: int = 100

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        norms, share = np.sqrt(np.diag(gram)), shares(weights)
        cosines = _cosines(gram)
        mean = share / _length(share, cosines)  # of the unit deltas, as all below
        for _ in range(self.sweeps):
            along = np.clip(cosines @ mean, -1.0, 1.0)
            angles = np.arccos(along)
            stretch = share * angles / np.maximum(np.sin(angles), _PARALLEL)
            step = stretch - (stretch @ along) * mean  # the weighted mean of the logarithms
            length = np.sqrt(max(step @ cosines @ step, 0.0))
            if length < _STILL:
                break
            mean = np.cos(length) * mean + np.sin(length) / length * step
            mean = mean / _length(mean, cosines)
        return mean * (norms @ share) / _positive(norms)


@dataclass(frozen=True, kw_only=True)
class ModelStock(Combination):
    """The mean, drawn towards the base: ``t · mean``, ``t = T cos θ / (1 + (T−1) cos θ)``.

    cos θ is the mean over all pairs of members; the weights do not count.

    Notes
    -----
    [jang2024], eq. 3; for more than two members with the mean of the pairwise cosines.
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        count = len(weights)
        if count < 2:
            raise ArgumentError("model_stock needs two members or more")
        cosine = _cosines(gram)[np.triu_indices(count, 1)].mean()
        whole = 1 + (count - 1) * cosine
        if whole < _PARALLEL:
            raise ArgumentError("the members cancel: no mean of them can be drawn to the base")
        ratio = count * cosine / whole
        return np.full(count, ratio / count)


_PARALLEL = 1e-7  # a sine below which an arc is a line
_STILL = 1e-13  # a step that is rounding


def _cosines(gram: np.ndarray) -> np.ndarray:
    norms = _positive(np.sqrt(np.diag(gram)))
    return gram / norms[:, None] / norms


def _positive(norms: np.ndarray) -> np.ndarray:
    """Norms to divide by: members that change nothing have no direction."""
    return np.where(norms > 0, norms, 1.0)


def _length(coefficients: np.ndarray, gram: np.ndarray) -> float:
    """Norm of a combination; refuses one that vanishes."""
    square = float(coefficients @ gram @ coefficients)
    whole = float(np.abs(coefficients) @ np.abs(gram) @ np.abs(coefficients))
    if square <= _STILL * whole:
        if whole == 0:
            return 1.0
        raise ArgumentError(
            "the directions of the members cancel: there is no mean on the sphere",
            tip="take other weights, or mean",
        )
    return float(np.sqrt(square))
