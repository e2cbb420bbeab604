"""Independent truncated SVD of every matrix, ranks chosen over all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import device

from tdecomp._xp import Array, double, floor, namespace, to_numpy
from tdecomp.decomposition.fit import Fit, Rounding, relative_error
from tdecomp.decomposition.method import Analysis, Choice, Method, Share
from tdecomp.decomposition.run import run_one
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import LowRank
from tdecomp.linalg import Svd, Triplets, is_cheap, singular_values, svd_settled
from tdecomp.passes.coordinates import Metric
from tdecomp.passes.data import Data
from tdecomp.passes.matrices import Matrix
from tdecomp.passes.pieces import pieces_of
from tdecomp.passes.residual import residual_of_pairs
from tdecomp.passes.slices import Input, check_matrices, dense
from tdecomp.passes.stream import CLOSE, OVERSAMPLES
from tdecomp.progress import Progress, silent
from tdecomp.ranking.frontier import spectrum_frontier, spectrum_frontiers
from tdecomp.ranking.target import Rank, Target
from tdecomp.tasks import Executor, OfSlices, sendable

__all__ = ["SvdMethod", "svd"]

_MANY = 1_000_000  # matrices of a format
# Numbers of a matrix up to which many are decomposed in one call: further up each by itself is
# faster, and all that are this small get an exact SVD, never a sketch (`is_cheap`).
_TINY = 1 << 13


def svd(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
    svd: Svd | None = None,
    metric: Metric | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Fit:
    """Independent truncated SVD of every matrix: ``X[site] ≈ u_site · diag(s_site) · vh_site``.

    Give exactly one of `rank`, `error` and `budget`. For an error or a budget the singular values
    of all matrices compete: each costs ``out + in + 1`` numbers and returns its square, so a matrix
    may get any rank, 0 included. That choice is optimal for independent SVDs ([eckart1936]); where
    the singular values of large matrices are sketched, to about 2e-3 of the energy left out.

    Parameters
    ----------
    x
        ``(..., out, in)``: every index over the leading modes is a matrix; or a `Stack`, read one
        matrix at a time; or any format, whose matrices are never formed (recompression).
    rank
        Rank of every matrix, at most its smaller side.
    error
        Relative Frobenius error over all matrices, met by the returned factors.
    budget
        Numbers to store, at most.
    names
        Mode names of an array, ``"layer proj out in"``.
    svd
        Truncated SVD once the ranks are chosen, for example `linalg.svd_randomized`; None: exact
        where that is cheap, else sketched until the captured energy settles (`linalg.svd_auto`),
        which also finds the singular values that ranks are chosen by.
    metric
        For ``out`` and ``in``, as in `tucker`: the error is that of ``C_out^½ (X − X̂) C_in^½``, for
        which the result is optimal too ([chen2021drone]); ``u`` and ``vh`` are orthonormal in it.
    rounding
        Applied to every factor before the error is measured (storage precision).
    rank_max
        The largest rank of any matrix that an error or a budget may give.
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `LowRank` tensor; ``spectra["sites"]`` holds the kept singular values per matrix.

    Raises
    ------
    ArgumentError
        Not exactly one target, a rank below 1 or above both sides, a budget below rank 1.
    NotReached
        An error that needs ranks above `rank_max`; its `best` is the Fit of the largest allowed.
    DataError
        NaN, Inf or an empty mode.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((2, 4, 3)); x[0, 0, 0], x[1, 1, 1] = 3.0, 4.0
    >>> fit = svd(x, budget=8)
    >>> fit.tensor.ranks, round(fit.error, 6)
    ((0, 1), 0.6)
    """
    method = SvdMethod(names=names, svd=svd, metric=metric, rounding=rounding)
    return run_one(method, x, Target(rank, error, budget, rank_max), progress, executor)


@dataclass(frozen=True)
class _Found:
    """Leading triplets of every matrix, and how often the data were read for them."""

    triplets: list[Triplets]
    passes: int


@dataclass(frozen=True, kw_only=True)
class SvdMethod(Method[_Found]):
    """Independent truncated SVD of every matrix, ranks chosen over all of them together."""

    svd: Svd | None = None
    metric: Metric | None = None

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """Sides of the matrices."""
        check_matrices(x.shape, "svd")
        if x.is_format and x.n_sites > _MANY:
            raise DataError(
                f"svd decomposes each of the {x.n_sites:.3g} matrices of this"
                f" {type(x.given).__name__} by itself: use tensor_train, which takes all modes"
                " together"
            )
        return x.shape[-2:]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """The same rank for every matrix."""
        return [target.ranks_of(("rank",), (min(x.shape[-2:]),))] * x.n_sites

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[_Found]:
        """Spectra of all matrices, down to `width` where a sketch is worth it."""
        plain = self.svd is None and self.metric is None and not x.is_format
        if plain and not is_cheap(x.shape[-2:], width + OVERSAMPLES, many=True):
            return _sketched(x, width, progress, passes)
        frontiers, least = [], 0.0
        for s, reach in self._spectra(x):
            least = max(least, reach)
            frontiers += spectrum_frontiers(s, _cost(x), reach)
            progress(len(frontiers) / x.n_sites)
        return Analysis(frontiers=frontiers, floor=least)

    def _spectra(self, x: Data[Any]) -> Iterator[tuple[np.ndarray, float]]:
        """Singular values ``(matrices, k)``, and the error that their precision can reach."""
        if self._go_together(x):
            for _, block in pieces_of(x.given):
                values = namespace(block).linalg.svdvals(double(dense(block)))
                yield to_numpy(values), floor(block.dtype)
        else:
            with x.each(_spectrum, self.metric) as found:
                yield from found

    def takes_together(self, shape: tuple[int, ...]) -> bool:
        """Small matrices, without an option that has to see each by itself."""
        plain = self.svd is None and self.metric is None and self.rounding is None
        return plain and len(shape) > 1 and 0 < math.prod(shape[-2:]) <= _TINY

    def _go_together(self, x: Data[Any]) -> bool:
        """Whether the matrices are so small that many are decomposed in one call."""
        plain = self.svd is None and self.metric is None and not x.is_format
        return plain and x.n_sites > 1 and math.prod(x.shape[-2:]) <= _TINY

    def fit(self, x: Data[Any], choice: Choice, state: _Found | None, progress: Progress) -> Fit:
        """Factors of every matrix and, while it is at hand, what they leave of it."""
        if state is None and self._go_together(x):
            return self._of_tiny(x, np.array([rank for (rank,) in choice]), progress)
        return self._fitted(x, choice, state, progress)

    def spend(
        self, x: Data[Any], choice: Choice, share: Share, state: _Found | None, progress: Progress
    ) -> Fit:
        """Exact where the sketch would lose more than the tails that the ranks were chosen by."""
        found = self.fit(x, choice, state, progress)
        sketched = self.svd is None and found.svd != "exact"
        if state or not sketched or share.lost is None or found.residual.sum() <= share.lost:
            return found
        return self._fitted(x, choice, None, progress, exact=True)

    def _fitted(
        self,
        x: Data[Any],
        choice: Choice,
        state: _Found | None,
        progress: Progress,
        *,
        exact: bool = False,
    ) -> Fit:
        ranks = [rank for (rank,) in choice]
        if x.is_format and self.rounding is not None:
            raise ArgumentError("rounding needs an array or a stack: cast a format's arrays")
        if state is None:
            each = OfSlices(dict(enumerate(ranks)))
            work = partial(_truncated, self.svd, exact, each, self.rounding)
        else:
            kept = {
                i: (u[:, :rank], s[:rank], vh[:rank, :])
                for i, ((u, s, vh), rank) in enumerate(zip(state.triplets, ranks, strict=True))
            }
            work = partial(_measured, OfSlices(kept), self.rounding)
        factors, lost, used = [], [], set[str]()
        with x.each(work, self.metric, in_turn=self.svd is not None) as found:
            for triplets, left, name in found:
                factors.append(triplets)
                lost.append(left)
                used.add(name)
                progress(len(lost) / x.n_sites)
        tensor = _joined(x, factors, tuple(int(s.shape[0]) for _, s, _ in factors))
        residual, energy = np.array(lost, dtype=np.float64).T
        return Fit(
            tensor,
            relative_error(residual, energy),
            residual,
            energy,
            {"sites": [to_numpy(s) for _, s, _ in factors]},
            error_method="coordinates" if x.is_format else "residual",
            error_plain=_plain_error(x, tensor) if self.metric else None,
            svd=", ".join(sorted(used)),
            passes=1 if state is None else 1 + state.passes,
        )

    def _of_tiny(self, x: Data[Any], ranks: np.ndarray, progress: Progress) -> Fit:
        """The same for small matrices, many in one call."""
        factors, lost = [], []
        for chunk, block in pieces_of(x.given):
            xp, block = namespace(block), dense(block)
            widest = min(int(ranks[chunk.sites].max()), *block.shape[1:])
            u, s, vh = xp.linalg.svd(block, full_matrices=False)
            kept = u[:, :, :widest], s[:, :widest], vh[:, :widest, :]
            u, s, vh = (_stored(self.rounding, a) for a in kept)
            inside = np.arange(widest) < ranks[chunk.sites, None]  # (sites, widest)
            s = s * xp.asarray(inside, dtype=s.dtype, device=device(s))
            lost.append(residual_of_pairs(block, u * s[:, None, :], vh))
            columns = xp.reshape(xp.permute_dims(u, (1, 0, 2)), (u.shape[1], -1))
            each = columns, xp.reshape(s, (-1,)), xp.reshape(vh, (-1, vh.shape[2]))
            places = xp.asarray(np.flatnonzero(inside), device=device(s))
            pairs = zip(each, (1, 0, 0), strict=True)
            factors.append(tuple(xp.take(a, places, axis=axis) for a, axis in pairs))
            progress(chunk.sites.stop / x.n_sites)
        widths = np.minimum(ranks, min(x.shape[-2:]))
        tensor = _joined(x, factors, tuple(widths.tolist()))
        residual, energy = (np.concatenate(part) for part in zip(*lost, strict=True))
        return Fit(
            tensor,
            relative_error(residual, energy),
            residual,
            energy,
            {"sites": np.split(to_numpy(tensor.s), np.cumsum(widths)[:-1])},
            passes=1,
        )


_Kept = tuple[Triplets, tuple[float, float], str]
"""Triplets of a matrix, what they leave of it, and the function that they are from."""


@sendable
def _truncated(
    svd: Svd | None,
    exact: bool,
    ranks: OfSlices[int],
    rounding: Rounding | None,
    i: int,
    matrix: Matrix,
) -> _Kept:
    which, rank = Which(svd, always_exact=exact), min(ranks[i], *matrix.array.shape)
    triplets = which.triplets(matrix.array, rank, matrix.energy)
    return *_rounded(triplets, rounding, matrix), which.names


@sendable
def _measured(kept: OfSlices[Triplets], rounding: Rounding | None, i: int, matrix: Matrix) -> _Kept:
    return *_rounded(kept[i], rounding, matrix), "svd_settled"


def _rounded(
    triplets: Triplets, rounding: Rounding | None, matrix: Matrix
) -> tuple[Triplets, tuple[float, float]]:
    u, s, vh = (_stored(rounding, a) for a in matrix.lifted(*triplets))
    return (u, s, vh), matrix.residual(u * s, vh)


def _stored(rounding: Rounding | None, array: Array) -> Array:
    return array if rounding is None else rounding(array)


@sendable
def _spectrum(i: int, matrix: Matrix) -> tuple[np.ndarray, float]:
    """Singular values ``(1, k)`` of a matrix, and the error that their precision can reach."""
    s = to_numpy(singular_values(matrix.array))
    return s[None, :], floor(matrix.array.dtype)


def _sketched(x: Data[Any], width: int, progress: Progress, passes: int) -> Analysis[_Found]:
    """Leading triplets of all matrices, and what lies outside of them."""
    cost = _cost(x)

    found, frontiers, least = [], [], 0.0
    with x.each(partial(_leading, width)) as seen:
        for triplets, outside, precision in seen:
            found.append(triplets)
            inside = spectrum_frontier(to_numpy(triplets[1]), cost, precision)
            frontiers.append(inside.plus(outside))
            least = max(least, precision)
            progress(len(found) / x.n_sites)
    return Analysis(
        frontiers=frontiers,
        floor=least,
        state=_Found(found, passes + 1),
        state_size=len(found) * cost * width,
        limits=(width,),
        width=width,
        passes=passes + 1,
    )


@sendable
def _leading(width: int, i: int, matrix: Matrix) -> tuple[Triplets, float, float]:
    """Leading triplets of a matrix, the energy outside of them, and their precision."""
    triplets = svd_settled(matrix.array, width, energy=matrix.energy)
    return triplets, _outside(matrix, triplets), floor(matrix.array.dtype)


def _cost(x: Data[Any]) -> int:
    """Stored numbers of a rank of one matrix."""
    return sum(x.shape[-2:]) + 1


def _outside(matrix: Matrix, found: Triplets) -> float:
    """Squared norm of what a truncated SVD leaves of a matrix."""
    assert matrix.energy is not None
    u, s, vh = found
    outside = matrix.energy - float(np.sum(to_numpy(s).astype(np.float64) ** 2))
    if outside > CLOSE * matrix.energy or matrix.energy == 0:
        return max(0.0, outside)
    return matrix.residual(u * s, vh)[0]


def _plain_error(x: Data[Any], tensor: LowRank) -> float:
    """Relative error without the metric, each matrix in its own coordinates."""
    with x.each(partial(_residual, tensor)) as pairs:
        residual, energy = np.array(list(pairs), dtype=np.float64).T
    return relative_error(residual, energy)


@sendable
def _residual(tensor: LowRank, i: int, matrix: Matrix) -> tuple[float, float]:
    return matrix.residual(*tensor.pair(i))


def _joined(
    x: Data[Any], factors: Sequence[tuple[Array, Array, Array]], ranks: tuple[int, ...]
) -> LowRank:
    us, ss, vhs = zip(*factors, strict=True)
    xp = namespace(us[0])
    return LowRank(
        x.modes,
        x.shape[:-2],
        ranks,
        xp.concat(list(us), axis=1),  # (out, all ranks)
        xp.concat(list(ss)),
        xp.concat(list(vhs), axis=0),  # (all ranks, in)
    )
