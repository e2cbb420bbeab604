"""Tensor trains by sequential SVDs: of a tensor (TT-SVD), of a matrix (MPO), of a train (rounding).

A tensor is a chain of core sizes ``(n_1, ..., n_d)`` here; bond ``k`` lies behind core ``k``. Every
step projects orthogonally, so the squared error is the sum of what the steps cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tdecomp._xp import Array, float64_scope, namespace, working
from tdecomp.decomposition._bonds import (
    Bonds,
    bond_frontier,
    bond_names,
    fill_budget,
    grow_bonds,
    target_bonds,
    usable_bonds,
)
from tdecomp.decomposition._fit import Fit, Rounding, dense, make_fit
from tdecomp.decomposition._ranks import Rank, Target
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
from tdecomp.decomposition._tt_sweeps import (
    Cores,
    bond_spectra,
    even_shares,
    fixed_bonds,
    reshape,
    right_orthonormal,
    split_cores,
    truncated,
    within_loss,
)
from tdecomp.errors import ArgumentError
from tdecomp.formats import TT
from tdecomp.linalg import Svd
from tdecomp.modes import Axis, positions
from tdecomp.stack import Stack

__all__ = ["mpo", "mpo_method", "tensor_train", "tensor_train_method", "tt_round"]


def tensor_train(
    x: Array | Stack,
    *,
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
    progress: Progress = silent,
) -> Fit:
    """Tensor train by TT-SVD: ``X[i, j, ..., k] ≈ G₁[i, :] G₂[:, j, :] ··· G_d[:, k]``.

    Give exactly one of `rank`, `error` and `budget`. The squared error is the sum of the tails cut
    off bond by bond, at most the sum of the tails of the unfoldings at all bonds, and so at most
    ``√(d - 1)`` times the best train of those bonds ([oseledets2011], theorem 2.2).

    Parameters
    ----------
    x
        Array of order 2 or more, or a `Stack` (loaded whole, one at a time).
    rank
        An int (``min(rank, size)`` at every bond), or the ``d - 1`` inner bonds in chain order, or
        ``d + 1`` bonds with a 1 at both ends. Bonds larger than their neighbours can use are
        lowered, which loses nothing.
    error
        Relative Frobenius error, met by the returned cores.
    budget
        Numbers to store, at most.
    modes
        All modes in chain order, names or positions; by default as they are.
    names
        Mode names of an array, ``"layer proj out in"``.
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
        seen at every bond, under ``"layer | out in"``.

    Raises
    ------
    ArgumentError
        Not exactly one target, an explicit bond above its maximum, an error below the precision's
        floor, a budget below rank 1.
    DataError
        NaN, Inf or an empty mode.

    Notes
    -----
    The paper cuts every bond at ``error · ‖X‖ / √(d - 1)``. Here bonds grow one by one, always the
    one whose next singular value returns the most energy per number stored: a budget stops that
    path and then fills what is left with any bond that still fits; an error is met by bisection on
    the path with the exact error of every trial, and what is unused is carried from bond to bond.
    So noise that all bonds see is not counted once per bond.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((3, 4, 5)); x[0, 0, 0] = 2
    >>> fit = tensor_train(x, error=1e-6)
    >>> fit.tensor.rank, fit.n_params, round(fit.error, 9)
    ((1, 2, 2, 1), 32, 0.0)
    """
    method = tensor_train_method(modes=modes, names=names, svd=svd, rounding=rounding)
    return run(method, [x], Target(rank, error, budget), progress)[0]


def mpo(
    w: Array | Stack,
    *,
    out: Sequence[int] = (8, 96),
    inp: Sequence[int] = (8, 96),
    rank: Rank | None = None,
    error: float | None = None,
    budget: int | None = None,
    names: str | Sequence[str] | None = None,
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
        ``(..., out, in)``, or a `Stack` (loaded whole).
    out, inp
        Factors of the two sizes, slowest first, equally many.
    rank, error, budget, svd, rounding, progress
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
    method = mpo_method(out=out, inp=inp, names=names, svd=svd, rounding=rounding)
    return run(method, [w], Target(rank, error, budget), progress)[0]


def tt_round(
    tt: TT, *, rank: int | tuple[int, ...] | None = None, error: float | None = None
) -> TT:
    """Tensor train of smaller bonds near a given one, without forming the tensor.

    Parameters
    ----------
    tt
        A tensor train or MPO.
    rank
        As in `tensor_train`; an explicit bond may not be above the present one.
    error
        Relative to ``‖tt‖``: ``‖tt - rounded‖ ≤ error · ‖tt‖`` up to rounding.

    Returns
    -------
    TT
        Left-orthonormal cores, the last one carries the norm; in the working precision.

    Raises
    ------
    ArgumentError
        Not exactly one target, or one that cannot be met.

    Notes
    -----
    Algorithm 2 of [oseledets2011]: QR from right to left, truncated SVDs from left to right. The
    squared error is the sum of the squared singular values cut off; what a bond leaves unused of
    its equal share goes to the next ones. ``O(d n r³)`` flops.

    Examples
    --------
    >>> import numpy as np
    >>> tt = TT((("a",), ("b",)), (np.ones((1, 4, 3)), np.ones((3, 5, 1))))
    >>> tt_round(tt, error=1e-6).rank
    (1, 1, 1)
    """
    with float64_scope(*tt.cores):
        return _rounded(tt, Target(rank, error))


def _rounded(tt: TT, target: Target) -> TT:
    cores = [working(c) for c in tt.cores]
    if 0 in tt.rank:
        return TT(tt.axes, tuple(cores), tt.output)
    reach = floor(cores[0].dtype)
    if target.error is not None and target.error < reach:
        raise ArgumentError(
            f"error={target.error:g} is below {reach:g}, what this precision can reach"
        )
    sizes = [math.prod(c.shape[1:-1]) for c in cores]
    bonds = tt.rank[1:-1]
    names = bond_names(tt.axes)
    shapes = [tuple(c.shape[1:-1]) for c in cores]
    flat = [reshape(c, (c.shape[0], n, c.shape[-1])) for c, n in zip(cores, sizes, strict=True)]
    flat = right_orthonormal(flat)
    if target.error is None:
        wanted = usable_bonds(target_bonds(target, names, bonds), sizes)
        keep = lambda bond, energy: min(wanted[bond - 1], len(energy))
    else:
        keep = even_shares(target.error, len(bonds))
    return TT(tt.axes, split_cores(truncated(flat, keep), shapes), tt.output)


@dataclass(frozen=True)
class _Chain:
    """How an input becomes a chain: split open, permuted, and grouped into cores.

    Attributes
    ----------
    axes, output
        As in `TT`.
    split
        Shape of the input with its splits opened.
    order
        Positions of the split modes in chain order.
    """

    axes: tuple[tuple[str, ...], ...]
    output: tuple[Axis, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Mode sizes of every core."""
        left = iter(self.split[k] for k in self.order)
        return [tuple(next(left) for _ in names) for names in self.axes]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every core between its bonds."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def largest(self) -> Bonds:
        """What every bond can have: the smaller side of its unfolding."""
        n = self.sizes
        return tuple(min(math.prod(n[:k]), math.prod(n[k:])) for k in range(1, len(n)))

    def tensor(self, x: Array | Stack) -> Array:
        """``(n_1, ..., n_d)``."""
        array = reshape(dense(x), self.split)
        return reshape(namespace(array).permute_dims(array, self.order), self.sizes)

    def train(self, cores: Sequence[Array]) -> TT:
        """The format, from ``(r, n, s)`` cores."""
        return TT(self.axes, split_cores(cores, self.shapes), self.output)


def tensor_train_method(
    *,
    modes: Sequence[str | int] | None = None,
    names: str | Sequence[str] | None = None,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`tensor_train` as the driver sees it."""

    def chain(x) -> _Chain:
        present = mode_names(x, names)
        order = positions(present, present if modes is None else modes)
        if len(order) != len(present):
            raise ArgumentError(
                f"modes={list(modes or ())} must give all modes in chain order: {' '.join(present)}"
            )
        return _Chain(tuple((present[k],) for k in order), present, tuple(x.shape), order)

    return _method(chain, svd, rounding)


def mpo_method(
    *,
    out: Sequence[int] = (8, 96),
    inp: Sequence[int] = (8, 96),
    names: str | Sequence[str] | None = None,
    svd: Svd | None = None,
    rounding: Rounding | None = None,
) -> Method:
    """`mpo` as the driver sees it."""
    out, inp = tuple(out), tuple(inp)
    if len(out) != len(inp) or min((*out, *inp), default=0) < 1:
        raise ArgumentError(f"out={out} and inp={inp} must be equally many sizes, 1 or more each")

    def chain(x) -> _Chain:
        if (math.prod(out), math.prod(inp)) != tuple(x.shape[-2:]):
            raise ArgumentError(
                f"out={out} and inp={inp} multiply to {math.prod(out)} x {math.prod(inp)},"
                f" the matrices are {x.shape[-2]} x {x.shape[-1]}: choose factors of these sizes"
            )
        sites, k = mode_names(x, names)[:-2], len(out)
        left, right = (tuple(f"{s}{j + 1}" for j in range(k)) for s in "oi")
        if len(sites) + k < 2:
            raise ArgumentError(f"out={out} gives one core: a train needs two or more")
        pairs = [(len(sites) + j, len(sites) + k + j) for j in range(k)]
        return _Chain(
            (*((m,) for m in sites), *zip(left, right, strict=True)),
            (*sites, left, right) if k > 1 else (*sites, *left, *right),
            (*x.shape[:-2], *out, *inp),
            (*range(len(sites)), *(p for pair in pairs for p in pair)),
        )

    return _method(chain, svd, rounding)


def _method(chain: Callable[[Any], _Chain], svd: Svd | None, rounding: Rounding | None) -> Method:
    """Driver's view of a train over the chain that `chain` makes of an input."""

    def analyse(x, progress: Progress) -> Analysis:
        where = chain(x)
        array = where.tensor(x)
        spectra = bond_spectra(array, part(progress, 0.1, 1))
        path = grow_bonds(where.sizes, [s**2 for s in spectra])
        kept = sum(map(len, spectra))
        return Analysis(
            [bond_frontier(where.sizes, spectra, path)], floor(array.dtype), spectra, kept
        )

    def ranks(x, target: Target) -> list[Bonds]:
        where = chain(x)
        wanted = target_bonds(target, bond_names(where.axes), where.largest)
        return [usable_bonds(wanted, where.sizes)]

    def fit(x, choice: list[Bonds], state, progress: Progress) -> Fit:
        del state
        return finish(x, lambda array, sizes: fixed_bonds(array, sizes, choice[0], svd), progress)

    def spend(x, choice: list[Bonds], share: Share, state, progress: Progress) -> Fit:
        (bonds,) = choice
        where = chain(x)
        spectra = bond_spectra(where.tensor(x)) if state is None else state
        energies = [s**2 for s in spectra]
        if 0 in bonds:
            return fit(x, choice, state, progress)
        if share.params is not None:
            return fit(
                x, [fill_budget(where.sizes, energies, bonds, share.params)], state, progress
            )
        assert share.lost is not None
        allowed = share.lost
        return finish(
            x, lambda array, sizes: within_loss(array, sizes, energies, allowed), progress
        )

    def finish(x, cores_of: Callable[[Array, Sequence[int]], Cores], progress: Progress) -> Fit:
        where = chain(x)
        cores, spectra = cores_of(where.tensor(x), where.sizes)
        progress(0.8)
        named = dict(zip(bond_names(where.axes), spectra, strict=True))
        return make_fit(x, where.train(cores), rounding, named)

    def sizes(x) -> list[int]:
        return [*x.shape, *chain(x).largest]

    return Method(sizes, analyse, ranks, fit, spend)
