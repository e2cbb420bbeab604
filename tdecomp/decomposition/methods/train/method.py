"""Trains as the driver sees them: what a chain can trade, and its cores within a target."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tdecomp._xp import Array, floor, sum_of_squares
from tdecomp.decomposition.checks import check_sweeps, seed_of
from tdecomp.decomposition.fit import Fit, Trace, make_fit
from tdecomp.decomposition.method import Analysis, Choice, Method, Share, TooNarrow
from tdecomp.decomposition.methods.train.als import Swept, tt_als
from tdecomp.decomposition.methods.train.bonds import (
    Bonds,
    bond_frontier,
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
from tdecomp.decomposition.methods.train.loss import least_loss, usable_cores, within_loss
from tdecomp.decomposition.methods.train.sweeps import (
    Cores,
    DenseSource,
    Source,
    fixed_bonds,
)
from tdecomp.decomposition.methods.train.view import View, ends_worth_sketching, plain_view
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import TT, to_tt
from tdecomp.linalg import Svd
from tdecomp.modes import positions
from tdecomp.passes.data import Data, open_data
from tdecomp.passes.stream import FIRST_WIDTH, streamed
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.frontier import Frontier, all_or_nothing
from tdecomp.ranking.rounding import without_rounding
from tdecomp.ranking.target import Target
from tdecomp.tensor import widened

__all__ = ["ChainMethod", "ChainState", "MpoMethod", "TrainMethod"]

_SEEN = 0.7  # of the progress, once there is a sketch of the long modes


@dataclass(frozen=True)
class ChainState:
    """Singular values of the unfoldings at all bonds, and the view that they were seen in.

    Without a view they are exact, and a sketch may still be worth it for the bonds that are chosen.
    The source is what was swept for them, where it is small enough to be kept.
    """

    spectra: list[np.ndarray]
    view: View | None
    source: Source | None = None


@dataclass(frozen=True, kw_only=True)
class ChainMethod(Method[ChainState]):
    """A train over the chain of cores that an input is made into.

    Attributes
    ----------
    n_iter_max, tol
        Sweeps of alternating least squares, and the relative change at which they stop.
    svd
        Truncated SVD of every step once the bonds are chosen; None: exact.
    """

    n_iter_max: int = 30
    tol: float = 1e-5
    svd: Svd | None = None

    @abstractmethod
    def chain(self, x: Data[Any]) -> Chain:
        """The chain of an input; refuses data that have none."""

    @abstractmethod
    def view(self, x: Data[Any], ends: Sequence[int], progress: Progress = silent) -> View:
        """Its chain, whole or sketched; the first and last of `ends` are ranks for its ends."""

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """Of the modes, and of the bonds."""
        return [*x.shape, *self.chain(x).largest]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """Bonds that a target names, no larger than their neighbours can use."""
        chain = self.chain(x)
        return [usable_bonds(target_bonds(target, chain.names, chain.largest), chain.sizes)]

    def literal(self, x: Data[Any], target: Target, tensor: TT) -> TT:
        """Cores filled up with zeros."""
        chain = self.chain(x)
        full = (1, *target_bonds(target, chain.names, chain.largest), 1)
        pairs = zip(tensor.cores, full, full[1:], strict=False)
        cores = (widened(widened(c, 0, a), c.ndim - 1, b) for c, a, b in pairs)
        return TT(tensor.axes, tuple(cores), tensor.output)

    def look(
        self, x: Data[Any], width: int, progress: Progress, passes: int = 0
    ) -> Analysis[ChainState]:
        """Spectra of all unfoldings, and the path of bonds that they suggest."""
        view = self.view(x, (width, width), part(progress, 0, _SEEN))
        sketched = view.stream is not None
        if sketched:
            view = replace(view, before=passes)
        source = view.source(many=True)
        spectra = source.spectra(part(progress, _SEEN if sketched else 0.1, 1))
        known, beyond = view.known(spectra)
        kept = source if x.keep or sketched else None  # held with the data, or with the sketch
        coordinates = source.size if sketched else 0
        return Analysis(
            frontiers=[_frontier(source, known).plus(beyond)],
            floor=floor(source.like.dtype),
            state=ChainState(known, view if sketched else None, kept),
            state_size=sum(map(len, spectra)) + coordinates,
            limits=view.limits,
            width=width,
            passes=view.passes,
        )

    def glance(self, x: Data[Any]) -> Analysis[ChainState] | None:
        """Nothing but the norm, where no sketch is worth it: for an error, one sweep is enough."""
        view = self.view(x, (FIRST_WIDTH,) * 2)
        if view.stream is not None or len(view.sizes) == 1:
            return None
        source = view.source(many=False)
        return Analysis(
            frontiers=[all_or_nothing(sum_of_squares(source.start()), len(view.sizes) - 1)],
            floor=floor(source.like.dtype),
            state=ChainState([], view, source),
            passes=view.passes,
        )

    def fit(
        self, x: Data[Any], choice: Choice, state: ChainState | None, progress: Progress
    ) -> Fit:
        """Cores of the given bonds, improved by sweeps."""
        (bonds,) = choice
        view = self._view_for(x, bonds, state, part(progress, 0, _SEEN))
        return self._fitted(x, bonds, view, progress)

    def spend(
        self,
        x: Data[Any],
        choice: Choice,
        share: Share,
        state: ChainState | None,
        progress: Progress,
    ) -> Fit:
        """Cores of other bonds near the given ones, judged by sweeps."""
        (bonds,) = choice
        if 0 in bonds:
            return self.fit(x, choice, None, progress)
        view, source = self._seen_by(x, bonds, state)
        if share.params is None:
            assert share.lost is not None
            sweep = within_loss(source, max(0.0, share.lost - view.outside), share.rank_max)
            return self._finished(x, view, (usable_cores(sweep), sweep.spectra), progress)
        spectra = state.spectra if state else source.spectra(silent)
        best = _best_bonds(source, spectra, bonds, share)
        if view.is_at_limit(best):
            if view.can_widen:
                raise TooNarrow([best], width=view.width, passes=view.passes)
            view = plain_view(self.chain(x))
            source = view.source(many=True)
            best = _best_bonds(source, source.spectra(silent), best, share)
        return self._fitted(x, best, view, progress)

    def _seen_by(self, x: Data[Any], bonds: Bonds, state: ChainState | None) -> tuple[View, Source]:
        """The view for these bonds, and what a look has opened of it, if it is the same view."""
        view = self._view_for(x, bonds, state, silent)
        if state is None or state.source is None or (view.stream and state.view is None):
            return view, view.source(many=True)
        return view, state.source

    def _view_for(
        self, x: Data[Any], bonds: Bonds, state: ChainState | None, progress: Progress
    ) -> View:
        """The view of a look, or one for these bonds."""
        seen = state.view if state else None
        return self.view(x, bonds, progress) if seen is None else seen

    def _fitted(self, x: Data[Any], bonds: Bonds, view: View, progress: Progress) -> Fit:
        which, source = Which(self.svd), view.source(many=False)
        bonds = bonds[: len(view.sizes) - 1]
        cores, spectra = fixed_bonds(source, bonds, None if self.svd is None else which)
        trace = Trace()
        if isinstance(source, DenseSource) and 0 not in bonds:
            cores, trace = self._swept(source, cores, _losses(spectra, bonds), view)
        return self._finished(x, view, (cores, spectra), progress, used=which.names, trace=trace)

    def _swept(
        self, source: DenseSource, cores: list[Array], losses: list[float], view: View
    ) -> Swept:
        """Cores improved by sweeps, where more than rounding is lost."""
        energy = sum_of_squares(source.x) if view.energy is None else view.energy
        known = self.svd is None and view.stream is None
        if known and sum(losses) <= floor(source.x.dtype) ** 2 * energy:
            return cores, Trace()
        return tt_als(source.x, cores, self.n_iter_max, self.tol, energy=energy)

    def _finished(
        self,
        x: Data[Any],
        view: View,
        found: Cores,
        progress: Progress,
        *,
        used: str = "exact",
        trace: Trace | None = None,
    ) -> Fit:
        cores, spectra = found
        over = part(progress, 0.8, 1)
        over(0)
        return make_fit(
            x,
            view.train(cores),
            rounding=self.rounding,
            spectra=dict(zip(view.chain.names, spectra, strict=True)),
            trace=trace,
            svd=f"sketch, {used}" if view.stream else used,
            passes=view.passes + 1,
            energies=view.energies,
            distance=view.chain.distance,
            progress=over,
        )


@dataclass(frozen=True, kw_only=True)
class TrainMethod(ChainMethod):
    """A chain of cores, one for every mode, each bound to the next by one index.

    Attributes
    ----------
    modes
        All modes in chain order; by default as they are.
    random_state
        Seed or generator of the sketch of long ends.
    """

    modes: Sequence[str | int] | None = None
    random_state: int | np.random.Generator | None = None

    def __post_init__(self):
        check_sweeps(self.n_iter_max, self.tol)
        object.__setattr__(self, "random_state", seed_of(self.random_state))  # drawn once

    def chain(self, x: Data[Any]) -> Chain:
        """A core for every mode."""
        order = positions(x.modes, x.modes if self.modes is None else self.modes)
        if len(order) != len(x.modes):
            raise ArgumentError(
                f"modes={list(self.modes or ())} must give all modes in chain order:"
                f" {' '.join(x.modes)}"
            )
        axes = tuple((x.modes[k],) for k in order)
        if not x.is_format:
            return chain_of_array(x, axes, output=x.modes, split=x.shape, order=order)
        if isinstance(x.given, TT) and (self.modes is None or x.given.axes == axes):
            return chain_of_train(x.given)
        return chain_of_train(to_tt(x.given, [x.modes[k] for k in order]))

    def view(self, x: Data[Any], ends: Sequence[int], progress: Progress = silent) -> View:
        """Long modes at the ends of the chain are sketched where that is worth it."""
        chain = self.chain(x)
        ranks = ends_worth_sketching(x, chain, ends) if self.svd is None else None
        if ranks is None:
            return plain_view(chain)
        stream = streamed(x.given, ranks, seed_of(self.random_state), progress)
        assert stream.core is not None
        width = min(rank for rank in ranks if rank is not None)
        return View(
            chain=self.chain(open_data(stream.core, x.modes, keep=True)),
            sizes=chain.sizes,
            stream=stream,
            width=width,
            can_widen=ends_worth_sketching(x, chain, (2 * width, 2 * width)) is not None,
        )


@dataclass(frozen=True, kw_only=True)
class MpoMethod(ChainMethod):
    """A train over factors of both sides of the matrices, each core a small matrix.

    Attributes
    ----------
    out, inp
        Factors of the two sizes, slowest first, equally many.
    """

    out: Sequence[int] = (8, 96)
    inp: Sequence[int] = (8, 96)

    def __post_init__(self):
        check_sweeps(self.n_iter_max, self.tol)
        if not (isinstance(self.out, Sequence) and isinstance(self.inp, Sequence)):
            raise ArgumentError(
                f"out={self.out!r} and inp={self.inp!r} must be the factors of both sizes: (8, 96)"
            )
        out, inp = tuple(self.out), tuple(self.inp)
        if len(out) != len(inp) or min((*out, *inp), default=0) < 1:
            raise ArgumentError(
                f"out={out} and inp={inp} must be equally many sizes, 1 or more each"
            )

    def chain(self, x: Data[Any]) -> Chain:
        """A core for every site mode, then one for every pair of factors."""
        out, inp = self._factors_of(x)
        if x.is_format:
            return chain_of_train(mpo_of(x.given, out, inp))
        sites, k = x.modes[:-2], len(out)
        if len(sites) + k < 2:
            raise ArgumentError(f"out={out} gives one core: a train needs two or more")
        left, right = (tuple(f"{side}{j + 1}" for j in range(k)) for side in "oi")
        pairs = [(len(sites) + j, len(sites) + k + j) for j in range(k)]
        return chain_of_array(
            x,
            (*((m,) for m in sites), *zip(left, right, strict=True)),
            output=(*sites, left, right) if k > 1 else (*sites, *left, *right),
            split=(*x.shape[:-2], *out, *inp),
            order=(*range(len(sites)), *(p for pair in pairs for p in pair)),
        )

    def view(self, x: Data[Any], ends: Sequence[int], progress: Progress = silent) -> View:
        """Always whole: the ends of the chain are factors of the long modes."""
        del ends, progress
        return plain_view(self.chain(x))

    def _factors_of(self, x: Data[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The factors, if they are those of `x`."""
        out, inp = tuple(self.out), tuple(self.inp)
        if len(x.shape) < 2:
            raise DataError(f"mpo needs matrices, got an array of shape {x.shape}")
        if (math.prod(out), math.prod(inp)) != x.shape[-2:]:
            raise ArgumentError(
                f"out={out} and inp={inp} multiply to {math.prod(out)} x {math.prod(inp)},"
                f" the matrices are {x.shape[-2]} x {x.shape[-1]}: choose factors of these sizes"
            )
        return out, inp


def _losses(spectra: list[np.ndarray], bonds: Bonds) -> list[float]:
    """Squared error of every step of a sweep to these bonds."""
    return [float(np.sum(s[r:] ** 2)) for s, r in zip(spectra, bonds, strict=True)]


def _best_bonds(source: Source, spectra: list[np.ndarray], bonds: Bonds, share: Share) -> Bonds:
    """The bonds that lose least within a budget, searched from these on."""
    assert share.params is not None
    least = floor(source.like.dtype)
    energies = [without_rounding(s**2, least)[: share.rank_max] for s in spectra]
    some = within_budget(source.sizes, energies, bonds[: len(energies)], share.params)
    return least_loss(source, energies, some, share.params)


def _frontier(source: Source, spectra: list[np.ndarray]) -> Frontier:
    """What the bonds of a chain can trade, seen through these singular values."""
    sizes = source.sizes
    if len(sizes) > 1:
        least = floor(source.like.dtype)
        path = grow_bonds(sizes, [without_rounding(s**2, least) for s in spectra])
        return bond_frontier(sizes, spectra, path)
    energy = sum_of_squares(source.start())  # one core: all of it or nothing
    if energy == 0:
        return Frontier(np.array([0]), np.array([0.0]), np.array([[0]]))
    return Frontier(np.array([0, *sizes]), np.array([energy, 0.0]), np.array([[0], [1]]))
