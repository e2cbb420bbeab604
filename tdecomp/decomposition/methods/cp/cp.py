"""CP decomposition of a given rank, or the rank for an error or a budget."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tdecomp._xp import Array, double, floor, namespace, sum_of_squares
from tdecomp.decomposition.checks import check_iteration, check_real, is_one_of, seed_of
from tdecomp.decomposition.entries import checked_weights, observed, weighted_fit
from tdecomp.decomposition.fit import Fit, Rounding, make_fit
from tdecomp.decomposition.method import Analysis, Method, Share
from tdecomp.decomposition.methods.cp.frontier import (
    cost,
    frontier,
    given_rank,
    least_rank,
    reach,
    spectra_of,
)
from tdecomp.decomposition.methods.cp.nonnegative import solve_nonnegative
from tdecomp.decomposition.methods.cp.solve import (
    SHORT,
    Options,
    Spectra,
    components_of,
    cp_tensor,
    solve_cp,
)
from tdecomp.decomposition.methods.cp.starts import STARTS
from tdecomp.decomposition.methods.cp.sweeps import Components
from tdecomp.decomposition.rank_search import search_rank
from tdecomp.decomposition.run import run
from tdecomp.errors import ArgumentError
from tdecomp.formats import CP, Format
from tdecomp.passes.coordinates import Frame, format_frame
from tdecomp.passes.slices import Input, dense, mode_names
from tdecomp.passes.stream import FIRST_WIDTH, Stream, streamed, worth_sketching
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.target import Target

__all__ = ["cp", "cp_method"]

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
        ``"hosvd"``, and beside it the strongest components of an `x` that is a `CP`.
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
        (their absolute values), without `weights` and `ridge`, and not for a format; `compress` and
        `line_search` play no part.
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
    method = cp_method(
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
        n_restarts=n_restarts,
        rank_max=rank_max,
        rounding=rounding,
    )
    return run(method, [x], Target(rank, error, budget), progress)[0]


def cp_method(
    *,
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
    n_restarts: int = 1,
    rank_max: int = 64,
    rounding: Rounding | None = None,
) -> Method:
    """`cp` as the driver sees it.

    Over several inputs an error is divided by what the singular values of the unfoldings promise,
    and each share is met; a budget is divided the same way. Both divisions are estimates: a CP
    tensor of rank ``R`` loses at least the tail beyond ``R`` of every unfolding, often more.
    """
    check_iteration(
        counts={"n_iter_max": n_iter_max, "n_restarts": n_restarts, "rank_max": rank_max},
        amounts={"tol": tol, "ridge": ridge},
    )
    if not isinstance(init, Format) and not is_one_of(init, (None, *STARTS)):
        raise ArgumentError(f"init={init!r} must be one of {', '.join(STARTS)}, or a format")
    if nonnegative:
        _check_nonnegative(init, ridge, weights)
    options = Options(
        init if isinstance(init, str) else "hosvd",
        n_iter_max,
        tol,
        ridge,
        compress and weights is None,
        line_search,
        n_restarts,
        seed_of(random_state),
    )

    def sketch(x: Input, rank: int) -> Stream | None:
        """Coordinates of the long modes from a few passes, where the exact ones would cost more."""
        plain = compress and weights is None and not nonnegative and not isinstance(init, Format)
        if not plain or isinstance(x, Format) or len(x.shape) < 3:
            return None
        ranks = worth_sketching(tuple(x.shape), (rank, rank))
        return None if ranks is None else streamed(x, ranks, options.seed)

    def problem(x: Any, rank: int) -> _Problem:
        """As the iteration sees it; of a large stack what matters for this rank."""
        modes, stream = mode_names(x, names), None
        if isinstance(x, Format):
            for option, given in (
                ("weights", weights is not None),
                ("nonnegative", nonnegative),
                ("rounding", rounding is not None),
            ):
                if given:
                    raise ArgumentError(
                        f"{option} is for arrays, not for a {type(x).__name__}: give its to_dense()"
                    )
            core, frame = format_frame(x)
            own = x if init is None and isinstance(x, CP) else None
        else:
            core, frame, own = x, Frame(), None
            stream = sketch(x, rank)
            if stream is not None:
                core, frame = stream.core, stream.frame
        entries = None if weights is None else checked_weights(weights, x)
        array = dense(core) if entries is None else observed(x, entries)
        check_real(array, "cp")
        start = init if isinstance(init, Format) else own
        if start is not None:
            _check_start(start, x, array)
            start = frame.down(start) if frame else start
        return _Problem(
            x,
            modes,
            array,
            frame,
            start,
            replace(
                options,
                entries=entries,
                also=own is not None,
                outside=stream.outside if stream else 0.0,
            ),
            nonnegative,
            rounding,
            stream,
        )

    def analyse(x, progress: Progress) -> Analysis:
        return looked(x, FIRST_WIDTH, progress)

    def looked(x, width: int, progress: Progress) -> Analysis:
        """What can be traded, seen through a sketch of this width where it is worth it."""
        p = problem(x, width)
        spectra = {} if weights is not None else spectra_of(p.array, part(progress, 0.1, 1))
        kept, reach_ = sum(map(len, spectra.values())), floor(p.array.dtype)
        found = frontier(p.energy, cost(tuple(x.shape)), p.most, spectra)
        if p.stream is None:
            return Analysis([found], reach_, spectra, kept)
        known = found.up_to(width).plus(p.options.outside)
        again = lambda progress: looked(x, 2 * width, progress)
        return Analysis([known], reach_, {}, 0, (width,), again)

    def ranks(x, target: Target) -> list[tuple[int, ...]]:
        return [(given_rank(target, tuple(x.shape)),)]

    def fit(x, choice: list[tuple[int, ...]], state, progress: Progress) -> Fit:
        p = problem(x, choice[0][0])
        return p.solve(min(choice[0][0], p.most), None, state, progress)

    def spend(x, choice: list[tuple[int, ...]], share: Share, state, progress: Progress) -> Fit:
        if choice[0][0] == 0:
            return fit(x, choice, state, progress)
        if share.params is not None:
            return fit(x, [(share.params // cost(tuple(x.shape)),)], state, progress)
        assert share.lost is not None
        p = problem(x, FIRST_WIDTH)
        wanted = max(math.sqrt(share.lost / (p.energy + p.options.outside)), floor(p.array.dtype))
        if wanted >= 1:
            return p.solve(0, None, state, progress)

        def attempt(rank: int, smaller: Fit | None) -> Fit:
            return (problem(x, rank) if p.stream else p).solve(rank, smaller, state, silent)

        return search_rank(
            attempt,
            error=wanted,
            least=least_rank(state or {}, share.lost),
            most=min(rank_max, p.most),
            advice=f"raise rank_max={rank_max}, n_restarts or n_iter_max, or ask for a larger"
            " error",
            progress=progress,
        )

    # a rank above every size may still be one that a tensor has: `ranks` says more
    return Method(lambda x: [sys.maxsize], analyse, ranks, fit, spend)


@dataclass(frozen=True)
class _Problem:
    """One tensor to fit.

    Attributes
    ----------
    x
        As given.
    modes
        Of the result.
    array, frame
        What the iteration sees: dense coordinates of `x`.
    start
        A format to begin from, in the coordinates.
    options, nonnegative, rounding
        As given.
    stream
        The sketch that a large stack is seen through.
    """

    x: Any
    modes: tuple[str, ...]
    array: Array
    frame: Frame
    start: Format | None
    options: Options
    nonnegative: bool
    rounding: Rounding | None
    stream: Stream | None = None

    @property
    def most(self) -> int:
        """A rank that is enough."""
        return reach(tuple(self.array.shape))

    @property
    def energy(self) -> float:
        """Squared norm, of the weighted entries where there are weights."""
        entries = self.options.entries
        if entries is None:
            return sum_of_squares(self.array)
        return sum_of_squares(double(self.array) * namespace(entries).sqrt(entries))

    def solve(self, rank: int, smaller: Fit | None, known: Spectra | None, over: Progress) -> Fit:
        """Best CP of this rank found, from a smaller one if there is one."""
        if self.nonnegative and rank > 0 and self.energy > 0:
            found, trace = solve_nonnegative(self.array, rank, self.options, over)
            seen = {}
        else:
            found, trace, seen = solve_cp(
                self.array, rank, self._warm(rank, smaller), self.options, over
            )
        spectra = {self.modes[k]: s for k, s in sorted((seen | (known or {})).items())}
        lift = self.frame.lift
        factors = (double(lift[k]) @ f if k in lift else f for k, f in enumerate(found.factors))
        tensor = cp_tensor(self.modes, Components(found.weights, tuple(factors)), self.array.dtype)
        if self.options.entries is not None:
            return weighted_fit(
                self.array, self.options.entries, tensor, self.rounding, trace, spectra
            )
        return make_fit(
            self.x,
            tensor,
            self.rounding,
            spectra,
            trace,
            seen=(self.array, self.frame),
            svd="sketch, exact" if self.stream else "exact",
            passes=(self.stream.passes if self.stream else 1) + 1,
            energies=self.stream.energies if self.stream else None,
        )

    def _warm(self, rank: int, smaller: Fit | None) -> Components | None:
        if smaller is not None:
            tensor = smaller.tensor
            return _components(self.frame.down(tensor) if self.frame else tensor)
        if isinstance(self.start, CP):
            return _components(self.start)
        if self.start is not None:
            short = replace(self.options, n_iter_max=SHORT, n_restarts=1, entries=None)
            return solve_cp(dense(self.start.to_dense()), rank, None, short, silent)[0]
        return None


def _components(tensor: Format) -> Components:
    assert isinstance(tensor, CP)
    return components_of(tensor)


def _check_start(start: Format, x: Any, array: Array) -> None:
    """Refuse a start of another shape or library, or a complex one."""
    if start.shape != tuple(x.shape):
        raise ArgumentError(f"init has the shape {start.shape}, the array {tuple(x.shape)}")
    namespace(array, *start.arrays.values())
    for a in start.arrays.values():
        check_real(a if 0 in a.shape else dense(a), "cp")


def _check_nonnegative(init: Init, ridge: float, weights: Array | None) -> None:
    if isinstance(init, Format) or init == "gevd":
        raise ArgumentError("nonnegative=True starts from init='hosvd' or 'random'")
    if ridge or weights is not None:
        raise ArgumentError("nonnegative=True takes neither ridge nor weights")
