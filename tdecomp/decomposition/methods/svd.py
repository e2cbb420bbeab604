"""Independent truncated SVD of every matrix, ranks chosen over all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tdecomp._xp import Array, adjoint, floor, namespace, quick_sum_of_squares, to_numpy
from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.decomposition.method import Analysis, Method, Share
from tdecomp.decomposition.run import run
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format, LowRank
from tdecomp.linalg import Svd, Triplets, is_cheap, singular_values, svd_settled
from tdecomp.passes.coordinates import Frame, Metric, metric_frame
from tdecomp.passes.residual import measure, relative, residual_of_pair
from tdecomp.passes.slices import Input, check_matrices, dense, mode_names, raw_slices, slices
from tdecomp.passes.stream import CLOSE, FIRST_WIDTH, OVERSAMPLES
from tdecomp.progress import Progress, silent
from tdecomp.ranking.frontier import spectrum_frontier
from tdecomp.ranking.target import Rank, Target
from tdecomp.tensor import mode_product

__all__ = ["svd", "svd_method"]

_MANY = 1_000_000  # matrices of a format


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
    progress: Progress = silent,
) -> Fit:
    """Independent truncated SVD of every matrix: ``X[site] ≈ u_site · diag(s_site) · vh_site``.

    Give exactly one of `rank`, `error` and `budget`. For an error or a budget the singular values
    of all matrices compete: each costs ``out + in + 1`` numbers and returns its square, so a matrix
    may get any rank, 0 included. That choice is optimal for independent SVDs ([eckart1936]); where
    the singular values of large matrices are sketched, to about 1e-3 of the energy left out.

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
    method = svd_method(names=names, svd=svd, metric=metric, rounding=rounding)
    return run(method, [x], Target(rank, error, budget), progress)[0]


def svd_method(
    *,
    names: str | Sequence[str] | None = None,
    svd: Svd | None = None,
    metric: Metric | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`svd` as the driver sees it: every matrix is a unit with a frontier of its own."""

    def frame_of(x: Input, like: Array) -> Frame:
        frame = metric_frame(metric, mode_names(x, names), x.shape, like)
        if frame and min(frame.lift) < len(x.shape) - 2:
            raise ArgumentError("svd takes a metric for its two matrix modes only; use tucker2")
        return frame

    def sites(x: Input) -> Iterator[_Site]:
        if isinstance(x, Format):
            return _format_sites(x, frame_of)
        return _array_sites(x, frame_of)

    def sizes(x: Input) -> Sequence[int]:
        check_matrices(x, "svd")
        if isinstance(x, Format) and x.n_sites > _MANY:
            raise DataError(
                f"svd decomposes each of the {x.n_sites:.3g} matrices of this {type(x).__name__} by"
                " itself: use tensor_train, which takes all modes together"
            )
        return x.shape[-2:]

    def analyse(x: Input, progress: Progress) -> Analysis:
        return looked(x, FIRST_WIDTH, progress)

    def looked(x: Input, width: int, progress: Progress, before: int = 0) -> Analysis:
        """Spectra of all matrices, down to `width` where a sketch is worth it."""
        plain = svd is None and metric is None and not isinstance(x, Format)
        sketched = plain and not is_cheap(tuple(x.shape[-2:]), width + OVERSAMPLES, many=True)
        cost, frontiers, found, reach = sum(x.shape[-2:]) + 1, [], [], 0.0
        for i, site in enumerate(sites(x)):
            least = floor(site.matrix.dtype)
            if sketched:
                found.append(svd_settled(site.matrix, width, energy=site.energy))
                s = to_numpy(found[-1][1])
                outside = _outside(site, found[-1])
                frontiers.append(spectrum_frontier(s, cost, least).plus(outside))
            else:
                frontiers.append(
                    spectrum_frontier(to_numpy(singular_values(site.matrix)), cost, least)
                )
            reach = max(reach, least)
            progress((i + 1) / _n_sites(x))
        if not sketched:
            return Analysis(frontiers, reach)
        kept = len(found) * cost * width
        again = lambda progress: looked(x, 2 * width, progress, before + 1)
        return Analysis(frontiers, reach, _Found(found, before + 1), kept, (width,), again)

    def ranks(x: Input, target: Target) -> list[tuple[int, ...]]:
        sides = ("rank",), (min(x.shape[-2:]),)
        return [target.ranks_of(*sides)] * _n_sites(x)

    def fit(x: Input, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        return fitted(x, choice, Which(svd), state, progress)

    def spend(
        x: Input, choice: list[tuple[int, ...]], share: Share, state, progress: Progress
    ) -> Fit:
        """Exact where the sketch would lose more than the tails that the ranks were chosen by."""
        found = fit(x, choice, state, progress)
        sketched = svd is None and found.svd != "exact"
        if state or not sketched or share.lost is None:
            return found
        if float(found.residual.sum()) <= share.lost:
            return found
        return fitted(x, choice, Which(None, always_exact=True), None, progress)

    def fitted(
        x: Input,
        choice: list[tuple[int, ...]],
        which: Which,
        state: _Found | None,
        progress: Progress,
    ) -> Fit:
        """Factors of every matrix and, while it is at hand, what they leave of it."""
        factors, left = [], []
        for i, ((rank,), site) in enumerate(zip(choice, sites(x), strict=True)):
            if state is None:
                triplets = which.triplets(site.matrix, min(rank, *site.matrix.shape), site.energy)
            else:
                u, s, vh = state.triplets[i]
                triplets = u[:, :rank], s[:rank], vh[:rank, :]
            factors.append(tuple(cast(x, a) for a in site.lifted(*triplets)))
            u, s, vh = factors[-1]
            left.append(residual_of_pair(site.matrix, *site.dropped(u * s, vh), site.energy))
            progress((i + 1) / _n_sites(x))
        tensor = _assemble(mode_names(x, names), x.shape[:-2], factors)
        if state is not None:
            which.used("svd_settled")
        residual, energy = np.array(left, dtype=np.float64).T
        return Fit(
            tensor,
            _error(residual, energy),
            residual,
            energy,
            {"sites": [to_numpy(s) for _, s, _ in factors]},
            error_method="coordinates" if isinstance(x, Format) else "residual",
            error_plain=_error(*_measured_plain(x, tensor)) if metric else None,
            svd=which.names,
            passes=1 if state is None else 1 + state.passes,
        )

    def cast(x: Input, array: Array) -> Array:
        if rounding is None:
            return array
        if isinstance(x, Format):
            raise ArgumentError("rounding needs an array or a stack: cast a format's arrays")
        return rounding(array)

    return Method(sizes, analyse, ranks, fit, spend)


class _Found(NamedTuple):
    """Leading triplets of every matrix, and how often the data were read for them."""

    triplets: list[Triplets]
    passes: int


class _Site(NamedTuple):
    """A matrix in coordinates, with the ways back and there: ``W = lift matrix liftᵀ``."""

    matrix: Array
    energy: float | None = None  # ‖matrix‖², where it is known
    out: tuple[Array, Array] | None = None  # lift (out, k), drop (k, out)
    inp: tuple[Array, Array] | None = None

    def lifted(self, u: Array, s: Array, vh: Array) -> tuple[Array, Array, Array]:
        u = u if self.out is None else self.out[0] @ u
        return u, s, vh if self.inp is None else vh @ self.inp[0].T

    def dropped(self, left: Array, right: Array) -> tuple[Array, Array]:
        left = left if self.out is None else self.out[1] @ left
        return left, right if self.inp is None else right @ self.inp[1].T


def _array_sites(x: Input, frame_of) -> Iterator[_Site]:
    k, frame = len(x.shape) - 2, None
    assert not isinstance(x, Format)
    cheap = is_cheap(tuple(x.shape[-2:]), 0, many=True)
    for matrix in slices(x) if cheap else raw_slices(x):
        energy = None
        if not cheap and not math.isfinite(energy := quick_sum_of_squares(matrix)):
            dense(matrix)  # refuses it in words
        frame = frame_of(x, matrix) if frame is None else frame
        for mode in frame.drop:
            matrix, energy = mode_product(matrix, frame.drop[mode], mode - k), None
        yield _Site(matrix, energy, *(_both(frame, mode) for mode in (k, k + 1)))


def _format_sites(x: Format, frame_of) -> Iterator[_Site]:
    """``left right = Q_out (R_out R_inᵀ) Q_inᵀ`` for every site's pair of factors."""
    frame = frame_of(x, next(iter(x.arrays.values())))
    down = frame.down(x)
    k = len(x.shape) - 2
    for i in range(x.n_sites):
        left, right = down.pair(i)
        xp = namespace(left, right)
        if left.shape[1] == 0:  # rank 0: one zero in place of nothing
            made = {"dtype": left.dtype, "device": left.device}
            left, right = (xp.zeros(shape, **made) for shape in ((x.shape[k], 1), (1, x.shape[-1])))
        q, r = xp.linalg.qr(left, mode="reduced")
        p, t = xp.linalg.qr(right.T, mode="reduced")
        inner = Frame({k: q, k + 1: p}, {k: adjoint(q), k + 1: adjoint(p)})
        whole = frame.then(inner)
        yield _Site(dense(r @ t.T), None, *(_both(whole, mode) for mode in (k, k + 1)))


def _measured_plain(x: Input, tensor: LowRank) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(x, Format):
        return _left_of(_format_sites(x, lambda *_: Frame()), tensor)
    return measure(x, tensor)


def _outside(site: _Site, found: Triplets) -> float:
    """Squared norm of what a truncated SVD leaves of a matrix."""
    assert site.energy is not None
    outside = site.energy - float(np.sum(to_numpy(found[1]).astype(np.float64) ** 2))
    if outside > CLOSE * site.energy or site.energy == 0:
        return max(0.0, outside)
    return residual_of_pair(site.matrix, found[0] * found[1], found[2], site.energy)[0]


def _left_of(sites: Iterator[_Site], tensor: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """Squared residual and squared norm of every site, in its coordinates."""
    pairs = [
        residual_of_pair(site.matrix, *site.dropped(*tensor.pair(i)))
        for i, site in enumerate(sites)
    ]
    residual, energy = np.array(pairs, dtype=np.float64).T
    return residual, energy


def _error(residual: np.ndarray, energy: np.ndarray) -> float:
    return relative(float(residual.sum()), float(energy.sum()))


def _both(frame: Frame, mode: int) -> tuple[Array, Array] | None:
    return (frame.lift[mode], frame.drop[mode]) if mode in frame.lift else None


def _n_sites(x: Input) -> int:
    return math.prod(x.shape[:-2])


def _assemble(modes: tuple[str, ...], sites: Sequence[int], factors: list) -> LowRank:
    us, ss, vhs = zip(*factors, strict=True)
    xp = namespace(us[0])
    return LowRank(
        modes,
        tuple(int(n) for n in sites),
        tuple(int(s.shape[0]) for s in ss),
        xp.concat(list(us), axis=1),
        xp.concat(list(ss)),
        xp.concat(list(vhs), axis=0),
    )
