"""What HOSVD, Tucker and Tucker2 share: a core, and bases of the modes that are compressed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tdecomp._xp import Array, floor
from tdecomp.decomposition.fit import Fit, Trace, make_fit, rounded
from tdecomp.decomposition.method import Analysis, Choice, Method, Share
from tdecomp.decomposition.methods.tucker.hooi import trimmed
from tdecomp.decomposition.methods.tucker.hosvd import (
    Bases,
    bases_of,
    core_energy,
    leading,
    project,
)
from tdecomp.decomposition.methods.tucker.view import (
    CoreView,
    exact_view,
    sketched_view,
    with_outside_measured,
)
from tdecomp.decomposition.which import Which
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import Svd, completed
from tdecomp.modes import positions
from tdecomp.passes.coordinates import Metric
from tdecomp.passes.data import Data
from tdecomp.passes.residual import measure
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.frontier import box_frontier
from tdecomp.ranking.target import Target
from tdecomp.tensor import widened

__all__ = ["CoreAndBases", "FullHosvd", "Modes"]

Modes = Sequence[str | int] | None

_LOADED = 0.3  # of the progress, once all of a tensor is in memory
_SEEN = 0.7  # once a sketch of it is


@dataclass(frozen=True)
class FullHosvd:
    """What a look leaves for the fit: bases of all singular vectors of every compressed mode.

    Attributes
    ----------
    bases, spectra
        Singular vectors ``(n, k)`` and values ``(k,)`` of the unfoldings, by position.
    view
        The tensor that they are of; None if it is to be loaded again.
    """

    bases: Bases
    spectra: dict[int, np.ndarray]
    view: CoreView | None

    @property
    def size(self) -> int:
        """Numbers that are held for it alone; an exact view is held anyway."""
        seen = self.view.size if self.view is not None and self.view.is_sketch else 0
        return seen + sum(math.prod(u.shape) for u in self.bases.values())


@dataclass(frozen=True, kw_only=True)
class CoreAndBases(Method[FullHosvd]):
    """A core and orthonormal bases of the compressed modes; subclasses say how bases are found.

    Ranks for an error or a budget are chosen from the core of the full HOSVD, whose every box has a
    known error.
    """

    by_modes: ClassVar[bool] = True

    modes: Modes = None
    svd: Svd | None = None
    metric: Metric | None = None

    def __post_init__(self):
        if self.modes is not None and (isinstance(self.modes, int) or len(self.modes) == 0):
            raise ArgumentError(
                f"modes={self.modes!r} must list one mode or more, names or positions"
            )

    @property
    @abstractmethod
    def seed_of_sketch(self) -> int | None:
        """Seed of a sketch of the long modes; None where the options ask for all of the tensor."""

    @abstractmethod
    def start(
        self, view: CoreView, rank: dict[int, int], which: Which, progress: Progress
    ) -> tuple[Bases, dict[int, np.ndarray]]:
        """Bases of given ranks to begin from, and the singular values seen on the way."""

    @abstractmethod
    def improve(self, view: CoreView, bases: Bases, progress: Progress) -> tuple[Bases, Trace]:
        """Bases of the same ranks that capture at least as much."""

    @abstractmethod
    def build(self, modes: tuple[str, ...], core: Array, bases: Bases) -> Format:
        """The format that stores them."""

    def cut_sizes(self, x: Data[Any]) -> Sequence[int]:
        """Sizes of the compressed modes."""
        return [x.shape[k] for k in self._where(x)]

    def ranks(self, x: Data[Any], target: Target) -> Choice:
        """One rank for every compressed mode."""
        return [target.ranks_of([x.modes[k] for k in self._where(x)], self.cut_sizes(x))]

    def literal(self, x: Data[Any], target: Target, tensor: Format) -> Format:
        """Bases filled up with other orthonormal columns, and the core with zeros."""
        core, arrays = tensor.arrays["core"], {}
        (rank,) = self.ranks(x, target)
        for k, r in zip(self._where(x), rank, strict=True):
            name = f"factor.{x.modes[k]}"
            arrays[name] = completed(tensor.arrays[name], r)
            core = widened(core, k, r)
        return rounded(tensor.with_arrays(tensor.arrays | arrays | {"core": core}), self.rounding)

    def spend(
        self,
        x: Data[Any],
        choice: Choice,
        share: Share,
        state: FullHosvd | None,
        progress: Progress,
    ) -> Fit:
        """For an error, cut what the sweeps have made room for."""
        if share.lost is None or 0 in choice[0]:
            return self.fit(x, choice, state, progress)
        rank = self._ranked(x, choice)
        view = self._view(x, rank, state, part(progress, 0, 0.2))
        full = state or FullHosvd(*bases_of(view.array, list(rank)), view)
        even = _even(full.spectra, list(rank), max(0.0, share.lost - view.outside))
        allowed = share.rank_max is None or max(even) <= share.rank_max
        rank = self._cheapest(x, [choice[0], even] if allowed else [choice[0]])
        bases = {k: full.bases[k][:, :r] for k, r in rank.items()}
        bases, trace = self._from_hosvd(view, bases, part(progress, 0.2, 0.7))
        core = project(view.array, bases)  # (ranks of the bases)
        measured = measure(view.array, self.build(x.modes, core, bases))
        lost = float(measured[0].sum()) + view.outside
        cut, bases = trimmed(core, bases, share.lost - lost, x.shape)  # (smaller ranks)
        known = measured if cut is core and not view.frame else None
        used = "sketch, exact" if view.is_sketch else "exact"
        found = self.build(x.modes, cut, bases)
        return self._made(
            x,
            view,
            found,
            full.spectra,
            trace=trace,
            svd=used,
            measured=known,
            progress=part(progress, 0.7, 1),
        )

    def _looked(
        self, x: Data[Any], width: int, progress: Progress, passes: int
    ) -> Analysis[FullHosvd]:
        """Frontier of the core of the full HOSVD, or of a sketch's part of it."""
        where, sizes = self._where(x), self.cut_sizes(x)
        view = self._sketched(x, dict.fromkeys(where, width), part(progress, 0, 0.6))
        if view is None:
            view, limits = exact_view(x, where, self.metric), ()
        else:
            view = replace(view, passes=view.passes + passes)
            view = with_outside_measured(x, view, part(progress, 0.6, 0.8))
            limits = tuple(width if k in view.frame.lift else x.shape[k] + 1 for k in where)
        over = part(progress, 0.8 if view.is_sketch else 0.1, 1)
        bases, spectra = bases_of(view.array, where, over)
        energy = core_energy(project(view.array, bases), sorted(where))
        energy = energy.transpose(np.argsort(np.argsort(where)))  # in the order of `where`
        known = energy[tuple(slice(limit) for limit in limits)]
        outside = view.outside + float(energy.sum() - known.sum())
        reach = floor(view.array.dtype)
        frontier = box_frontier(known, sizes, self._fixed(x), reach).plus(outside)
        full = FullHosvd(bases, spectra, view if view.is_sketch or x.keep else None)
        return Analysis(
            frontiers=[frontier],
            floor=reach,
            state=full,
            state_size=full.size,
            limits=limits,
            width=width,
            passes=view.passes,
        )

    def _fitted(
        self, x: Data[Any], choice: Choice, state: FullHosvd | None, progress: Progress
    ) -> Fit:
        """Factors of the given ranks."""
        rank, which = self._ranked(x, choice), Which(self.svd)
        view = self._view(x, rank, state, part(progress, 0, _SEEN))
        if view.is_sketch:
            which.used("sketch")
        over = part(progress, _SEEN if view.is_sketch else _LOADED, 1)
        if state is None:
            bases, spectra = self.start(view, rank, which, part(over, 0, 0.3))
            bases, trace = self.improve(view, bases, part(over, 0.3, 0.6))
        else:
            bases = {k: leading(state.bases[k], r) for k, r in rank.items()}
            bases, trace = self._from_hosvd(view, bases, part(over, 0.3, 0.6))
            spectra = state.spectra
        found = self.build(x.modes, project(view.array, bases), bases)
        over = part(over, 0.6, 1)
        return self._made(x, view, found, spectra, trace=trace, svd=which.names, progress=over)

    def _from_hosvd(self, view: CoreView, bases: Bases, progress: Progress) -> tuple[Bases, Trace]:
        """Improve leading vectors of all unfoldings, unless they are the optimum already.

        With a single mode cut the others are whole: what is left is a matrix, and its leading
        singular vectors are best.
        """
        if sum(u.shape[1] < u.shape[0] for u in bases.values()) == 1:
            return bases, Trace(converged=True, reason="one mode: its leading vectors are optimal")
        return self.improve(view, bases, progress)

    def _made(
        self,
        x: Data[Any],
        view: CoreView,
        found: Format,
        spectra: dict[int, np.ndarray],
        *,
        trace: Trace,
        svd: str,
        measured: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress = silent,
    ) -> Fit:
        """What was found in the coordinates of a view, as factors of the data."""
        return make_fit(
            x,
            view.frame.up(found),
            rounding=self.rounding,
            spectra={x.modes[k]: s for k, s in spectra.items()},
            trace=trace,
            seen=(view.array, view.frame),
            in_metric=bool(self.metric),
            svd=svd,
            passes=view.passes + 1,
            energies=view.energies,
            measured=measured,
            progress=progress,
        )

    def _view(
        self, x: Data[Any], rank: dict[int, int], state: FullHosvd | None, progress: Progress
    ) -> CoreView:
        """Coordinates for the given ranks: those of the look if it has left them."""
        view = self._sketched(x, rank, progress) if state is None else state.view
        return exact_view(x, rank, self.metric) if view is None else view

    def _sketched(self, x: Data[Any], rank: dict[int, int], progress: Progress) -> CoreView | None:
        if self.svd is not None or self.metric is not None or self.seed_of_sketch is None:
            return None
        return sketched_view(x, rank, self.seed_of_sketch, progress)

    def _where(self, x: Data[Any]) -> tuple[int, ...]:
        """Positions of the compressed modes."""
        return positions(x.modes, x.modes if self.modes is None else self.modes)

    def _ranked(self, x: Data[Any], choice: Choice) -> dict[int, int]:
        """Rank of every compressed mode, by position."""
        return dict(zip(self._where(x), choice[0], strict=True))

    def _fixed(self, x: Data[Any]) -> int:
        """Product of the sizes of the modes that are not compressed."""
        where = self._where(x)
        return math.prod(n for k, n in enumerate(x.shape) if k not in where)

    def _cheapest(self, x: Data[Any], choices: Sequence[tuple[int, ...]]) -> dict[int, int]:
        """The ranks that store the fewest numbers, of equals the first."""
        stored = partial(_stored, sizes=self.cut_sizes(x), fixed=self._fixed(x))
        return self._ranked(x, [min(choices, key=stored)])


def _stored(ranks: tuple[int, ...], sizes: Sequence[int], fixed: int) -> int:
    """Numbers of a core and its bases."""
    return fixed * math.prod(ranks) + int(np.dot(ranks, sizes))


def _even(spectra: dict[int, np.ndarray], where: Sequence[int], lost: float) -> tuple[int, ...]:
    """Ranks that cut every mode at an equal share of a squared error (the ε/√d rule)."""
    ranks = []
    for k in where:
        tails = np.append(np.cumsum(np.asarray(spectra[k])[::-1] ** 2)[::-1], 0.0)
        ranks.append(max(1, int(np.argmax(tails <= lost / len(where)))))
    return tuple(ranks)
