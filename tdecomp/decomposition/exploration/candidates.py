"""The formats that are compared: what each can trade, and its factors for given ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdecomp._xp import Array, adjoint, floor, namespace, to_numpy
from tdecomp.decomposition.exploration.look import SIDES, SPARE, Basis, Core, Look, subsets
from tdecomp.decomposition.fit import Fit
from tdecomp.decomposition.methods.cp import frontier as cp_ranks
from tdecomp.decomposition.methods.cp.cp import cp
from tdecomp.decomposition.methods.svd import svd
from tdecomp.decomposition.methods.train import bonds as tt_bonds
from tdecomp.decomposition.methods.train.loss import least_loss
from tdecomp.decomposition.methods.train.sweeps import tensor_source
from tdecomp.decomposition.methods.train.tt import tensor_train
from tdecomp.decomposition.methods.tucker.hosvd import bases_of, core_energy, project
from tdecomp.decomposition.methods.tucker.tucker import tucker
from tdecomp.decomposition.methods.tucker.tucker2 import tucker2
from tdecomp.formats import Format
from tdecomp.linalg import singular_values
from tdecomp.progress import silent
from tdecomp.ranking.frontier import Frontier, box_frontier, spectrum_frontier
from tdecomp.ranking.rounding import without_rounding

__all__ = ["Built", "Candidate", "candidates_of"]

Ranks = tuple[int, ...]
Pair = Callable[[int, Array], tuple[Array, Array]]
"""``(slice, its matrix) -> left, right`` with ``X̂ = left right``."""


@dataclass(frozen=True)
class Built:
    """One stack in one format: stored numbers, squared error from the sketches, and factors."""

    n_params: int
    lost: float
    ranks: str
    open: Callable[[], Pair]


@dataclass(frozen=True)
class Candidate:
    """A way to store a stack.

    Attributes
    ----------
    name
        As in the table.
    method
        The decomposition that gives it.
    modes
        Position of the one mode that has a shared basis; None for all that the method compresses.
    share
        Site modes that vary under one shared basis; None: all.
    frontiers
        What each of its units in a stack can trade, but for the constant outside the sketch.
    limits
        Ranks, per unit, from which on the sketch is too narrow to be trusted.
    build
        ``(look, ranks per unit, stored numbers) -> Built``.
    part
        Which part of a `Room` its limits come from.
    """

    name: str
    method: Callable[..., Fit]
    frontiers: Callable[[Look], list[Frontier]]
    limits: Callable[[Look], list[Ranks]]
    build: Callable[[Look, list[Ranks], int], Built]
    modes: tuple[int, ...] | None = None
    share: tuple[str, ...] | None = None
    part: str = "core"


def candidates_of(looks: Sequence[Look], formats: Sequence[Callable[..., Fit]]) -> list[Candidate]:
    """All candidates for some stacks: one-sided sharing goes with `tucker`."""
    found = [_SINGLE[svd]] if svd in formats else []
    if tucker in formats:
        families = dict.fromkeys(names for seen in looks for names in subsets(seen.stack))
        every = {m for names in families for m in names}
        found += [
            _one_sided(side, names, everything=set(names) == every)
            for names in families
            for side in SIDES
        ]
    return found + [_SINGLE[f] for f in formats if f is not svd]


_NEVER = 1 << 60  # a rank that no choice reaches


def _limit(width: int, whole: int, spare: int = SPARE) -> int:
    return _NEVER if width >= whole else width - spare + 1


# ------------------------------------------------------------------------------- independent SVD


def _svd_frontiers(seen: Look) -> list[Frontier]:
    cost = seen.shape[-2] + seen.shape[-1] + 1
    return [spectrum_frontier(to_numpy(s), cost, floor(s.dtype)) for _, s, _ in seen.triplets]


def _svd_limits(seen: Look) -> list[Ranks]:
    whole = min(seen.shape[-2:])
    return [(_limit(int(s.shape[0]), whole, 1),) for _, s, _ in seen.triplets]


def _svd_build(seen: Look, ranks: list[Ranks], share: int) -> Built:
    del share
    flat = [r for (r,) in ranks]
    tails = (
        float(np.sum(to_numpy(s).astype(np.float64)[r:] ** 2))
        for r, (_, s, _) in zip(flat, seen.triplets, strict=True)
    )

    def pair(i: int, matrix: Array) -> tuple[Array, Array]:
        del matrix
        (u, s, vh), r = seen.triplets[i], flat[i]
        return u[:, :r] * s[None, :r], vh[:r, :]

    lost = math.fsum(tails) + float(seen.outside.sum())
    params = sum(flat) * (seen.shape[-2] + seen.shape[-1] + 1)
    return Built(params, lost, _spread(flat), lambda: pair)


def _spread(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}..{high} (mean {sum(ranks) / len(ranks):.1f})"


# ------------------------------------------------------------------------------ one-sided sharing


def _one_sided(side: str, names: tuple[str, ...], *, everything: bool) -> Candidate:
    """One basis of `side` for all slices that agree outside of the site modes `names`."""

    def bases(seen: Look) -> list[Basis]:
        present = tuple(m for m in names if (side, (m,)) in seen.shared)
        if present:
            return seen.shared[side, present]
        return _lone_bases(seen, side)

    def cost(seen: Look, basis: Basis) -> int:
        return len(basis.sites) * seen.shape[-3 - SIDES[side]] + seen.shape[SIDES[side]]

    def frontiers(seen: Look) -> list[Frontier]:
        return [
            spectrum_frontier(np.sqrt(b.squares), cost(seen, b), floor(b.matrix.dtype))
            for b in bases(seen)
        ]

    def limits(seen: Look) -> list[Ranks]:
        whole = seen.shape[SIDES[side]]
        return [(_limit(int(b.matrix.shape[1]), whole),) for b in bases(seen)]

    def build(seen: Look, ranks: list[Ranks], share: int) -> Built:
        del share
        chosen = list(zip(bases(seen), [r for (r,) in ranks], strict=True))
        lost = math.fsum(float(b.squares[r:].sum()) + b.outside for b, r in chosen)
        of_site = {i: b.matrix[:, :r] for b, r in chosen for i in b.sites}

        def pair(i: int, matrix: Array) -> tuple[Array, Array]:
            q = of_site[i]
            if side == "in":
                return matrix @ q, adjoint(q)
            return q, adjoint(q) @ matrix

        params = sum(r * cost(seen, b) for b, r in chosen)
        return Built(params, lost, _spread([r for _, r in chosen]), lambda: pair)

    name = f"{side} shared over {' '.join(names)}"
    share = None if everything else names
    return Candidate(name, tucker, frontiers, limits, build, (SIDES[side],), share, "slices")


def _lone_bases(seen: Look, side: str) -> list[Basis]:
    """Where nothing varies under a basis: every slice has its own singular vectors."""
    found = []
    for i, (u, s, vh) in enumerate(seen.triplets):
        matrix = adjoint(vh) if side == "in" else u
        squares = to_numpy(s).astype(np.float64) ** 2
        found.append(Basis((i,), matrix, squares, float(seen.outside[i])))
    return found


# --------------------------------------------------------------------------- on the projected core


def _box_method(method: Callable[..., Fit], name: str, n_kept: int | None) -> Candidate:
    """Tucker of all modes, or of the last `n_kept`."""

    def where(seen: Look) -> list[int]:
        order = len(seen.shape)
        return list(range(order))[-(n_kept or order) :]

    def fixed(seen: Look) -> int:
        return math.prod(seen.shape[: where(seen)[0]])

    def frontiers(seen: Look) -> list[Frontier]:
        modes, array = where(seen), seen.core.array
        energy = core_energy(project(array, bases_of(array, modes)[0]), modes)
        sizes = [seen.shape[k] for k in modes]
        return [box_frontier(energy, sizes, fixed(seen), floor(array.dtype))]

    def limits(seen: Look) -> list[Ranks]:
        sizes = zip(seen.core.array.shape, seen.shape, strict=True)
        return [tuple([_limit(int(k), n) for k, n in sizes][-len(where(seen)) :])]

    def build(seen: Look, ranks: list[Ranks], share: int) -> Built:
        del share
        if 0 in ranks[0]:
            return _nothing(seen, len(ranks[0]))
        fit = method(seen.core.array, rank=ranks[0], names=seen.stack.modes)
        found = tuple(int(r) for r in fit.tensor.rank)
        sides = sum(r * seen.shape[k] for r, k in zip(found, where(seen), strict=True))
        return _of_fit(seen.core, fit, fixed(seen) * math.prod(found) + sides, found)

    return Candidate(name, method, frontiers, limits, build)


def _tt_candidate() -> Candidate:
    def spectra(seen: Look) -> list[np.ndarray]:
        array = seen.half.array
        xp, sizes = namespace(array), array.shape
        cuts = (math.prod(sizes[:k]) for k in range(1, len(sizes)))
        return [
            to_numpy(singular_values(xp.reshape(array, (rows, -1)))).astype(np.float64)
            for rows in cuts
        ]

    def frontiers(seen: Look) -> list[Frontier]:
        found = spectra(seen)
        path = tt_bonds.grow_bonds(seen.shape, _energies(found, seen))
        return [tt_bonds.bond_frontier(seen.shape, found, path)]

    def limits(seen: Look) -> list[Ranks]:
        """Only the bond before the last mode is cut by the sketch."""
        last = _limit(int(seen.half.array.shape[-1]), seen.shape[-1])
        return [(*[_NEVER] * (len(seen.shape) - 2), last)]

    def build(seen: Look, ranks: list[Ranks], share: int) -> Built:
        if 0 in ranks[0]:
            return _nothing(seen, len(ranks[0]))
        energies = _energies(spectra(seen), seen)
        room = max(share, tt_bonds.count_numbers(seen.shape, ranks[0]))
        tried = tt_bonds.within_budget(seen.shape, energies, ranks[0], room)
        source = replace(tensor_source(seen.half.array), sizes=seen.shape)
        best = least_loss(source, energies, tried, room)
        rank = tuple(min(r, len(e)) for r, e in zip(best, energies, strict=True))
        fit = tensor_train(seen.half.array, rank=rank, names=seen.stack.modes)
        found = tuple(int(r) for r in fit.tensor.rank[1:-1])
        return _of_fit(seen.half, fit, tt_bonds.count_numbers(seen.shape, found), found)

    return Candidate("tensor_train", tensor_train, frontiers, limits, build, part="train")


def _energies(spectra: Sequence[np.ndarray], seen: Look) -> list[np.ndarray]:
    """Squares of the spectra of a train without what is only rounding."""
    return [without_rounding(s**2, floor(seen.half.array.dtype)) for s in spectra]


def _cp_candidate() -> Candidate:
    def frontiers(seen: Look) -> list[Frontier]:
        array, each = seen.core.array, cp_ranks.cost(seen.shape)
        spectra = cp_ranks.spectra_of(array, silent)
        most = cp_ranks.reach(tuple(array.shape))
        return [cp_ranks.frontier(seen.energy, each, most, spectra)]

    def limits(seen: Look) -> list[Ranks]:
        del seen
        return [(_NEVER,)]

    def build(seen: Look, ranks: list[Ranks], share: int) -> Built:
        if 0 in ranks[0]:
            return _nothing(seen, 1)
        array, each = seen.core.array, cp_ranks.cost(seen.shape)
        rank = min(max(share // each, ranks[0][0]), cp_ranks.reach(tuple(array.shape)))
        fit = cp(array, rank=rank, names=seen.stack.modes)
        return _of_fit(seen.core, fit, rank * each, (rank,))

    return Candidate("cp", cp, frontiers, limits, build)


def _of_fit(core: Core, fit: Fit, params: int, ranks: Ranks) -> Built:
    """Factors of a core as factors of the stack."""

    def open_() -> Pair:
        lifted: Format = core.frame.up(fit.tensor)
        return lambda i, matrix: lifted.pair(i)

    lost = float(fit.residual.sum()) + core.outside
    return Built(params, lost, "×".join(map(str, ranks)), open_)


def _nothing(seen: Look, n_ranks: int) -> Built:
    """Rank 0."""

    def pair(i: int, matrix: Array) -> tuple[Array, Array]:
        del i
        return matrix[:, :0], matrix[:0, :]

    return Built(0, seen.energy, "×".join("0" * n_ranks), lambda: pair)


_SINGLE: dict[Callable[..., Fit], Candidate] = {
    svd: Candidate("svd", svd, _svd_frontiers, _svd_limits, _svd_build, part="slices"),
    tucker2: _box_method(tucker2, "tucker2", 2),
    tucker: _box_method(tucker, "tucker", None),
    tensor_train: _tt_candidate(),
    cp: _cp_candidate(),
}
