"""CP decomposition of a given rank, or the rank for an error or a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares, to_numpy, working
from tdecomp.decomposition._cp_als import Components
from tdecomp.decomposition._cp_init import STARTS
from tdecomp.decomposition._cp_solve import SHORT, Options, components_of, cp_tensor, solve_cp
from tdecomp.decomposition._fit import (
    Fit,
    Rounding,
    Trace,
    check_shape,
    dense,
    in_float64,
    make_fit,
    relative,
    slices,
)
from tdecomp.decomposition._ranks import Target
from tdecomp.decomposition._run import Progress, floor, mode_names, silent
from tdecomp.errors import ArgumentError, DataError, NotReached
from tdecomp.formats import CP, Format
from tdecomp.linalg import left_basis
from tdecomp.stack import Stack

__all__ = ["cp"]

Solve = Callable[[int, Format | None], Fit]
"""``(rank, result of a smaller rank) -> Fit``."""


def cp(
    x: Array | Stack,
    *,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
    init: Literal["hosvd", "random", "gevd"] | Format = "hosvd",
    n_iter_max: int = 100,
    tol: float = 1e-6,
    random_state: int | np.random.Generator | None = None,
    ridge: float = 0.0,
    compress: bool = True,
    line_search: bool = True,
    weights: Array | None = None,
    n_restarts: int = 1,
    rank_max: int = 64,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """CP decomposition: ``X[i, j, ...] ≈ Σ_r w_r A[i, r] B[j, r] ...``.

    The tensor is first projected on HOSVD bases of ``min(n, R)`` columns per mode, CP is computed
    on that core by alternating least squares, the factors are expanded by the bases
    ([carroll1980]), and up to 30 sweeps on the whole tensor follow. Because the bases are
    orthonormal, ``‖X − X̂‖² = lost + ‖core − ĉore‖²`` for every CP tensor in their span, where
    ``lost`` is what the projection cut off: nothing is given away when the unfoldings have rank
    ``R`` or less (every exact CP tensor of rank ``R``) or when no mode is larger than ``R``, and
    then there are no further sweeps.

    The error of the sweeps never rises; the global optimum is not guaranteed, and a best
    approximation need not exist ([desilva2008]). A tensor with at most two modes larger than 1 is
    a matrix and gets its truncated SVD, which is optimal. A rank-deficient Gram matrix is harmless
    (see `ridge`). Non-negative factors: use TensorLy.

    Parameters
    ----------
    x
        Real array of order 2 or more, or a `Stack` (loaded whole).
    rank
        Number of components; it may be above the sizes of the modes. No tensor needs more than the
        product of all sizes but the largest: a rank up to the largest size is cut to that.
    error
        Relative Frobenius error, met by the returned factors. Ranks are tried from the least one
        that the singular values of the unfoldings allow, doubled, then bisected; each begins from
        the largest smaller rank tried plus components of its residual. The rank found is small, not
        proven smallest.
    budget
        Numbers to store, at most: the largest rank with ``R (1 + Σ n_k)`` of them.
    names
        Mode names of an array, ``"layer proj out in"``.
    init
        ``"hosvd"`` (leading singular vectors, slightly disturbed, random columns beyond them),
        ``"random"``, ``"gevd"`` (generalised eigenvectors of two slices; where impossible, HOSVD,
        and `trace` says so), or any format of the same shape: of a `CP` the strongest `rank`
        components are used, missing ones come from the residual; it is never modified.
    n_iter_max, tol
        Sweeps at most, and the relative change of the error at which they stop.
    random_state
        Seed or generator; None is seed 0.
    ridge
        Pull of each update towards the factor it replaces, relative to the unit diagonal of the
        normal equations; at least 1e-12 is always used. It slows the iteration and does not bias
        its limit ([li2013rals]).
    compress, line_search
        Whether to work on the core first, and whether to extrapolate after each sweep.
    weights
        Of the entries, non-negative or a boolean mask of those observed, of the shape and library
        of `x`. All errors are then those of ``√weights (X − X̂)`` relative to ``√weights X``, and
        what `x` holds where the weight is 0 (NaN, say) plays no part. Nothing is compressed, and
        what is missing is taken from the model before each sweep ([tomasi2005]): slow where much
        is missing, so raise `n_iter_max`.
    n_restarts
        Number of starts: the first as `init` says, the others random; the best one wins.
    rank_max
        Largest rank that the search for `error` may try.
    rounding
        Applied to every factor before the error is measured (storage precision).
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `CP` tensor: unit columns, weights largest first, the largest entry of every column
        positive in all modes but the last. `trace.reason` names the start that won.

    Raises
    ------
    ArgumentError
        Not exactly one target, a rank no tensor of the shape can have, a budget below rank 1.
    NotReached
        The error was not met up to `rank_max`; its `best` is the closest Fit.
    DataError
        NaN, Inf, complex entries or an empty mode.

    Examples
    --------
    >>> import numpy as np
    >>> a, b, c = (np.random.default_rng(0).standard_normal((n, 2)) for n in (4, 5, 6))
    >>> fit = cp(np.einsum("ir,jr,kr->ijk", a, b, c), rank=2, names="layer out in")
    >>> fit.tensor.rank, fit.n_params, fit.error < 1e-6
    (2, 32, True)
    """
    check_shape(x)
    with in_float64(x):
        target = Target(rank, error, budget)
        _check_options(n_iter_max, tol, ridge, n_restarts, rank_max)
        modes = mode_names(x, names)
        entries = None if weights is None else _entries(weights, x)
        array = dense(x) if entries is None else _observed(x, entries)
        _check_real(array)
        given = _checked(init, array)
        seed = _seed(random_state)
        start = given if isinstance(given, str) else "hosvd"
        compress = compress and entries is None
        options = Options(
            start, n_iter_max, tol, ridge, compress, line_search, n_restarts, seed, entries
        )

        def solve(rank: int, smaller: Format | None = None, progress: Progress = silent) -> Fit:
            warm = _given(given if smaller is None else smaller, rank, options)
            found, trace = solve_cp(array, rank, warm, options, progress)
            tensor = cp_tensor(modes, found, array.dtype)
            if entries is not None:
                return _weighted_fit(array, entries, tensor, rounding, trace)
            return make_fit(x, tensor, rounding, {}, trace)

        if target.error is not None:
            least = 1 if entries is not None else _least_rank(array, target.error)
            return _search(array, target.error, least, rank_max, solve, progress)
        return solve(_rank(target, array), None, progress)


def _check_options(n_iter_max: int, tol: float, ridge: float, n_restarts: int, rank_max: int):
    counts = {"n_iter_max": n_iter_max, "n_restarts": n_restarts, "rank_max": rank_max}
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ArgumentError(f"{name}={count!r} must be a whole number, 1 or more")
    for name, value in {"tol": tol, "ridge": ridge}.items():
        if not 0 <= value < math.inf:
            raise ArgumentError(f"{name}={value!r} must be 0 or more")


def _check_real(x: Array) -> None:
    if namespace(x).isdtype(x.dtype, "complex floating"):
        raise DataError(
            f"cp takes real arrays, got {x.dtype}: decompose the real and imaginary parts, or use"
            " svd, hosvd or tucker"
        )


def _entries(weights: Array, x: Array | Stack) -> Array:
    """Weights of the entries in float64, the largest 1."""
    xp = namespace(weights)
    if tuple(weights.shape) != tuple(x.shape):
        raise ArgumentError(
            f"weights has the shape {tuple(weights.shape)}, the array {tuple(x.shape)}"
        )
    entries = xp.astype(weights, xp.float64)
    largest = float(xp.max(entries))
    if not (float(xp.min(entries)) >= 0 and 0 < largest < math.inf):
        raise ArgumentError("weights must be finite and 0 or more, and not all 0")
    return entries / largest


def _observed(x: Array | Stack, entries: Array) -> Array:
    """The array in working precision, 0 where the weight is 0."""
    array = working(x.dense() if isinstance(x, Stack) else x)
    xp = namespace(array, entries)
    return dense(xp.where(entries > 0, array, xp.zeros_like(array)))


def _weighted_fit(
    x: Array, entries: Array, tensor: CP, rounding: Rounding | None, trace: Trace
) -> Fit:
    """`make_fit` with all squares multiplied by the weights of the entries."""
    if rounding is not None:
        tensor = tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})
    xp = namespace(x)
    roots = xp.reshape(xp.sqrt(entries), (-1, *x.shape[-2:]))
    pairs = []
    for site, matrix in enumerate(slices(x)):
        left, right = tensor.pair(site)
        difference = double(matrix) - double(left) @ double(right)
        root = roots[site, ...]
        pairs.append((sum_of_squares(root * difference), sum_of_squares(root * double(matrix))))
    residual, energy = np.array(pairs, dtype=np.float64).T
    return Fit(
        tensor, relative(float(residual.sum()), float(energy.sum())), residual, energy, {}, trace
    )


def _checked(init: str | Format, x: Array) -> str | Format:
    """A start by name, or a format that fits the array."""
    if isinstance(init, str) and init in STARTS:
        return init
    if not isinstance(init, Format):
        raise ArgumentError(f"init={init!r} must be one of {', '.join(STARTS)}, or a format")
    if init.shape != tuple(x.shape):
        raise ArgumentError(f"init has the shape {init.shape}, the array {tuple(x.shape)}")
    namespace(x, *init.arrays.values())
    for array in init.arrays.values():
        _check_real(dense(array))
    return init


def _given(init: str | Format, rank: int, options: Options) -> Components | None:
    """Components of the format to begin from, if one was given."""
    if isinstance(init, CP):
        return components_of(init)
    if isinstance(init, Format):
        short = replace(options, n_iter_max=SHORT, n_restarts=1, entries=None)
        return solve_cp(dense(init.to_dense()), rank, None, short, silent)[0]
    return None


def _seed(random_state: int | np.random.Generator | None) -> int:
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    return 0 if random_state is None else int(random_state)


def _reach(shape: tuple[int, ...]) -> int:
    """A rank that every tensor of this shape has: its fibres along the largest mode."""
    return math.prod(shape) // max(shape)


def _rank(target: Target, x: Array) -> int:
    """Rank that a given rank or budget means."""
    shape = tuple(x.shape)
    if target.budget is not None:
        each = 1 + sum(shape)
        if target.budget < each:
            raise ArgumentError(
                f"budget {target.budget} is below rank 1: the smallest possible is {each} numbers"
            )
        return min(target.budget // each, _reach(shape))
    if not isinstance(target.rank, int | np.integer):
        raise ArgumentError(f"rank={target.rank!r}: CP has one rank, a whole number")
    if target.rank > max(_reach(shape), *shape):
        raise ArgumentError(
            f"rank {target.rank} is above {_reach(shape)}: no tensor of shape {shape} needs more"
        )
    return min(int(target.rank), _reach(shape))


def _search(
    x: Array, error: float, least: int, rank_max: int, solve: Solve, progress: Progress
) -> Fit:
    """A small rank that meets the error: upwards in doubles, then between the last two."""
    if error < floor(x.dtype):
        raise ArgumentError(
            f"error={error:g} is below {floor(x.dtype):g}, what this precision can reach"
        )
    if sum_of_squares(x) == 0:
        return solve(0, None)
    most = min(rank_max, _reach(tuple(x.shape)))
    rank, failed, fits = min(least, most), 0, []

    def attempt(rank: int) -> Fit:
        smaller = [f for f in fits if f.tensor.rank < rank]
        fits.append(solve(rank, smaller[-1].tensor if smaller else None))
        progress(1 - 0.7 ** len(fits))
        return fits[-1]

    while (fit := attempt(rank)).error > error:
        if rank == most:
            best = min(fits, key=lambda f: f.error)
            raise NotReached(
                f"error={error:g} was not reached up to rank {most}: the best is {best.error:.3g}"
                f" at rank {best.tensor.rank} (attribute best); raise rank_max={rank_max},"
                " n_restarts or n_iter_max, or ask for a larger error",
                best,
            )
        failed, rank = rank, min(2 * rank, most)
    while failed and fit.tensor.rank - failed > 1:
        middle = attempt((fit.tensor.rank + failed) // 2)
        if middle.error <= error:
            fit = middle
        else:
            failed = middle.tensor.rank
    return fit


def _least_rank(x: Array, error: float) -> int:
    """Rank below which some unfolding alone already loses more than the error."""
    least = 1
    for mode in range(len(x.shape)):
        energy = to_numpy(left_basis(x, mode)[1]).astype(np.float64) ** 2
        tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        least = max(least, int(np.argmax(tails <= tails[0] * error**2)))
    return least
