"""Interpolative decomposition: some columns of the data are the basis of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, ClassVar, TypeVar

import numpy as np

from tdecomp._xp import (
    Array,
    adjoint,
    double,
    floor,
    namespace,
    quick_sum_of_squares,
    sum_of_squares,
    to_numpy,
)
from tdecomp.decomposition.checks import seed_of
from tdecomp.decomposition.fit import Fit, Rounding, make_fit
from tdecomp.decomposition.method import Analysis, Choice, Method
from tdecomp.decomposition.run import run_one
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Tucker
from tdecomp.linalg import random_matrix
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.data import Data
from tdecomp.passes.matrices import Matrix
from tdecomp.passes.slices import Input, check_matrices, each_slice
from tdecomp.passes.stream import CLOSE, OVERSAMPLES
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.frontier import spectrum_frontier
from tdecomp.ranking.rounding import SAME
from tdecomp.ranking.target import Rank, Target
from tdecomp.tasks import Executor, OfSlices, sendable

__all__ = ["InterpolativeMethod", "interpolative"]

Found = TypeVar("Found")


def interpolative(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Sequence[str | int] = (-1,),
    names: str | Sequence[str] | None = None,
    random_state: int | np.random.Generator | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Fit:
    """Randomised one-sided interpolative decomposition: ``X[..., out, :] ≈ X[..., out, J] Z``.

    The core holds columns of the data as they are, the same ``J`` for every matrix, so what is kept
    can be read (which inputs matter), and signs and zeros stay. All other columns are combinations
    of these, fitted by least squares. The error is never below that of the best shared basis of as
    many columns (`tucker` with one mode): what this costs buys columns that mean something.

    Parameters
    ----------
    x
        ``(..., out, in)``, a `Stack` (read one matrix at a time), or any format.
    rank
        Number of columns; more than are independent are not taken.
    error
        Relative Frobenius error, met by the returned factors.
    budget
        Numbers to store, at most.
    modes
        The one mode whose indices are chosen: ``("in",)``, columns, or ``("out",)``, rows.
    names
        Mode names of an array.
    random_state
        Seed or generator of the sketch that columns are chosen by; None is seed 0.
    rounding
        Applied to both factors before the error is measured (storage precision).
    rank_max
        The largest number of columns that an error or a budget may give.
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `Tucker` tensor: its core ``(..., out, r)`` holds the columns in the order of choice,
        its one factor ``(in, r)`` is ``Zᵀ``, the identity in the rows of the chosen columns.

    Raises
    ------
    ArgumentError
        Not exactly one target, another mode than ``out`` or ``in``, a rank above its size, a budget
        below rank 1.
    NotReached
        An error that needs more columns than `rank_max`; its `best` is the Fit of that many.
    DataError
        NaN, Inf, an empty mode, or no matrices.

    Notes
    -----
    Columns are chosen by QR with column pivoting of a random sketch of all rows ([halko2011],
    section 5.2); the coefficients are those of least squares with the data themselves. Four passes
    over the data, of ``2 (rank + 10)`` flops per number each; one more where the error is small.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.outer([1.0, 2.0, 3.0], [2.5, 5.0, 1.0])
    >>> fit = interpolative(x, rank=1)
    >>> fit.tensor.core[:, 0].tolist(), fit.tensor.factors[1][:, 0].round(12).tolist()
    ([5.0, 10.0, 15.0], [0.5, 1.0, 0.2])
    """
    method = InterpolativeMethod(
        modes=modes, names=names, random_state=random_state, rounding=rounding
    )
    return run_one(method, x, Target(rank, error, budget, rank_max), progress, executor)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Columns in the order of choice, and what they capture of all the others.

    Attributes
    ----------
    picked
        ``(k,)`` positions.
    core
        ``(rows of all matrices, k)``: the columns.
    triangle
        ``(k, k)``, of their QR decomposition in float64.
    inside
        ``(k, n) = Qᴴ X``.
    shape
        Of the data in the coordinates that are looked at, sites first, the chosen mode last.
    outside
        ``‖X − Q Qᴴ X‖²``.
    """

    picked: np.ndarray
    core: Array
    triangle: np.ndarray
    inside: np.ndarray
    shape: tuple[int, ...]
    frame: Frame
    array: Array | None
    outside: float
    passes: int


@dataclass(frozen=True, kw_only=True)
class InterpolativeMethod(Method[_Columns]):
    """Some columns of the data as they are, and how all others are made of them."""

    by_modes: ClassVar[bool] = True

    modes: Sequence[str | int] = (-1,)
    random_state: int | np.random.Generator | None = None

    def __post_init__(self):
        if isinstance(self.modes, str | int) or len(self.modes) != 1:
            raise ArgumentError(
                f"modes={self.modes!r}: interpolative chooses indices of one mode, ('in',) or"
                " ('out',)"
            )

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """Sides of the matrices."""
        check_matrices(x.shape, "interpolative")
        self._where(x)
        return x.shape[-2:]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """The number of columns."""
        k = self._where(x)
        return [target.ranks_of((x.modes[k],), (x.shape[k],))]

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[_Columns]:
        """What the first `width` columns capture, one after the other."""
        seen = self._columns(x, width, progress, passes, measured=True)
        k = self._where(x)
        cost = x.size // x.shape[k] + x.shape[k]
        squares = np.sum(np.abs(seen.inside) ** 2, axis=1)  # (k,)
        least = floor(seen.core.dtype)
        frontier = spectrum_frontier(np.sqrt(squares), cost, least).plus(seen.outside)
        is_whole = len(seen.picked) < width  # there are no further ones
        return Analysis(
            frontiers=[frontier],
            floor=least,
            state=seen,
            state_size=len(seen.picked) * cost,
            limits=() if is_whole else (width,),
            width=width,
            passes=seen.passes,
        )

    def fit(self, x: Data[Any], choice: Choice, state: _Columns | None, progress: Progress) -> Fit:
        """The columns, and all others by least squares."""
        rank = choice[0][0]
        seen = state or self._columns(x, rank, part(progress, 0, 0.9), 0, measured=False)
        rank = min(rank, len(seen.picked))
        xp, k = namespace(seen.core), self._where(x)
        core = xp.reshape(seen.core[:, :rank], (*seen.shape[:-1], rank))  # (..., out, r)
        if k == len(x.shape) - 2:
            core = xp.permute_dims(core, (*range(k), k + 1, k))  # (..., r, in)
        made = {"dtype": seen.core.dtype, "device": seen.core.device}
        factors: list[Array | None] = [None] * len(x.shape)
        factors[k] = xp.asarray(_coefficients(seen, rank).T.copy(), **made)  # (n, r)
        return make_fit(
            x,
            seen.frame.up(Tucker(x.modes, core, tuple(factors))),
            rounding=self.rounding,
            seen=None if seen.array is None else (seen.array, seen.frame),
            svd="none: pivoted QR of a sketch",
            passes=seen.passes + 1,
        )

    def _where(self, x: Data[Any]) -> int:
        (k,) = positions(x.modes, self.modes)
        if k < len(x.shape) - 2:
            raise ArgumentError(
                f"modes={self.modes!r}: interpolative chooses indices of {x.modes[-2]!r} or"
                f" {x.modes[-1]!r}"
            )
        return k

    def _columns(
        self, x: Data[Any], width: int, progress: Progress, passes: int, *, measured: bool
    ) -> _Columns:
        """Three passes: a sketch to choose by, the columns, the rest on their span."""
        k, array, frame = self._where(x), None, Frame()
        if x.is_format:
            array, frame = x.coordinates([x.modes[k]])
        blocks = _Blocks(x, array, turned=k == len(x.shape) - 2)
        energy, picked = _pivots(blocks, width, seed_of(self.random_state))
        progress(0.3)
        with blocks.each(partial(_taken, picked)) as found:
            parts = list(found)
        xp = namespace(*parts)
        core = xp.concat(parts, axis=0)  # (rows, k)
        q, triangle = xp.linalg.qr(double(core), mode="reduced")  # (rows, k), (k, k)
        progress(0.6)
        inside = _inside(blocks, q)
        outside = max(0.0, energy - sum_of_squares(inside))
        passes += 3
        if measured and outside <= CLOSE * energy:
            outside = _left(blocks, q, inside)
            passes += 1
        return _Columns(
            picked=picked,
            core=core,
            triangle=to_numpy(triangle),
            inside=to_numpy(inside),
            shape=blocks.shape,
            frame=frame,
            array=array,
            outside=outside,
            passes=passes,
        )


@dataclass(frozen=True)
class _Blocks:
    """The matrices, each by itself, with the mode that is chosen from as their columns."""

    x: Data[Any]
    array: Array | None
    turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.x.shape if self.array is None else tuple(self.array.shape)
        return (*shape[:-2], shape[-1], shape[-2]) if self.turned else shape

    def each(self, work: Callable[[int, Array], Found]) -> AbstractContextManager[Iterator[Found]]:
        if self.array is None:
            return self.x.each(partial(_of_matrix, self.turned, work))
        return each_slice(self.array, partial(_of_block, self.turned, work))

    def rows(self, q: Array) -> OfSlices[Array]:
        """Those of a basis that belong to each matrix."""
        *sites, n, _ = self.shape
        return OfSlices({i: q[i * n : (i + 1) * n, :] for i in range(math.prod(sites))})


@sendable
def _of_block(turned: bool, work: Callable[[int, Array], Found], i: int, block: Array) -> Found:
    return work(i, block.T if turned else block)


@sendable
def _of_matrix(turned: bool, work: Callable[[int, Array], Found], i: int, matrix: Matrix) -> Found:
    return _of_block(turned, work, i, matrix.array)


def _pivots(blocks: _Blocks, width: int, seed: int) -> tuple[float, np.ndarray]:
    """``‖X‖²``, and the columns that a sketch of all rows is best spanned by."""
    n = blocks.shape[-1]
    width = min(width, n, math.prod(blocks.shape[:-1]))
    total, energy, least = None, 0.0, 0.0
    with blocks.each(partial(_sketched, seed, min(n, width + OVERSAMPLES))) as found:
        for rows, squares, precision in found:
            total = rows if total is None else total + rows
            energy += squares
            least = max(least, precision)
    assert total is not None
    sketched = to_numpy(total)
    if not math.isfinite(energy) or not np.isfinite(sketched).all():
        raise DataError("the array to decompose contains NaN or Inf")
    return energy, _pivoted(sketched, width, least)


@sendable
def _sketched(seed: int, width: int, site: int, block: Array) -> tuple[Array, float, float]:
    """Random combinations ``(width, n)`` of rows, their squared norm, and their precision."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(site,)))
    test = random_matrix(rng, (width, block.shape[0]), block)
    return double(test @ block), quick_sum_of_squares(block), floor(block.dtype)


def _pivoted(sketched: np.ndarray, most: int, least: float) -> np.ndarray:
    """Columns in the order in which QR with column pivoting takes them.

    Of columns that are as good to 1e-4 the first: a tie must not hang on rounding.
    """
    rest, picked = sketched.copy(), []
    squares = np.sum(np.abs(rest) ** 2, axis=0)
    nothing = (least / 10) ** 2 * float(squares.max(initial=0.0))
    while len(picked) < most and squares.max() > nothing:
        j = int(np.argmax(squares >= (1 - SAME) * squares.max()))
        picked.append(j)
        q = rest[:, j] / math.sqrt(squares[j])
        rest -= np.outer(q, q.conj() @ rest)
        rest[:, j] = 0.0
        squares = np.sum(np.abs(rest) ** 2, axis=0)
        squares[picked] = 0.0
    return np.array(picked, dtype=np.int64)


@sendable
def _taken(picked: np.ndarray, site: int, block: Array) -> Array:
    del site
    xp = namespace(block)
    if len(picked) == 0:
        return block[:, :0]
    return xp.take(block, xp.asarray(picked, device=block.device), axis=1)  # (rows, k)


def _inside(blocks: _Blocks, q: Array) -> Array:
    """``Qᴴ X``, ``(k, n)``."""
    with blocks.each(partial(_part_inside, blocks.rows(q))) as found:
        return reduce(add, found)


@sendable
def _part_inside(rows: OfSlices[Array], site: int, block: Array) -> Array:
    return adjoint(rows[site]) @ double(block)


def _left(blocks: _Blocks, q: Array, inside: Array) -> float:
    """``‖X − Q Qᴴ X‖²``, formed directly."""
    with blocks.each(partial(_part_left, blocks.rows(q), inside)) as found:
        return sum(found)


@sendable
def _part_left(rows: OfSlices[Array], inside: Array, site: int, block: Array) -> float:
    return sum_of_squares(double(block) - rows[site] @ inside)


def _coefficients(seen: _Columns, rank: int) -> np.ndarray:
    """``Z (r, n)`` of least squares, exactly the identity on the columns themselves."""
    triangle, inside = seen.triangle[:rank, :rank], seen.inside[:rank]
    found = np.linalg.solve(triangle, inside) if rank else inside
    found[:, seen.picked[:rank]] = np.eye(rank)
    return found
