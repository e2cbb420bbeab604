"""Tensor trains: of a tensor (TT-SVD), of a matrix (MPO), of factors (rounding).

A tensor is a chain of core sizes ``(n_1, ..., n_d)`` here; bond ``k`` lies behind core ``k``. Every
step projects orthogonally, so the squared error is the sum of what the steps cut off.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdecomp._xp import Array, float64_scope, floor, sum_of_squares, working
from tdecomp.decomposition.checks import check_sweeps, seed_of
from tdecomp.decomposition.fit import Fit, Rounding, Trace, make_fit
from tdecomp.decomposition.method import Analysis, Method, Share
from tdecomp.decomposition.methods.train.als import tt_als
from tdecomp.decomposition.methods.train.bonds import (
    Bonds,
    bond_frontier,
    bond_names,
    grow_bonds,
    target_bonds,
    usable_bonds,
    within_budget,
)
from tdecomp.decomposition.methods.train.chain import (
    Chain,
    chain_of_array,
    chain_of_train,
    mpo_of,
)
from tdecomp.decomposition.methods.train.loss import least_loss, within_loss
from tdecomp.decomposition.methods.train.sketch import sketched
from tdecomp.decomposition.methods.train.sweeps import (
    Cores,
    Source,
    difference_energy,
    fixed_bonds,
)
from tdecomp.decomposition.run import run
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import TT, Format, to_tt
from tdecomp.linalg import Svd
from tdecomp.modes import positions
from tdecomp.passes.residual import relative
from tdecomp.passes.slices import Input, mode_names
from tdecomp.passes.stream import FIRST_WIDTH, Stream, streamed, worth_sketching
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.rounding import without_rounding
from tdecomp.ranking.target import Rank, Target

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
    random_state: int | np.random.Generator | None = None,
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
        Array, `Stack` (loaded whole unless it is sketched), or any format: then it is written as an
        exact train of the chain asked for, and that one is rounded (a `TT` is taken in its own
        chain unless `modes` says otherwise). The dense tensor of a format is never formed.
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
        None: exact, by Gram matrices in float64 or LAPACK, after long modes at the ends of the
        chain were reduced by a few passes of skinny products where that is cheaper, one slice of a
        stack in memory at a time (``fit.svd`` begins with ``"sketch"``). Not used for an error.
    random_state
        Seed or generator of that reduction; None is seed 0.
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
    per number, and of one rank for all bonds, each filled up with any bond that still fits, and
    from there exchanges numbers between bonds as long as a sweep loses less. An error is met by
    bisection on the path with the exact error of every trial, and what is unused is carried from
    bond to bond.
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
        modes=modes,
        names=names,
        n_iter_max=n_iter_max,
        tol=tol,
        random_state=random_state,
        svd=svd,
        rounding=rounding,
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
    random_state: int | np.random.Generator | None = None,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`tensor_train` as the driver sees it."""

    def chain(x, array: Array | None = None) -> Chain:
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
        given = x if array is None else array
        return chain_of_array(given, axes, present, tuple(given.shape), order)

    return _method(chain, Options(n_iter_max, tol, svd, rounding, seed_of(random_state), True))


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

    def chain(x, array: Array | None = None) -> Chain:
        assert array is None
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
    seed: int = 0
    may_sketch: bool = False

    def __post_init__(self):
        check_sweeps(self.n_iter_max, self.tol)


@dataclass(frozen=True)
class _View:
    """An input as a chain, in the coordinates of a sketch where that is worth it.

    Attributes
    ----------
    where
        The chain of the coordinates.
    sizes
        Of the cores of the result.
    stream, width
        The sketch, and the largest rank it can tell anything about.
    before
        Reads of the data for narrower ones.
    """

    where: Chain
    sizes: tuple[int, ...]
    stream: Stream | None = None
    width: int = sys.maxsize
    before: int = 0

    @property
    def passes(self) -> int:
        """Reads of the data so far."""
        return self.before + (self.stream.passes if self.stream else 1)

    @property
    def limits(self) -> Bonds:
        """Largest bonds that are known."""
        sketched = [a < b for a, b in zip(self.where.sizes, self.sizes, strict=True)]
        inner = [sys.maxsize] * (len(self.sizes) - 3)
        ends = [self.width if sketched[end] else sys.maxsize for end in (0, -1)]
        return (ends[0], *inner, ends[1]) if len(self.sizes) > 2 else (min(ends),)

    def is_at_limit(self, bonds: Bonds) -> bool:
        """Whether a wider sketch could tell of larger bonds."""
        if self.stream is None:
            return False
        return any(b >= limit for b, limit in zip(bonds, self.limits, strict=True))

    @property
    def outside(self) -> float:
        """Squared norm of what the coordinates lack."""
        return self.stream.outside if self.stream else 0.0

    def source(self, many: bool) -> Source:
        """What is swept; it counts numbers as the result will store them."""
        return replace(self.where.open(many), sizes=self.sizes)

    def train(self, cores: Sequence[Array]) -> TT:
        """The format in the modes of the input."""
        tensor = self.where.train(cores)
        if self.stream is None:
            return tensor
        lifted = self.stream.frame.up(tensor)
        assert isinstance(lifted, TT)
        return lifted


def _method(chain: Callable[..., Chain], options: Options) -> Method:
    """Driver's view of a train over the chain that `chain` makes of an input."""

    def view(x, ends: Sequence[int]) -> _View:
        """The chain of `x`; the first and last of `ends` are ranks for its ends."""
        where = chain(x)
        if not options.may_sketch or options.svd is not None or where.given is not None:
            return _View(where, where.sizes)
        ranks = None
        if len(x.shape) > 1:
            of_end = {where.axes[0]: ends[0], where.axes[-1]: ends[-1]}
            out, inp = (of_end.get((str(mode),)) for mode in where.output[-2:])
            ranks = worth_sketching(tuple(x.shape), (out, inp))
        if ranks is None:
            return _View(where, where.sizes)
        stream = streamed(x, ranks, options.seed)
        width = min(rank for rank in ranks if rank is not None)
        return _View(chain(x, stream.core), where.sizes, stream, width)

    def analyse(x, progress: Progress) -> Analysis:
        return looked(x, FIRST_WIDTH, progress)

    def looked(x, width: int, progress: Progress, before: int = 0) -> Analysis:
        """What can be traded, seen through a sketch of this width where it is worth it."""
        seen = replace(view(x, (width, width)), before=before)
        source = seen.source(True)
        spectra = source.spectra(part(progress, 0.1, 1))
        if seen.stream is None:
            frontier = _frontier(seen.where, spectra, source)
            return Analysis([frontier], floor(source.like.dtype), (spectra, None), _count(spectra))
        pairs = list(zip(spectra, seen.limits, strict=True))
        known = [s[:limit] for s, limit in pairs]
        outside = seen.outside + sum(float(np.sum(s[limit:] ** 2)) for s, limit in pairs)
        return Analysis(
            [_frontier(seen, known, source).plus(outside)],
            floor(source.like.dtype),
            (known, seen),
            _count(spectra) + math.prod(source.like.shape),
            seen.limits,
            lambda progress: looked(x, 2 * width, progress, seen.passes),
        )

    def ranks(x, target: Target) -> list[Bonds]:
        where = chain(x)
        wanted = target_bonds(target, bond_names(where.axes), where.largest)
        return [usable_bonds(wanted, where.sizes)]

    def fit(x, choice: list[Bonds], state, progress: Progress) -> Fit:
        seen = state[1] if state else None
        if seen is None:
            seen = view(x, choice[0])
        which, source = Which(options.svd), seen.source(False)
        bonds = choice[0][: len(seen.sizes) - 1]
        if 0 in bonds:
            seen, source = _View(chain(x), seen.sizes), chain(x).open(False)
        cores, spectra = fixed_bonds(source, bonds, None if options.svd is None else which)
        trace = Trace()
        if seen.where.given is None and 0 not in bonds:
            energy = seen.stream.energy if seen.stream else None
            sweeps = options.n_iter_max, options.tol
            cores, trace = tt_als(source.like, cores, *sweeps, energy=energy)
        return finish(x, seen, (cores, spectra), which.names, progress, trace)

    def spend(x, choice: list[Bonds], share: Share, state, progress: Progress) -> Fit:
        (bonds,) = choice
        if 0 in bonds:
            return fit(x, choice, None, progress)
        seen = (state[1] if state else None) or view(x, bonds)
        source = seen.source(True)
        energies = [e**2 for e in (state[0] if state else source.spectra(silent))]
        if share.params is not None:
            least = floor(source.like.dtype)
            energies = [without_rounding(e, least) for e in energies]
            some = within_budget(seen.sizes, energies, bonds[: len(energies)], share.params)
            best = least_loss(source, energies, some, share.params)
            if seen.is_at_limit(best):
                wider = looked(x, 2 * seen.width, silent, seen.passes).state
                return spend(x, [best], share, wider, progress)
            return fit(x, [best], ([], seen), progress)
        assert share.lost is not None
        found = within_loss(source, energies, max(0.0, share.lost - seen.outside))
        return finish(x, seen, found, "exact", progress)

    def finish(
        x, seen: _View, found: Cores, used: str, progress: Progress, trace: Trace | None = None
    ) -> Fit:
        cores, spectra = found
        progress(0.8)
        named = dict(zip(bond_names(seen.where.axes), spectra, strict=True))
        tensor = seen.train(cores)
        if seen.where.given is not None:
            return _rounded_fit(seen.where, tensor, options.rounding, named, used)
        return make_fit(
            x,
            tensor,
            options.rounding,
            named,
            trace or Trace(),
            svd=f"sketch, {used}" if seen.stream else used,
            passes=seen.passes + 1,
            energies=seen.stream.energies if seen.stream else None,
        )

    def sizes(x) -> list[int]:
        return [*x.shape, *chain(x).largest]

    return Method(sizes, analyse, ranks, fit, spend)


def _count(spectra: list[np.ndarray]) -> int:
    return sum(map(len, spectra))


def _frontier(where: Chain | _View, spectra: list[np.ndarray], source: Source) -> Frontier:
    if len(where.sizes) > 1:
        least = floor(source.like.dtype)
        path = grow_bonds(where.sizes, [without_rounding(s**2, least) for s in spectra])
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
