"""Independent truncated SVD of every matrix, ranks chosen over all of them together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdecomp._xp import Array, namespace, to_numpy
from tdecomp.decomposition._fit import Fit, Rounding, make_fit, slices
from tdecomp.decomposition._ranks import Rank, Target, spectrum_frontier
from tdecomp.decomposition._run import Analysis, Method, Progress, floor, mode_names, run, silent
from tdecomp.formats import LowRank
from tdecomp.linalg import singular_values, truncated_svd
from tdecomp.stack import Stack

__all__ = ["svd", "svd_method"]


def svd(
    x: Array | Stack,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Independent truncated SVD of every matrix: ``X[site] ≈ u_site · diag(s_site) · vh_site``.

    Give exactly one of `rank`, `error` and `budget`. For an error or a budget the singular values
    of all matrices compete: each costs ``out + in + 1`` numbers and returns its square, so a matrix
    may get any rank, 0 included. That choice is optimal for independent SVDs ([eckart1936]).

    Parameters
    ----------
    x
        ``(..., out, in)``: every index over the leading modes is a matrix; or a `Stack`, read one
        matrix at a time.
    rank
        Rank of every matrix, at most its smaller side.
    error
        Relative Frobenius error over all matrices, met by the returned factors.
    budget
        Numbers to store, at most.
    names
        Mode names of an array, ``"layer proj out in"``.
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
    method = svd_method(names=names, rounding=rounding)
    return run(method, [x], Target(rank, error, budget), progress)[0]


def svd_method(
    *, names: str | Sequence[str] | None = None, rounding: Rounding | None = None
) -> Method:
    """`svd` as the driver sees it: every matrix is a unit with a frontier of its own."""

    def analyse(x, progress: Progress) -> Analysis:
        spectra, reach = [], 0.0
        for i, matrix in enumerate(slices(x)):
            spectra.append(to_numpy(singular_values(matrix)))
            reach = max(reach, floor(matrix.dtype))
            progress((i + 1) / _n_sites(x))
        cost = x.shape[-2] + x.shape[-1] + 1
        return Analysis([spectrum_frontier(s, cost) for s in spectra], reach)

    def ranks(x, target: Target) -> list[tuple[int, ...]]:
        sides = ("rank",), (min(x.shape[-2:]),)
        return [target.ranks_of(*sides)] * _n_sites(x)

    def fit(x, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        del state
        factors = []
        for i, ((rank,), matrix) in enumerate(zip(choice, slices(x), strict=True)):
            factors.append(truncated_svd(matrix, rank))
            progress((i + 1) / _n_sites(x))
        tensor = _assemble(mode_names(x, names), x.shape[:-2], factors)
        kept = [to_numpy(s) for _, s, _ in factors]
        return make_fit(x, tensor, rounding, {"sites": kept})

    return Method(lambda x: x.shape[-2:], analyse, ranks, fit)


def _n_sites(x: Array | Stack) -> int:
    return int(np.prod(x.shape[:-2], dtype=np.int64))


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
