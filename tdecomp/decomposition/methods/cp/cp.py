"""CP decomposition of a given rank, or the rank for an error or a budget."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tdecomp._xp import Array, floor, namespace, to_numpy
from tdecomp.decomposition.checks import check_iteration, check_real, is_one_of, seed_of
from tdecomp.decomposition.entries import checked_weights, observed
from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.decomposition.method import Analysis, Choice, Method, Share
from tdecomp.decomposition.methods.cp.frontier import (
    cost,
    frontier,
    given_rank,
    least_rank,
    spectra_of,
)
from tdecomp.decomposition.methods.cp.solve import CPIteration, Spectra
from tdecomp.decomposition.methods.cp.starts import STARTS
from tdecomp.decomposition.methods.cp.view import CPView
from tdecomp.decomposition.rank_search import search_rank
from tdecomp.decomposition.run import run_one
from tdecomp.errors import ArgumentError
from tdecomp.formats import CP, Format
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.data import Data, refuse_format
from tdecomp.passes.slices import Input, dense
from tdecomp.passes.stream import FIRST_WIDTH, Stream, streamed, worth_sketching
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.target import Target
from tdecomp.tasks import Executor

__all__ = ["CPMethod", "cp"]

_SEEN = 0.5  # of the progress, once there is a sketch of the long modes

Init = Literal["hosvd", "random", "gevd"] | Format | None


def cp(
    x: Input,
    *,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
    init: Init = None,
    n_iter_max: int = 100,
    tol: float = 1e-6,
    random_state: int | np.random.Generator | None = None,
    ridge: float = 0.0,
    compress: bool = True,
    line_search: bool = True,
    weights: Array | None = None,
    nonnegative: bool = False,
    fixed: str | Sequence[str] | None = None,
    n_restarts: int = 1,
    rank_max: int = 64,
    rounding: Rounding | None = None,
    executor: Executor | None = None,
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
    (see `ridge`).

    Parameters
    ----------
    x
        Real array, `Stack`, or any format: then CP is computed on the core of
        `tdecomp.formats.to_tucker`, whose bases are orthonormal and expand the factors again. The
        dense tensor of a format is never formed. Where exact bases of both long modes would cost
        more than a few passes of skinny products, those make the core, one slice of a stack in
        memory at a time (``fit.svd`` begins with ``"sketch"``); else a stack is loaded whole.
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
        components are used, missing ones come from the residual; it is never modified. None is
        ``"hosvd"``, and beside it the strongest components of an `x` that is a `CP`; where a sweep
        on the core is cheap (rank times its numbers up to 2^18), ``"hosvd"`` and seven random
        starts take 40 sweeps there and the best go on: one, or where a sweep on the data is cheap
        too (2^18 numbers) two and ``"hosvd"`` on the data. No others are tried where the first
        loses next to nothing of the core.
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
        is missing, so raise `n_iter_max`. Not for a format.
    nonnegative
        Whether no factor may have a negative entry: hierarchical alternating least squares of
        TensorLy ([cichocki2009]), on the host, whole. With ``init`` ``"hosvd"`` or ``"random"``
        (their absolute values) or a `CP` without negative entries, whose missing components are
        random; without `ridge`, and not for a format; `compress` and `line_search` play no part.
    fixed
        Modes whose columns stay those of `init`, a `CP` of just the rank asked for: they come back
        as they were but for their norms, signs and order. Not for a format.
    n_restarts
        Number of starts: the first as `init` says, the others random; the best one wins. Of those
        that are tried so many go on at least.
    rank_max
        Largest rank that the search for `error` may try.
    rounding
        Applied to every factor before the error is measured (storage precision).
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `CP` tensor: unit columns, weights largest first, the largest entry of every column
        positive in all modes but the last. `trace.reason` names the start that won; ``spectra``
        holds the singular values of the unfoldings that were looked at, by mode, to compress or to
        choose a rank. The error of a format is measured on its core (`error_method` is
        ``"coordinates"``).

    Raises
    ------
    ArgumentError
        Not exactly one target, a rank no tensor of the shape can have, a budget below rank 1,
        options that exclude each other.
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
    method = CPMethod(
        names=names,
        init=init,
        n_iter_max=n_iter_max,
        tol=tol,
        random_state=random_state,
        ridge=ridge,
        compress=compress,
        line_search=line_search,
        weights=weights,
        nonnegative=nonnegative,
        fixed=fixed,
        n_restarts=n_restarts,
        rank_max=rank_max,
        rounding=rounding,
    )
    return run_one(method, x, Target(rank, error, budget), progress, executor)


@dataclass(frozen=True, kw_only=True)
class CPMethod(Method[Spectra]):
    """A sum of rank-one tensors, by alternating least squares.

    Over several inputs an error is divided by what the singular values of the unfoldings promise,
    and each share is met; a budget is divided the same way. Both divisions are estimates: a CP
    tensor of rank ``R`` loses at least the tail beyond ``R`` of every unfolding, often more.
    """

    init: Init = None
    n_iter_max: int = 100
    tol: float = 1e-6
    random_state: int | np.random.Generator | None = None
    ridge: float = 0.0
    compress: bool = True
    line_search: bool = True
    weights: Array | None = None
    nonnegative: bool = False
    fixed: str | Sequence[str] | None = None
    n_restarts: int = 1
    rank_max: int = 64

    def __post_init__(self):
        check_iteration(
            counts={
                "n_iter_max": self.n_iter_max,
                "n_restarts": self.n_restarts,
                "rank_max": self.rank_max,
            },
            amounts={"tol": self.tol, "ridge": self.ridge},
        )
        if not isinstance(self.init, Format) and not is_one_of(self.init, (None, *STARTS)):
            raise ArgumentError(
                f"init={self.init!r} must be one of {', '.join(STARTS)}, or a format"
            )
        if self.nonnegative:
            _check_nonnegative(self.init, self.ridge)
        if self.fixed is not None:
            _check_fixed(self.init)
        # a generator is drawn from once: every rank and every input has this seed
        object.__setattr__(self, "random_state", seed_of(self.random_state))

    @cached_property
    def iteration(self) -> CPIteration:
        """How to iterate, whatever the tensor."""
        return CPIteration(
            init=self.init if isinstance(self.init, str) else "hosvd",
            n_iter_max=self.n_iter_max,
            tol=self.tol,
            ridge=self.ridge,
            compress=self.compress and self.weights is None,
            line_search=self.line_search,
            n_restarts=self.n_restarts,
            seed=seed_of(self.random_state),
            tries=self.init is None,
        )

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """No bound: a rank above every size may be one that a tensor has, `ranks` says more."""
        del x
        return [sys.maxsize]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """The rank, cut to what a tensor of this shape can need."""
        rank = given_rank(target, x.shape)
        if self.fixed is not None:
            _check_held(self.init, rank)
        return [(rank,)]

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[Spectra]:
        """What the singular values of all unfoldings promise, down to `width` in a sketch."""
        if self.fixed is not None:
            _check_held(self.init, None)
        view = self._view(x, width, part(progress, 0, _SEEN))
        over = part(progress, _SEEN if view.stream else 0.1, 1)
        spectra = {} if self.weights is not None else spectra_of(view.array, over)
        found = frontier(view.energy, cost(x.shape), view.most, spectra)
        least = floor(view.array.dtype)
        if view.stream is None:
            kept = sum(map(len, spectra.values()))
            return Analysis(frontiers=[found], floor=least, state=spectra, state_size=kept)
        return Analysis(
            frontiers=[found.up_to(width).plus(view.stream.outside)],
            floor=least,
            limits=(width,),
            width=width,
            passes=passes + view.stream.passes,
        )

    def fit(self, x: Data[Any], choice: Choice, state: Spectra | None, progress: Progress) -> Fit:
        """The best CP tensor of this rank found."""
        ((rank,),) = choice
        view = self._view(x, rank, part(progress, 0, _SEEN))
        over = part(progress, _SEEN if view.stream else 0, 1)
        return view.solve(min(rank, view.most), None, state, over)

    def spend(
        self, x: Data[Any], choice: Choice, share: Share, state: Spectra | None, progress: Progress
    ) -> Fit:
        """The largest rank within a budget; the smallest rank found that meets an error."""
        if choice == [(0,)]:
            return self.fit(x, choice, state, progress)
        if share.params is not None:
            return self.fit(x, [(share.params // cost(x.shape),)], state, progress)
        assert share.lost is not None
        view = self._view(x, FIRST_WIDTH, silent)
        wanted = max(math.sqrt(share.lost / view.whole_energy), floor(view.array.dtype))
        if wanted >= 1:
            return view.solve(0, None, state, progress)
        return search_rank(
            lambda rank, smaller: self._tried(view, rank, smaller, state),
            error=wanted,
            least=least_rank(state or {}, share.lost),
            most=min(self.rank_max, view.most),
            advice=f"raise rank_max={self.rank_max}, n_restarts or n_iter_max, or ask for a larger"
            " error",
            progress=progress,
        )

    def _tried(self, view: CPView, rank: int, smaller: Fit | None, state: Spectra | None) -> Fit:
        """A fit in this view, or in a new one if it is a sketch: its width follows the rank."""
        view = view if view.stream is None else self._view(view.x, rank, silent)
        return view.solve(rank, smaller, state, silent)

    def _view(self, x: Data[Any], rank: int, progress: Progress) -> CPView:
        """The tensor as the sweeps see it; of a large stack what matters for this rank."""
        asked = {
            "weights": self.weights is not None,
            "nonnegative": self.nonnegative,
            "rounding": self.rounding is not None,
            "fixed": self.fixed is not None,
        }
        for option in (name for name, is_asked in asked.items() if is_asked):
            refuse_format(x, option)
        entries = None if self.weights is None else checked_weights(self.weights, x.given)
        stream = self._sketch(x, rank, progress)
        if stream is not None:
            array, frame = dense(stream.small), stream.frame
        elif entries is None:
            array, frame = x.coordinates()
        else:
            array, frame = observed(x.given, entries), Frame()
        check_real(array, "cp")
        own = x.given if self.init is None and isinstance(x.given, CP) else None
        start = self.init if isinstance(self.init, Format) else own
        if start is not None:
            _check_start(start, x.shape, array)
            start = frame.down(start) if frame else start
        return CPView(
            x=x,
            array=array,
            frame=frame,
            start=start,
            iteration=replace(
                self.iteration,
                entries=entries,
                also=own is not None,
                outside=stream.outside if stream else 0.0,
                fixed=self._fixed(x),
            ),
            nonnegative=self.nonnegative,
            rounding=self.rounding,
            stream=stream,
        )

    def _fixed(self, x: Data[Any]) -> tuple[int, ...]:
        """Positions of the modes that are held."""
        if self.fixed is None:
            return ()
        given = self.fixed.split() if isinstance(self.fixed, str) else self.fixed
        held = positions(x.modes, given)
        if len(held) == len(x.modes):
            raise ArgumentError("fixed names every mode: leave one to be fitted")
        return held

    def _sketch(self, x: Data[Any], rank: int, progress: Progress) -> Stream | None:
        """Coordinates of the long modes from a few passes, where the exact ones would cost more."""
        plain = self.iteration.compress and not self.nonnegative
        if not plain or isinstance(self.init, Format) or x.is_format or len(x.shape) < 3:
            return None
        ranks = worth_sketching(x.shape, (rank, rank))
        if ranks is None:
            return None
        return streamed(x.given, ranks, self.iteration.seed, progress)


def _check_start(start: Format, shape: tuple[int, ...], array: Array) -> None:
    """Refuse a start of another shape or library, or a complex one."""
    if start.shape != shape:
        raise ArgumentError(f"init has the shape {start.shape}, the array {shape}")
    namespace(array, *start.arrays.values())
    for a in start.arrays.values():
        check_real(a if 0 in a.shape else dense(a), "cp")


def _check_fixed(init: Init) -> None:
    if not isinstance(init, CP):
        raise ArgumentError("fixed modes keep the columns of init: give a CP tensor as init")


def _check_held(init: Init, rank: int | None) -> None:
    """Refuse any other rank than that of the columns that are held."""
    if isinstance(init, CP) and rank != init.rank:
        raise ArgumentError(
            f"fixed modes keep the {init.rank} columns of init: give rank={init.rank}"
        )


def _check_nonnegative(init: Init, ridge: float) -> None:
    if init == "gevd" or isinstance(init, Format) and not isinstance(init, CP):
        raise ArgumentError("nonnegative=True starts from init='hosvd', 'random' or a CP tensor")
    if isinstance(init, CP) and any((to_numpy(a) < 0).any() for a in init.arrays.values()):
        raise ArgumentError("nonnegative=True: init has negative weights or factors")
    if ridge:
        raise ArgumentError("nonnegative=True takes no ridge")
