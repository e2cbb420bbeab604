"""Merges by singular values: the same on deltas as on their cores in orthonormal bases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdecomp.collections.merging.rule import StackRule, shares
from tdecomp.collections.merging.site import MergeSite
from tdecomp.decomposition import tucker

__all__ = ["Isotropic", "LowRankEstimate", "TaskSingularVectors", "TuckerOverTasks"]


@dataclass(frozen=True, kw_only=True)
class TaskSingularVectors(StackRule):
    """Leading singular vectors of every member, made orthogonal to those of all others.

    ``U⊥ diag(w_1 S_1, …, w_T S_T) V⊥ᵀ``, where ``U⊥`` is the orthogonal matrix nearest to all
    ``U_t`` side by side.

    Attributes
    ----------
    rank
        Vectors of every member; None: its part of ``min(out, in)``.

    Notes
    -----
    [gargiulo2025], algorithm 1. Of members whose ranks are below their part nothing is cut.
    """

    rank: int | None = None

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        part = max(1, min(site.shape) // site.count) if self.rank is None else self.rank
        u, s, vh = np.linalg.svd(stack, full_matrices=False)
        kept = [(t, k) for t in range(len(s)) for k in np.flatnonzero(_above(s[t]))[:part]]
        if not kept:
            return np.zeros(stack.shape[1:])
        values = np.array([site.weights[t] * s[t, k] for t, k in kept])
        left = _nearest_orthogonal(np.stack([u[t, :, k] for t, k in kept], axis=1))
        right = _nearest_orthogonal(np.stack([vh[t, k] for t, k in kept], axis=1))
        return (left * values) @ right.T


@dataclass(frozen=True, kw_only=True)
class Isotropic(StackRule):
    """The weighted sum with all its singular values at their mean: ``σ̄ U Vᵀ``.

    The mean is over the directions that the sum has: of the others nobody can tell which they are.
    For deltas of full rank that is the published rule.

    Notes
    -----
    [marczak2025], Iso-C.
    """

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        total = np.tensordot(np.asarray(site.weights), stack, axes=1)
        u, s, vh = np.linalg.svd(total, full_matrices=False)
        rank = int(_above(s).sum())
        return s[:rank].mean() * u[:, :rank] @ vh[:rank] if rank else total


@dataclass(frozen=True, kw_only=True)
class LowRankEstimate(StackRule):
    """A common offset and low-rank rests, estimated together; then the offset and the mean rest.

    ``min_{θ, δ} Σ_t ‖θ + δ_t − ΔW_t‖² + μ ‖δ_t‖_*`` by turns: θ is the mean of ``ΔW_t − δ_t``, δ_t
    has the singular values of ``ΔW_t − θ`` less μ/2.

    Attributes
    ----------
    threshold
        μ/2 as a share of the largest singular value of all members.
    sweeps
        Turns, at most.

    Notes
    -----
    [liu2025lore]. The nuclear norm is not squared: singular value thresholding solves that problem.
    """

    threshold: float = 0.1
    sweeps: int = 1000

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        weights = shares(np.asarray(site.weights))
        offset, rests = self.estimated(stack)
        return offset + np.tensordot(weights, rests, axes=1)

    def estimated(self, stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """θ ``(p, q)`` and all δ ``(task, p, q)``."""
        cut = self.threshold * np.linalg.norm(stack, 2, axis=(1, 2)).max(initial=0.0)
        offset, rests = np.zeros(stack.shape[1:]), np.zeros_like(stack)
        for _ in range(self.sweeps):
            before = offset
            u, s, vh = np.linalg.svd(stack - offset, full_matrices=False)
            rests = (u * np.maximum(s - cut, 0.0)[:, None, :]) @ vh
            offset = (stack - rests).mean(axis=0)
            if np.linalg.norm(offset - before) <= 1e-12 * np.linalg.norm(stack):
                break
        return offset, rests


@dataclass(frozen=True, kw_only=True)
class TuckerOverTasks(StackRule):
    """The weighted sum of what a Tucker decomposition over (task, out, in) keeps of every member.

    Attributes
    ----------
    rank
        Of the two bases; None: the largest rank of a member.
    task_rank
        Of the mode `task`; None: all, so that only the bases are common.

    Notes
    -----
    HOOI on the cores; the squared loss of every member is exact.
    """

    rank: int | None = None
    task_rank: int | None = None

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        return np.tensordot(np.asarray(site.weights), self.kept(stack), axes=1)

    def kept(self, stack: np.ndarray) -> np.ndarray:
        """What is left of the stack, ``(task, p, q)``."""
        spectra = np.linalg.svd(stack, compute_uv=False)
        own = max((int(_above(s).sum()) for s in spectra), default=0)
        rank = max(1, own) if self.rank is None else self.rank
        tasks = len(stack) if self.task_rank is None else self.task_rank
        sizes = zip((tasks, rank, rank), stack.shape, strict=True)
        asked = tuple(min(n, size) for n, size in sizes)
        if asked == stack.shape or 0 in asked:
            return stack
        fit = tucker(stack, rank=asked, n_iter_max=_SWEEPS, tol=1e-10)
        return np.asarray(fit.tensor.to_dense())

    def losses(self, stack: np.ndarray) -> tuple[float, ...]:
        """``‖kept − ΔW_t‖²`` of every member."""
        return tuple(map(float, ((self.kept(stack) - stack) ** 2).sum(axis=(1, 2))))


_SWEEPS = 200  # of a HOOI on small cores


def _above(values: np.ndarray) -> np.ndarray:
    """Which singular values are more than rounding."""
    largest = values.max(initial=0.0)
    return values > largest * 1e3 * np.finfo(values.dtype).eps


def _nearest_orthogonal(columns: np.ndarray) -> np.ndarray:
    """``P Qᵀ`` of the SVD ``P S Qᵀ``; of dependent columns without the directions of S = 0."""
    u, s, vh = np.linalg.svd(columns, full_matrices=False)
    kept = _above(s)
    return u[:, kept] @ vh[kept]
