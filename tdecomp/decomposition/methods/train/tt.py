"""Tensor trains: of a tensor (TT-SVD), of a matrix (MPO), of factors (rounding).

A tensor is a chain of core sizes ``(n_1, ..., n_d)`` here; bond ``k`` lies behind core ``k``. Every
step projects orthogonally, so the squared error is the sum of what the steps cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tdecomp._xp import float64_scope, floor, sum_of_squares, working
from tdecomp.decomposition.checks import seed_of
from tdecomp.decomposition.fit import Fit, Rounding
from tdecomp.decomposition.methods.train.chain import TrainChain, chain_of_train
from tdecomp.decomposition.methods.train.loss import usable_cores, within_loss
from tdecomp.decomposition.methods.train.method import MpoMethod, TrainMethod
from tdecomp.decomposition.methods.train.sketch import sketched
from tdecomp.decomposition.methods.train.sweeps import fixed_bonds
from tdecomp.decomposition.run import run_one
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError, NotReached
from tdecomp.formats import TT
from tdecomp.linalg import Svd
from tdecomp.passes.data import open_data
from tdecomp.passes.slices import Input
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Rank, Target
from tdecomp.tasks import Executor

__all__ = ["MpoMethod", "TrainMethod", "mpo", "tensor_train", "tt_round"]


def tensor_train(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 30,
    tol: float = 1e-5,
    random_state: int | np.random.Generator | None = None,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Fit:
    """Tensor train by TT-SVD: ``X[i, j, ..., k] ≈ G₁[i, :] G₂[:, j, :] ··· G_d[:, k]``.

    Give exactly one of `rank`, `error` and `budget`. The squared error of TT-SVD is the sum of the
    tails cut off bond by bond, at most the sum of the tails of the unfoldings at all bonds, and so
    at most ``√(d - 1)`` times the best train of those bonds ([oseledets2011], theorem 2.2). For a
    rank or a budget, sweeps of alternating least squares follow, which only lower it.

    Parameters
    ----------
    x
        Array, `Stack` (loaded whole unless it is sketched), or any format: then it is written as an
        exact train of the chain asked for, and that one is rounded (a `TT` is taken in its own
        chain unless `modes` says otherwise). The dense tensor of a format is never formed.
    rank
        An int, cut to what every bond can use; or the ``d - 1`` inner bonds in chain order, or
        ``d + 1`` bonds with a 1 at both ends, or bonds by name, ``{"layer | out in": 3}``, the
        others uncut: these are the bonds of the result, with zeros where it has no use for them.
    error
        Relative Frobenius error, met by the returned cores, with no more numbers than the rule of
        TT-SVD stores. Of up to 8 bonds none could be one lower.
    budget
        Numbers to store, at most.
    modes
        All modes in chain order, names or positions; by default as they are.
    names
        Mode names of an array, ``"layer proj out in"``.
    n_iter_max, tol
        Sweeps of alternating least squares for a given rank or a budget, and the relative change of
        the error at which they stop; 0 sweeps leaves TT-SVD. Formats get none.
    svd
        Truncated SVD of every step once the bonds are chosen, for example `linalg.svd_randomized`;
        None: exact, by Gram matrices in float64 or LAPACK, after long modes at the ends of the
        chain were reduced by a few passes of skinny products where that is cheaper, one slice of a
        stack in memory at a time (``fit.svd`` begins with ``"sketch"``). Not used for an error.
    random_state
        Seed or generator of that reduction; None is seed 0.
    rounding
        Applied to every core before the error is measured (storage precision).
    rank_max
        The largest bond that an error or a budget may give.
    executor
        Whose workers read the stack, which must be of files; see `Stack.on`.
    progress
        Called with the fraction of the work done.

    Returns
    -------
    Fit
        With a `TT` tensor, orthonormal but for one end core; ``spectra`` holds the singular values
        seen at every bond, under ``"layer | out in"``. For a format the error is the norm of the
        difference of the two trains, orthonormalised (`error_method` is ``"coordinates"``), and
        `residual` and `energy` have one entry.

    Raises
    ------
    ArgumentError
        Not exactly one target, an explicit bond above its maximum (of a format: the bond of its
        exact train), an error below the precision's floor, a budget below rank 1, `names` for a
        format.
    NotReached
        An error that needs bonds above `rank_max`; its `best` is the Fit of the largest allowed.
    DataError
        NaN, Inf or an empty mode.

    Notes
    -----
    For an error, one sweep shares the squared error out over the bonds as the paper does, but
    carries what one leaves unused to the next. Where the tails leave room, bonds are lowered, and a
    further sweep tells by how much that lowers what the others lose: noise that all bonds see is
    not counted once per bond. The cost is that of a few sweeps, in proportion to the number of
    modes.
    For a budget, bonds grow one by one, always the one whose next singular value returns the most
    energy per number stored. The best is taken, by a sweep, of where that path stops, of the bonds
    with the least sum of tails for a price per number, and of one rank for all bonds, each filled
    up with any bond that still fits, and from there numbers are exchanged between bonds as long as
    a sweep loses less. From five modes on, these run on the exact train of the tensor. Alternating
    least squares follow unless only rounding is left.

    A sweep over a train of bonds ``R`` costs ``O(d n R³)`` flops, whatever the size of the tensor.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((3, 4, 5)); x[0, 0, 0] = 2
    >>> fit = tensor_train(x, error=1e-6)
    >>> fit.tensor.rank, fit.n_params, round(fit.error, 9)
    ((1, 2, 2, 1), 32, 0.0)
    """
    method = TrainMethod(
        modes=modes,
        names=names,
        n_iter_max=n_iter_max,
        tol=tol,
        random_state=random_state,
        svd=svd,
        rounding=rounding,
    )
    return run_one(method, x, Target(rank, error, budget, rank_max), progress, executor)


def mpo(
    w: Input,
    *,
    out: Sequence[int] = (8, 96),
    inp: Sequence[int] = (8, 96),
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 30,
    tol: float = 1e-5,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
    rank_max: int | None = None,
    progress: Progress = silent,
) -> Fit:
    """Matrix product operator: a tensor train over interleaved splits of ``out`` and ``in``.

    ``W[(o1 o2 ...), (i1 i2 ...)] ≈ G₁[o1, i1, :] G₂[:, o2, i2, :] ···``; leading modes of a stack
    come first in the chain, a core each ([oseledets2010]).

    Parameters
    ----------
    w
        ``(..., out, in)``, or a `Stack` (loaded whole), or any format: it is written as an exact
        MPO (`tdecomp.formats.to_mpo`), and that one is rounded.
    out, inp
        Factors of the two sizes, slowest first, equally many.
    rank, error, budget, n_iter_max, tol, svd, rounding, rank_max, progress
        As in `tensor_train`; bonds in chain order.
    names
        Mode names of an array; the last two are replaced by ``o1 o2 ...`` and ``i1 i2 ...``.

    Returns
    -------
    Fit
        With a `TT` tensor whose matrix cores are ``(r, o_j, i_j, s)``.

    Raises
    ------
    ArgumentError
        If the factors do not multiply to the sizes; else as `tensor_train`.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.kron(np.diag([1.0, 2.0]), np.ones((3, 5)))
    >>> fit = mpo(w, out=(2, 3), inp=(2, 5), rank=1)
    >>> [c.shape for c in fit.tensor.cores], round(fit.error, 12)
    ([(1, 2, 2, 1), (1, 3, 5, 1)], 0.0)
    """
    method = MpoMethod(
        out=out, inp=inp, names=names, n_iter_max=n_iter_max, tol=tol, svd=svd, rounding=rounding
    )
    return run_one(method, w, Target(rank, error, budget, rank_max), progress)


def tt_round(
    tt: TT,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    rank_max: int | None = None,
    svd: Svd | None = None,
    sketch: bool = False,
    n_oversamples: int = 10,
    random_state: int | np.random.Generator | None = None,
) -> TT:
    """Tensor train of smaller bonds near a given one, without forming the tensor.

    The short form of `tensor_train` for a `TT`, without the `Fit`.

    Parameters
    ----------
    tt
        A tensor train or MPO.
    rank, error, budget, svd
        As in `tensor_train`, exactly one target; an explicit bond may not be above the present one,
        and the error is relative to ``‖tt‖``.
    rank_max
        The largest bond that an error or a budget may give.
    sketch
        Whether to cut to `rank` by a random train: no QR or SVD of the full bonds, for a train much
        wider than its result, such as a sum of many.
    n_oversamples, random_state
        Of the sketch: bonds beyond `rank`, and the seed or generator (None means the seed 0).

    Returns
    -------
    TT
        Left-orthonormal cores, the last one carries the norm; in the working precision.

    Raises
    ------
    ArgumentError
        Not exactly one target, one that cannot be met, a sketch without `rank` or with `svd`.
    NotReached
        An error that needs bonds above `rank_max`; its `best` is the train of the largest allowed.

    Notes
    -----
    Algorithm 2 of [oseledets2011]: QR from right to left, truncated SVDs from left to right,
    ``O(d n R³)`` flops for bonds ``R``; an error takes a few of these sweeps. The sketch is
    "randomize-then-orthogonalize" of [aldaas2023], ``O(d n R l (R + l))`` flops for
    ``l = rank + n_oversamples``, then a truncation of the train of bonds ``l``; its error is near
    that of the exact sweep where the singular values fall off beyond `rank`, without a guarantee.

    Examples
    --------
    >>> import numpy as np
    >>> tt = TT((("a",), ("b",)), (np.ones((1, 4, 3)), np.ones((3, 5, 1))))
    >>> tt_round(tt, error=1e-6).rank
    (1, 1, 1)
    """
    target = Target(rank, error, budget, rank_max)
    if sketch and (target.rank is None or svd is not None):
        raise ArgumentError("sketch=True takes a rank, and no error, budget or svd")
    if not isinstance(tt, TT):
        raise ArgumentError(
            f"tt_round takes a TT, got {type(tt).__name__}: tensor_train takes any array or format"
        )
    if not isinstance(n_oversamples, int) or n_oversamples < 0:
        raise ArgumentError(f"n_oversamples={n_oversamples!r} must be a whole number, 0 or more")
    if 0 in tt.rank:
        return TT(tt.axes, tuple(working(c) for c in tt.cores), tt.output)
    method = TrainMethod(svd=svd)
    if target.budget is not None:
        small = run_one(method, tt, target).tensor
        assert isinstance(small, TT)
        return small
    with float64_scope(*tt.cores):  # one sweep: nothing is measured
        chain = chain_of_train(tt)
        if target.error is not None:
            return _within(chain, target)
        data = open_data(tt)
        target.check_reach(max(method.cut_sizes(data)))
        (bonds,) = method.ranks(data, target)
        if sketch:
            rng = np.random.default_rng(seed_of(random_state))
            cores = sketched(chain.flat(chain.given), bonds, n_oversamples, rng)
        else:
            which = None if svd is None else Which(svd)
            cores = fixed_bonds(chain.open(many=False), bonds, which)[0]
        small = chain.train(cores)
        return small if target.is_even else method.literal(data, target, small)


def _within(chain: TrainChain, target: Target) -> TT:
    """The train within a relative error: that of the sweep is known."""
    source, error = chain.open(many=False), target.error
    assert error is not None
    least = floor(source.like.dtype)
    if error < least:
        raise ArgumentError(f"error={error:g} is below {least:g}, what this precision can reach")
    energy = sum_of_squares(source.start())
    if len(source.sizes) == 1:
        return chain.train([source.last(source.start())])
    if energy == 0:
        return chain.train(fixed_bonds(source, (0,) * (len(source.sizes) - 1), None)[0])
    sweep = within_loss(source, error**2 * energy * (1 - least), target.rank_max)
    small = chain.train(usable_cores(sweep))
    if (reached := math.sqrt(sweep.lost / energy)) > error:
        raise NotReached(
            f"error={error:g} was not reached: the best is {reached:.3g} (attribute best);"
            f" raise rank_max={target.rank_max} or the error",
            small,
        )
    return small
