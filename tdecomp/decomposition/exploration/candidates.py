"""The formats that are compared: independent SVDs, shared bases, boxes of a core, trains, CP."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from tdecomp._xp import Array, adjoint, floor, namespace, to_numpy
from tdecomp.decomposition.exploration.candidate import (
    NEVER,
    Built,
    Candidate,
    FormatPairs,
    Pairs,
    Ranks,
    built_of_fit,
    limit,
    nothing_built,
    spread,
    stored,
)
from tdecomp.decomposition.exploration.look import SIDES, Basis, Core, Look, subsets
from tdecomp.decomposition.fit import Fit
from tdecomp.decomposition.method import Method
from tdecomp.decomposition.methods.cp import frontier as cp_ranks
from tdecomp.decomposition.methods.cp.cp import cp
from tdecomp.decomposition.methods.train import bonds as tt_bonds
from tdecomp.decomposition.methods.train.loss import least_loss
from tdecomp.decomposition.methods.train.sweeps import tensor_source
from tdecomp.decomposition.methods.train.tt import tensor_train
from tdecomp.decomposition.methods.tucker.hosvd import bases_of, core_energy, project
from tdecomp.formats import Tucker
from tdecomp.linalg import Triplets, singular_values
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.data import open_data
from tdecomp.progress import silent
from tdecomp.ranking.frontier import Frontier, box_frontier, spectrum_frontier
from tdecomp.ranking.rounding import without_rounding
from tdecomp.tasks import OfSlices, sendable

__all__ = ["Boxes", "CPCandidate", "IndependentSvds", "OfCore", "Trains", "one_sided"]


# ------------------------------------------------------------------------------- independent SVD


@sendable
@dataclass(frozen=True)
class _TripletPairs(Pairs):
    """Leading triplets of every matrix, cut to its rank."""

    triplets: OfSlices[Triplets]
    ranks: OfSlices[int]

    def only(self, slices: Collection[int]) -> _TripletPairs:
        return _TripletPairs(self.triplets.only(slices), self.ranks.only(slices))

    def pair(self, i: int, matrix: Array) -> tuple[Array, Array]:
        del matrix
        (u, s, vh), r = self.triplets[i], self.ranks[i]
        return u[:, :r] * s[None, :r], vh[:r, :]  # (out, r), (r, in)


@dataclass(frozen=True, kw_only=True)
class IndependentSvds(Candidate):
    """A truncated SVD of every matrix by itself."""

    part: ClassVar[Literal["slices", "core", "train"]] = "slices"

    def frontiers(self, seen: Look) -> list[Frontier]:
        """One per matrix."""
        cost = sum(seen.shape[-2:]) + 1
        return [spectrum_frontier(to_numpy(s), cost, floor(s.dtype)) for _, s, _ in seen.triplets]

    def limits(self, seen: Look) -> list[Ranks]:
        """As wide as the triplets are."""
        whole = min(seen.shape[-2:])
        return [(limit(int(s.shape[0]), whole, 1),) for _, s, _ in seen.triplets]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The triplets themselves."""
        del share
        flat = [r for (r,) in ranks]
        tails = (
            float(np.sum(to_numpy(s).astype(np.float64)[r:] ** 2))
            for r, (_, s, _) in zip(flat, seen.triplets, strict=True)
        )
        return Built(
            n_params=sum(flat) * (sum(seen.shape[-2:]) + 1),
            lost=math.fsum(tails) + float(seen.outside.sum()),
            ranks=spread(flat),
            pairs=_TripletPairs(
                OfSlices(dict(enumerate(seen.triplets))), OfSlices(dict(enumerate(flat)))
            ),
        )


# ------------------------------------------------------------------------------ one-sided sharing


@sendable
@dataclass(frozen=True)
class _BasisPairs(Pairs):
    """Matrices on a basis of one side that each shares with others."""

    side: str
    bases: OfSlices[Array]

    def only(self, slices: Collection[int]) -> _BasisPairs:
        return _BasisPairs(self.side, self.bases.only(slices))

    def pair(self, i: int, matrix: Array) -> tuple[Array, Array]:
        q = self.bases[i]
        if self.side == "in":
            return matrix @ q, adjoint(q)  # (out, r), (r, in)
        return q, adjoint(q) @ matrix  # (out, r), (r, in)


@dataclass(frozen=True, kw_only=True)
class _OneSided(Candidate):
    """One basis of `side` for all slices that agree outside of the site modes `names`."""

    part: ClassVar[Literal["slices", "core", "train"]] = "slices"

    side: str
    names: tuple[str, ...]

    def frontiers(self, seen: Look) -> list[Frontier]:
        """One per basis."""
        return [
            spectrum_frontier(np.sqrt(b.squares), self._cost(seen, b), floor(b.matrix.dtype))
            for b in self._bases(seen)
        ]

    def limits(self, seen: Look) -> list[Ranks]:
        """As wide as the bases are."""
        whole = seen.shape[SIDES[self.side]]
        return [(limit(int(b.matrix.shape[1]), whole),) for b in self._bases(seen)]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """Leading columns of every basis."""
        del share
        chosen = list(zip(self._bases(seen), [r for (r,) in ranks], strict=True))
        of_site = {i: b.matrix[:, :r] for b, r in chosen for i in b.sites}
        return Built(
            n_params=sum(r * self._cost(seen, b) for b, r in chosen),
            lost=math.fsum(float(b.squares[r:].sum()) + b.outside for b, r in chosen),
            ranks=spread([r for _, r in chosen]),
            pairs=_BasisPairs(self.side, OfSlices(of_site)),
        )

    def _bases(self, seen: Look) -> list[Basis]:
        present = tuple(m for m in self.names if (self.side, (m,)) in seen.shared)
        return seen.shared[self.side, present] if present else _lone_bases(seen, self.side)

    def _cost(self, seen: Look, basis: Basis) -> int:
        side = SIDES[self.side]
        return len(basis.sites) * seen.shape[-3 - side] + seen.shape[side]


def one_sided(looks: Sequence[Look]) -> list[Candidate]:
    """A shared basis of one side, for every choice of the site modes that vary under it."""
    families = dict.fromkeys(names for seen in looks for names in subsets(seen.stack))
    every = {m for names in families for m in names}
    return [
        _OneSided(
            name=f"{side} shared over {' '.join(names)}",
            method="tucker",
            modes=(SIDES[side],),
            share=None if set(names) == every else names,
            side=side,
            names=names,
        )
        for names in families
        for side in SIDES
    ]


def _lone_bases(seen: Look, side: str) -> list[Basis]:
    """Where nothing varies under a basis: every slice has its own singular vectors."""
    found = []
    for i, (u, s, vh) in enumerate(seen.triplets):
        matrix = adjoint(vh) if side == "in" else u  # (n, k)
        squares = to_numpy(s).astype(np.float64) ** 2
        found.append(Basis((i,), matrix, squares, float(seen.outside[i])))
    return found


# --------------------------------------------------------------------------- on the projected core


@dataclass(frozen=True, kw_only=True)
class Boxes(Candidate):
    """A core and bases of all modes, or of the last `n_kept`: Tucker and Tucker2."""

    fit: Callable[..., Fit]
    n_kept: int | None = None

    def frontiers(self, seen: Look) -> list[Frontier]:
        """One for the whole tensor, from the core of its HOSVD."""
        modes, array = self._where(seen), seen.core.array
        energy = core_energy(project(array, bases_of(array, modes)[0]), modes)
        least = floor(array.dtype)
        return [box_frontier(energy, self._sizes(seen), self._fixed(seen), least)]

    def limits(self, seen: Look) -> list[Ranks]:
        """As wide as the core is."""
        sizes = zip(seen.core.array.shape, seen.shape, strict=True)
        return [tuple([limit(int(k), n) for k, n in sizes][self._where(seen)[0] :])]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The decomposition of the core."""
        del share
        if 0 in ranks[0]:
            return nothing_built(seen, len(ranks[0]))
        fit = self.fit(seen.core.array, rank=ranks[0], names=seen.stack.modes)
        found = tuple(int(r) for r in fit.tensor.rank)
        return built_of_fit(
            seen.core, fit, stored(self._fixed(seen), found, self._sizes(seen)), found
        )

    def _where(self, seen: Look) -> list[int]:
        order = len(seen.shape)
        return list(range(order))[-(self.n_kept or order) :]

    def _sizes(self, seen: Look) -> list[int]:
        return [seen.shape[k] for k in self._where(seen)]

    def _fixed(self, seen: Look) -> int:
        return math.prod(seen.shape[: self._where(seen)[0]])


@dataclass(frozen=True, kw_only=True)
class Trains(Candidate):
    """A tensor train of the stack."""

    part: ClassVar[Literal["slices", "core", "train"]] = "train"

    def frontiers(self, seen: Look) -> list[Frontier]:
        """One for the whole chain, along the path on which bonds grow."""
        found = _spectra(seen)
        path = tt_bonds.grow_bonds(seen.shape, _energies(found, seen))
        return [tt_bonds.bond_frontier(seen.shape, found, path)]

    def limits(self, seen: Look) -> list[Ranks]:
        """Only the bond before the last mode is cut by the sketch."""
        last = limit(int(seen.half.array.shape[-1]), seen.shape[-1])
        return [(*[NEVER] * (len(seen.shape) - 2), last)]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The best train of those that a budget tries."""
        if 0 in ranks[0]:
            return nothing_built(seen, len(ranks[0]))
        energies = _energies(_spectra(seen), seen)
        room = max(share, tt_bonds.count_numbers(seen.shape, ranks[0]))
        tried = tt_bonds.within_budget(seen.shape, energies, ranks[0], room)
        source = replace(tensor_source(seen.half.array), sizes=seen.shape)
        best = least_loss(source, energies, tried, room)
        rank = tuple(min(r, len(e)) for r, e in zip(best, energies, strict=True))
        fit = tensor_train(seen.half.array, rank=rank, names=seen.stack.modes)
        found = tuple(int(r) for r in fit.tensor.rank[1:-1])
        return built_of_fit(seen.half, fit, tt_bonds.count_numbers(seen.shape, found), found)


def _spectra(seen: Look) -> list[np.ndarray]:
    """Singular values at every bond."""
    array = seen.half.array
    xp, sizes = namespace(array), array.shape
    found = []
    for k in range(1, len(sizes)):
        unfolded = xp.reshape(array, (math.prod(sizes[:k]), -1))  # (before, behind)
        found.append(to_numpy(singular_values(unfolded)).astype(np.float64))
    return found


def _energies(spectra: Sequence[np.ndarray], seen: Look) -> list[np.ndarray]:
    """Squares of the spectra of a train without what is only rounding."""
    return [without_rounding(s**2, floor(seen.half.array.dtype)) for s in spectra]


@dataclass(frozen=True, kw_only=True)
class CPCandidate(Candidate):
    """A sum of rank-one tensors."""

    def frontiers(self, seen: Look) -> list[Frontier]:
        """One, from what the unfoldings promise."""
        array, each = seen.core.array, cp_ranks.cost(seen.shape)
        spectra = cp_ranks.spectra_of(array, silent)
        most = cp_ranks.reach(tuple(array.shape))
        return [cp_ranks.frontier(seen.energy, each, most, spectra)]

    def limits(self, seen: Look) -> list[Ranks]:
        """None: the core is not too narrow for what it promises."""
        del seen
        return [(NEVER,)]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The decomposition of the core."""
        if 0 in ranks[0]:
            return nothing_built(seen, 1)
        array, each = seen.core.array, cp_ranks.cost(seen.shape)
        rank = min(max(share // each, ranks[0][0]), cp_ranks.reach(tuple(array.shape)))
        fit = cp(array, rank=rank, names=seen.stack.modes)
        return built_of_fit(seen.core, fit, rank * each, (rank,))


# ------------------------------------------------------------------------------------- any other


@dataclass(frozen=True, kw_only=True)
class OfCore(Candidate):
    """Any decomposition of one unit that takes formats: of the projected core as a format."""

    fit: Callable[..., Fit]
    view: Method[Any]

    def frontiers(self, seen: Look) -> list[Frontier]:
        """What the method says of the core."""
        data = open_data(_as_format(seen))
        return self.view.look(data, max(seen.shape), silent).frontiers

    def limits(self, seen: Look) -> list[Ranks]:
        """As wide as the core is."""
        sizes = zip(seen.core.array.shape[-2:], seen.shape[-2:], strict=True)
        return [(min(limit(int(k), n) for k, n in sizes),)]

    def build(self, seen: Look, ranks: list[Ranks], share: int) -> Built:
        """The decomposition of the core."""
        del share
        if 0 in ranks[0]:
            return nothing_built(seen, len(ranks[0]))
        fit = self.fit(_as_format(seen), rank=ranks[0])
        return Built(
            n_params=fit.n_params,
            lost=float(fit.residual.sum()) + seen.core.outside,
            ranks="×".join(map(str, ranks[0])),
            pairs=FormatPairs(Core(seen.core.array, Frame(), 0.0), fit.tensor),
        )


def _as_format(seen: Look) -> Tucker:
    """The core in the modes of the stack."""
    bases = tuple(seen.core.frame.lift.get(k) for k in range(len(seen.shape)))
    return Tucker(seen.stack.modes, seen.core.array, bases)
