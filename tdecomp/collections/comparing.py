"""How alike what two adapters add is: angles and shares of energy, from the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import to_numpy, tol
from tdecomp.collections.pair import AdapterPair
from tdecomp.linalg import truncated_svd

__all__ = [
    "INTRUDER_COSINE",
    "INTRUDER_VECTORS",
    "Alikeness",
    "PairSpan",
    "alikeness",
    "intruders",
    "span",
]

INTRUDER_VECTORS, INTRUDER_COSINE = 10, 0.5
"""Leading singular vectors that are looked at, and how little like one of the base one must be."""


@dataclass(frozen=True)
class PairSpan:
    """ΔW of one adapter at one site, as its singular value decomposition: numpy, in float64.

    Attributes
    ----------
    u, s, vh
        ``(out, k)``, ``(k,)``, ``(k, in)``; singular values that are only rounding are left out.
    """

    u: np.ndarray
    s: np.ndarray
    vh: np.ndarray

    @property
    def energy(self) -> float:
        """‖ΔW‖²."""
        return float(np.sum(self.s**2))


def span(pair: AdapterPair | None, shape: tuple[int, int]) -> PairSpan:
    """The span of a pair; that of no pair is empty."""
    if pair is None:
        return PairSpan(np.zeros((shape[0], 0)), np.zeros(0), np.zeros((0, shape[1])))
    svd = pair.svd()
    u, s, vh = to_numpy(svd.u), to_numpy(svd.s), to_numpy(svd.vh)
    k = int(np.sum(s > tol("float64", max(shape)) * s[:1].sum()))
    return PairSpan(u[:, :k], s[:k], vh[:k])


@dataclass(frozen=True)
class Alikeness:
    """Two adapters at one site.

    Attributes
    ----------
    inner
        ``⟨ΔW₁, ΔW₂⟩``.
    out_cosines, in_cosines
        Cosines of the principal angles between their columns and between their rows, largest first.
    first_in_second, second_in_first
        ``‖P ΔW Q‖²`` where P and Q project on the columns and rows of the other one.
    """

    inner: float
    out_cosines: np.ndarray
    in_cosines: np.ndarray
    first_in_second: float
    second_in_first: float


def alikeness(one: PairSpan, two: PairSpan) -> Alikeness:
    """Compare two spans, from the small matrices of products of their bases.

    Source: A. Björck and G. H. Golub (1973) for the angles.
    """
    out, in_ = one.u.T @ two.u, one.vh @ two.vh.T  # (k1, k2) each
    both = out * in_
    return Alikeness(
        inner=float(one.s @ both @ two.s),
        out_cosines=_cosines(out),
        in_cosines=_cosines(in_),
        first_in_second=float(np.sum((out.T @ (one.s[:, None] * in_)) ** 2)),
        second_in_first=float(np.sum((out @ (two.s[:, None] * in_.T)) ** 2)),
    )


def _cosines(product: np.ndarray) -> np.ndarray:
    if 0 in product.shape:
        return np.zeros(0)
    return np.minimum(np.linalg.svdvals(product), 1.0)


def intruders(weight: np.ndarray, pairs: Sequence[AdapterPair | None]) -> list[int]:
    """Number of intruder dimensions that each adapter brings into a weight, (out, in).

    Leading left singular vectors of ``W + ΔW`` that no left singular vector of W is like: none of
    the first 10 may have a cosine of 0.5 or more with one of them. This is dense: a whole SVD of W.
    An adapter without a pair brings none.

    Source: R. Shuttleworth et al., arXiv:2410.21228, where both numbers are varied.
    """
    if not any(pair is not None and pair.rank for pair in pairs):
        return [0] * len(pairs)
    own = np.linalg.svd(weight, full_matrices=False)[0]
    return [0 if pair is None else _new_vectors(own, weight, pair) for pair in pairs]


def _new_vectors(own: np.ndarray, weight: np.ndarray, pair: AdapterPair) -> int:
    moved = weight + to_numpy(pair.dense()).astype(weight.dtype)
    leading = truncated_svd(moved, min(INTRUDER_VECTORS, *moved.shape))[0]
    likest = np.max(np.abs(own.T @ to_numpy(leading)), axis=0)
    return int(np.sum(likest < INTRUDER_COSINE))
