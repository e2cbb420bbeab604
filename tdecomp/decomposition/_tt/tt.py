"""Tensor trains: of a tensor (TT-SVD), of a matrix (MPO), of factors (rounding).

A tensor is a chain of core sizes ``(n_1, ..., n_d)`` here; bond ``k`` lies behind core ``k``. Every
step projects orthogonally, so the squared error is the sum of what the steps cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp._xp import Array, float64_scope, sum_of_squares, working
from tdecomp.decomposition._checks import check_sweeps, seed_of
from tdecomp.decomposition._fit import Fit, Input, Rounding, Trace, make_fit, relative
from tdecomp.decomposition._ranks import Frontier, Rank, Target
from tdecomp.decomposition._run import (
    Analysis,
    Method,
    Progress,
    Share,
    floor,
    mode_names,
    part,
    run,
    silent,
)
from tdecomp.decomposition._tt.als import tt_als
from tdecomp.decomposition._tt.bonds import (
    Bonds,
    bond_frontier,
    bond_names,
    grow_bonds,
    target_bonds,
    usable_bonds,
    within_budget,
)
from tdecomp.decomposition._tt.chain import (
    Chain,
    chain_of_array,
    chain_of_train,
    mpo_of,
)
from tdecomp.decomposition._tt.loss import least_loss, within_loss
from tdecomp.decomposition._tt.sketch import sketched
from tdecomp.decomposition._tt.sweeps import (
    Cores,
    Source,
    difference_energy,
    fixed_bonds,
)
from tdecomp.decomposition._which import Which
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import TT, Format, to_tt
from tdecomp.linalg import Svd
from tdecomp.modes import positions

__all__ = ["mpo", "mpo_method", "tensor_train", "tensor_train_method", "tt_round"]


def tensor_train(
    x: Input,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 30,
    tol: float = 1e-6,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
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
        Array, `Stack` (loaded whole, one at a time), or any format: then it is written as an exact
        train of the chain asked for, and that one is rounded (a `TT` is taken in its own chain
        unless `modes` says otherwise). The dense tensor of a format is never formed.
    rank
        An int (``min(rank, size)`` at every bond), or the ``d - 1`` inner bonds in chain order, or
        ``d + 1`` bonds with a 1 at both ends, or bonds by name, ``{"layer | out in": 3}``, the
        others uncut. Bonds larger than their neighbours can use are lowered, which loses nothing.
    error
        Relative Frobenius error, met by the returned cores. No bond of the result could be one
        lower, and no more numbers are stored than with the rule of TT-SVD.
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
        None: exact, by Gram matrices in float64 or LAPACK. Not used for an error, which needs whole
        spectra.
    rounding
        Applied to every core before the error is measured (storage precision).
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
    DataError
        NaN, Inf or an empty mode.

    Notes
    -----
    The paper cuts every bond at ``error · ‖X‖ / √(d - 1)``. Here bonds grow one by one, always the
    one whose next singular value returns the most energy per number stored. A budget takes the
    best, by a sweep, of where that path stops, of the bonds with the least sum of tails for a price
    per number, and of one rank for all bonds, each filled up with any bond that still fits; an
    error is met by bisection on
    the path with the exact error of every trial, and what is unused is carried from bond to bond.
    Then bonds are lowered while the error allows. So noise that all bonds see is not counted once
    per bond; the price is some tens of sweeps, where a rank takes one. From five modes on, these
    run on the exact train of the tensor.

    A sweep over a train of bonds ``R`` costs ``O(d n R³)`` flops, whatever the size of the tensor.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((3, 4, 5)); x[0, 0, 0] = 2
    >>> fit = tensor_train(x, error=1e-6)
    >>> fit.tensor.rank, fit.n_params, round(fit.error, 9)
    ((1, 2, 2, 1), 32, 0.0)
    """
    method = tensor_train_method(
        modes=modes, names=names, n_iter_max=n_iter_max, tol=tol, svd=svd, rounding=rounding
    )
    return run(method, [x], Target(rank, error, budget), progress)[0]


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
    tol: float = 1e-6,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
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
    rank, error, budget, n_iter_max, tol, svd, rounding, progress
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
    method = mpo_method(
        out=out, inp=inp, names=names, n_iter_max=n_iter_max, tol=tol, svd=svd, rounding=rounding
    )
    return run(method, [w], Target(rank, error, budget), progress)[0]


def tt_round(
    tt: TT,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
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

    Notes
    -----
    Algorithm 2 of [oseledets2011]: QR from right to left, truncated SVDs from left to right,
    ``O(d n R³)`` flops for bonds ``R``; an error takes some tens of sweeps. The sketch is
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
    target = Target(rank, error, budget)
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
    method = tensor_train_method(svd=svd)
    if target.rank is None:
        fit = run(method, [tt], target)[0]
        assert isinstance(fit.tensor, TT)
        return fit.tensor
    with float64_scope(*tt.cores):  # one sweep: nothing is measured
        target.check_reach(max(method.sizes(tt)))
        chain = chain_of_train(tt)
        (bonds,) = method.ranks(tt, target)
        if sketch:
            assert chain.given is not None
            rng = np.random.default_rng(seed_of(random_state))
            return chain.train(sketched(chain.flat(chain.given), bonds, n_oversamples, rng))
        which = None if svd is None else Which(svd)
        return chain.train(fixed_bonds(chain.open(False), bonds, which)[0])


def tensor_train_method(
    *,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 30,
    tol: float = 1e-6,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`tensor_train` as the driver sees it."""

    def chain(x) -> Chain:
        present = mode_names(x, names)
        order = positions(present, present if modes is None else modes)
        if len(order) != len(present):
            raise ArgumentError(
                f"modes={list(modes or ())} must give all modes in chain order: {' '.join(present)}"
            )
        axes = tuple((present[k],) for k in order)
        if isinstance(x, Format):
            if isinstance(x, TT) and (modes is None or x.axes == axes):
                return chain_of_train(x)
            return chain_of_train(to_tt(x, [present[k] for k in order]))
        return chain_of_array(x, axes, present, tuple(x.shape), order)

    return _method(chain, Options(n_iter_max, tol, svd, rounding))


def mpo_method(
    *,
    out: Sequence[int] = (8, 96),
    inp: Sequence[int] = (8, 96),
    names: str | Sequence[str] | None = None,
    n_iter_max: int = 30,
    tol: float = 1e-6,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`mpo` as the driver sees it."""
    if not (isinstance(out, Sequence) and isinstance(inp, Sequence)):
        raise ArgumentError(
            f"out={out!r} and inp={inp!r} must be the factors of both sizes: (8, 96)"
        )
    out, inp = tuple(out), tuple(inp)
    if len(out) != len(inp) or min((*out, *inp), default=0) < 1:
        raise ArgumentError(f"out={out} and inp={inp} must be equally many sizes, 1 or more each")

    def chain(x) -> Chain:
        if len(x.shape) < 2:
            raise DataError(f"mpo needs matrices, got an array of shape {tuple(x.shape)}")
        if (math.prod(out), math.prod(inp)) != tuple(x.shape[-2:]):
            raise ArgumentError(
                f"out={out} and inp={inp} multiply to {math.prod(out)} x {math.prod(inp)},"
                f" the matrices are {x.shape[-2]} x {x.shape[-1]}: choose factors of these sizes"
            )
        sites, k = mode_names(x, names)[:-2], len(out)
        if isinstance(x, Format):
            return chain_of_train(mpo_of(x, out, inp))
        left, right = (tuple(f"{s}{j + 1}" for j in range(k)) for s in "oi")
        if len(sites) + k < 2:
            raise ArgumentError(f"out={out} gives one core: a train needs two or more")
        pairs = [(len(sites) + j, len(sites) + k + j) for j in range(k)]
        return chain_of_array(
            x,
            (*((m,) for m in sites), *zip(left, right, strict=True)),
            (*sites, left, right) if k > 1 else (*sites, *left, *right),
            (*x.shape[:-2], *out, *inp),
            (*range(len(sites)), *(p for pair in pairs for p in pair)),
        )

    return _method(chain, Options(n_iter_max, tol, svd, rounding))


@dataclass(frozen=True)
class Options:
    """How to decompose; see `tensor_train`."""

    n_iter_max: int
    tol: float
    svd: Svd | None
    rounding: Rounding | None

    def __post_init__(self):
        check_sweeps(self.n_iter_max, self.tol)


def _method(chain: Callable[[Any], Chain], options: Options) -> Method:
    """Driver's view of a train over the chain that `chain` makes of an input."""

    def analyse(x, progress: Progress) -> Analysis:
        where = chain(x)
        source = where.open(True)
        spectra = source.spectra(part(progress, 0.1, 1))
        kept = sum(map(len, spectra))
        frontier = _frontier(where, spectra, source)
        return Analysis([frontier], floor(source.like.dtype), spectra, kept)

    def ranks(x, target: Target) -> list[Bonds]:
        where = chain(x)
        wanted = target_bonds(target, bond_names(where.axes), where.largest)
        return [usable_bonds(wanted, where.sizes)]

    def fit(x, choice: list[Bonds], state, progress: Progress) -> Fit:
        del state
        where, which = chain(x), Which(options.svd)
        bonds, source = choice[0][: len(where.sizes) - 1], where.open(False)
        cores, spectra = fixed_bonds(source, bonds, None if options.svd is None else which)
        trace = Trace()
        if where.given is None and 0 not in bonds:
            cores, trace = tt_als(source.like, cores, options.n_iter_max, options.tol)
        return finish(x, where, (cores, spectra), which.names, progress, trace)

    def spend(x, choice: list[Bonds], share: Share, state, progress: Progress) -> Fit:
        (bonds,) = choice
        if 0 in bonds:
            return fit(x, choice, state, progress)
        where = chain(x)
        if share.params is not None:
            spectra = where.open(True).spectra(silent) if state is None else state
            energies = [e**2 for e in spectra]
            some = within_budget(where.sizes, energies, bonds[: len(energies)], share.params)
            return fit(x, [least_loss(where.open(True), some)], state, progress)
        assert share.lost is not None
        source = where.open(True)
        energies = [e**2 for e in (source.spectra(silent) if state is None else state)]
        return finish(x, where, within_loss(source, energies, share.lost), "exact", progress)

    def finish(
        x, where: Chain, found: Cores, used: str, progress: Progress, trace: Trace | None = None
    ) -> Fit:
        cores, spectra = found
        progress(0.8)
        named = dict(zip(bond_names(where.axes), spectra, strict=True))
        tensor = where.train(cores)
        if where.given is None:
            return make_fit(x, tensor, options.rounding, named, trace or Trace(), svd=used)
        return _rounded_fit(where, tensor, options.rounding, named, used)

    def sizes(x) -> list[int]:
        return [*x.shape, *chain(x).largest]

    return Method(sizes, analyse, ranks, fit, spend)


def _frontier(where: Chain, spectra: list[np.ndarray], source: Source) -> Frontier:
    if len(where.sizes) > 1:
        path = grow_bonds(where.sizes, [s**2 for s in spectra])
        return bond_frontier(where.sizes, spectra, path)
    energy = sum_of_squares(source.sweep(_no_bond)[0])  # one core: all of it or nothing
    if energy == 0:
        return Frontier(np.array([0]), np.array([0.0]), np.array([[0]]))
    return Frontier(np.array([0, *where.sizes]), np.array([energy, 0.0]), np.array([[0], [1]]))


def _no_bond(bond: int, matrix: Array) -> Array:
    raise AssertionError(f"a chain of one core has no bond {bond}")


def _rounded_fit(
    where: Chain, tensor: TT, rounding: Rounding | None, spectra: dict[str, np.ndarray], used: str
) -> Fit:
    """`make_fit` of a train near a train."""
    assert where.given is not None
    if rounding is not None:
        tensor = tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})
    residual, energy = difference_energy(where.flat(where.given), where.flat(tensor))
    return Fit(
        tensor,
        relative(residual, energy),
        np.array([residual]),
        np.array([energy]),
        spectra,
        error_method="coordinates",
        svd=used,
    )
