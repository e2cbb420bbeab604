"""Narrower pairs: ranks shared out over all sites, the best pair of each, and what that lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdecomp._xp import Array, double, floor, namespace, sum_of_squares
from tdecomp.collections.pair import AdapterPair, PairSvd
from tdecomp.decomposition.spectra import denoising_threshold
from tdecomp.errors import ArgumentError
from tdecomp.ranking.allocate import allocate
from tdecomp.ranking.frontier import spectrum_frontier
from tdecomp.ranking.target import Target

__all__ = ["PairSpectrum", "ResizedPair", "choose_ranks", "ranks_above_noise", "resized"]


@dataclass(frozen=True)
class PairSpectrum:
    """What the rank of one site can be chosen by: singular values of ΔW, and its (out, in)."""

    s: np.ndarray
    shape: tuple[int, int]

    @property
    def cost(self) -> int:
        """Numbers that a rank costs."""
        return sum(self.shape)

    def lost(self, rank: int) -> float:
        """Squared error of the best pair of a rank."""
        return float(np.sum(self.s[rank:] ** 2))

    def above_noise(self) -> int:
        """How many singular values stand out of the bulk that white noise of their median has.

        Those above `denoising_threshold`. Of a pair as wide as its matrix that is the rule for the
        matrix itself. A narrower one has no more singular values than its width r, those of a
        core of r by r, and the noise is that of the core.

        Source: [gavish2014], the threshold for unknown noise; the core in the place of the matrix
        is ours. Right where fewer than half of the values are signal.
        """
        count = len(self.s)
        if not count or not self.s[0]:
            return 0
        long = max(self.shape) if count == min(self.shape) else count
        return int(np.sum(self.s > denoising_threshold(self.s, long)))


def choose_ranks(
    spectra: Sequence[PairSpectrum], target: Target, *, same: bool = False
) -> list[int]:
    """A rank for every site.

    Parameters
    ----------
    spectra
        One for every site.
    target
        A rank for all; or a relative error or a budget of numbers in all, which is met by the ranks
        that win most energy per number.
    same
        One rank for all: the smallest that meets the error, or the largest within the budget.

    Raises
    ------
    ArgumentError
        A rank in several numbers, or a budget below rank 1.
    """
    if target.rank is not None:
        if not isinstance(target.rank, int | np.integer):
            raise ArgumentError(f"rank={target.rank!r}: a pair has one rank, give one number")
        rank = int(target.rank)
        return [rank if same else min(rank, len(row.s)) for row in spectra]
    most = target.rank_max or max((len(row.s) for row in spectra), default=0)
    if same:
        return [_one_rank(spectra, target, most)] * len(spectra)
    frontiers = [
        spectrum_frontier(row.s, row.cost, floor("float64")).up_to(most) for row in spectra
    ]
    lost = None if target.error is None else _allowed(spectra, target.error)
    chosen = allocate(frontiers, budget=target.budget, lost=lost)
    return [int(f.ranks[k, 0]) for f, k in zip(frontiers, chosen, strict=True)]


def ranks_above_noise(
    spectra: Sequence[PairSpectrum], *, most: int | None = None, same: bool = False
) -> list[int]:
    """A rank for every site: its singular values that stand out of noise.

    Parameters
    ----------
    spectra
        One for every site.
    most
        Largest rank.
    same
        One rank for all: the largest of them.
    """
    ranks = [row.above_noise() for row in spectra]
    ranks = [max(ranks, default=0)] * len(ranks) if same else ranks
    return ranks if most is None else [min(rank, most) for rank in ranks]


def _allowed(spectra: Sequence[PairSpectrum], error: float) -> float:
    return error**2 * sum(row.lost(0) for row in spectra)


def _one_rank(spectra: Sequence[PairSpectrum], target: Target, most: int) -> int:
    """The rank that all have."""
    if target.budget is not None:
        each = sum(row.cost for row in spectra)
        if target.budget < each:
            raise ArgumentError(
                f"budget {target.budget} is below rank 1: the smallest possible is {each} numbers"
            )
        return min(most, int(target.budget // each))
    assert target.error is not None
    allowed = _allowed(spectra, target.error)
    fits = (r for r in range(1, most) if sum(row.lost(r) for row in spectra) <= allowed)
    return next(fits, most)


@dataclass(frozen=True)
class ResizedPair:
    """A narrower pair in the place of one.

    Attributes
    ----------
    pair
        Balanced, at scale 1.
    departure, energy
        ``‖ΔW - B A‖²`` of the pair as it is stored, and ‖ΔW‖².
    """

    pair: AdapterPair
    departure: float
    energy: float


def resized(
    pair: AdapterPair,
    rank: int,
    *,
    rounding: Callable[[Array], Array] | None = None,
    padded: bool = False,
) -> ResizedPair:
    """The best pair of a rank, by two bases and an SVD of rank by rank; ΔW is never formed.

    Parameters
    ----------
    pair
        Of any width.
    rank
        Of the new pair; where ΔW has less, that.
    rounding
        Applied to both factors before the departure is measured (storage precision).
    padded
        Fill up with zeros to just `rank`.
    """
    svd = pair.svd()
    width = min(rank, int(svd.s.shape[0]))
    b, a = svd.pair(width)
    if rounding is not None:
        b, a = rounding(b), rounding(a)
    departure = _departure(svd, double(b), double(a))
    if padded and width < rank:
        xp = namespace(b)
        out, in_ = pair.shape
        b = xp.concat([b, xp.zeros((out, rank - width), dtype=b.dtype)], axis=1)
        a = xp.concat([a, xp.zeros((rank - width, in_), dtype=a.dtype)], axis=0)
    new = replace(pair, b=b, a=a, scale=1.0)
    return ResizedPair(new, departure, sum_of_squares(svd.s))


def _departure(svd: PairSvd, b: Array, a: Array) -> float:
    """``‖ΔW - B A‖²``, from four parts that are at right angles; no difference cancels.

    With ``B = Q Cb + B'`` and ``A = Ca Pᵀ + A'``, where Q and P are the bases that ΔW lies between,
    and B' and A' at right angles to them.
    """
    q, p = svd.bases
    cb, ca = q.T @ b, a @ p  # (q, r), (r, p)
    outside_b, outside_a = b - q @ cb, a - ca @ p.T
    inside_grams = cb.T @ cb, ca @ ca.T  # (r, r)
    outside_grams = outside_b.T @ outside_b, outside_a @ outside_a.T
    xp = namespace(b)
    mixed = inside_grams[0] * outside_grams[1] + outside_grams[0] * inside_grams[1]
    beside = float(xp.sum(mixed + outside_grams[0] * outside_grams[1]))
    return sum_of_squares(svd.core - cb @ ca) + beside
