"""What a few reads leave of one stack.

Every slice's own triplets, bases that some of the slices share, and the projection on those that
all of them share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from typing import TypeVar

import numpy as np

from tdecomp._xp import Array, adjoint, namespace, quick_sum_of_squares, sum_of_squares, to_numpy
from tdecomp.errors import DataError
from tdecomp.linalg import Triplets, random_matrix, svd_auto
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.slices import dense, each_slice
from tdecomp.passes.stream import worth_sketching
from tdecomp.progress import Progress, part, silent
from tdecomp.stack import Group, Site, Stack
from tdecomp.tasks import OfSlices, sendable
from tdecomp.tensor import gram

__all__ = ["SIDES", "SPARE", "Basis", "Core", "Look", "Room", "as_stack", "look", "subsets"]

Found = TypeVar("Found")
Handed = TypeVar("Handed")

SIDES = {"in": -1, "out": -2}
"""Where a basis can be shared by whole matrices: the position of its mode."""

SPARE = 10
"""Columns beyond the ranks that are trusted."""

Family = tuple[str, tuple[str, ...]]
"""A side, and the site modes that vary under one basis of it."""
Place = tuple[str, tuple[int, ...]]
"""A side, and the slices under one basis of it."""


@dataclass(frozen=True)
class Room:
    """How much wider than an even share of the largest budget needs the sketches are.

    Attributes
    ----------
    slices
        Triplets, and bases shared on one side.
    core
        The bases of both long modes together, for Tucker.
    train
        Those of the last mode that a train is seen through.
    """

    slices: float = 3.0
    core: float = 2.5
    train: float = 2.0


@sendable
@dataclass(frozen=True)
class Core:
    """A stack in coordinates of some of its long modes: ``‖X‖² = ‖array‖² + outside``."""

    array: Array
    frame: Frame
    outside: float


@dataclass(frozen=True)
class Basis:
    """One basis ``(n, k)`` of some slices, its squared singular values, and what lies outside."""

    sites: tuple[int, ...]
    matrix: Array
    squares: np.ndarray
    outside: float


@dataclass(frozen=True)
class Look:
    """One stack as the candidates see it.

    Attributes
    ----------
    stack
        What was read.
    energy
        ``‖X‖²``.
    triplets, outside
        Leading singular triplets of every slice, and the energy outside them.
    shared
        Bases by family.
    core, half
        In coordinates of both long modes, and of ``in`` alone: a train leaves ``out`` as it is.
    passes
        How often the stack was read.
    """

    stack: Stack
    energy: float
    triplets: list[Triplets]
    outside: np.ndarray
    shared: Mapping[Family, list[Basis]]
    core: Core
    half: Core
    passes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all modes."""
        return self.stack.shape


def as_stack(x: Array | Stack, modes: tuple[str, ...]) -> Stack:
    """Anything with slices as a stack."""
    return x if isinstance(x, Stack) else _array_stack(x, modes)


def _array_stack(x: Array, modes: tuple[str, ...]) -> Stack:
    flat = namespace(x).reshape(x, (-1, *x.shape[-2:]))
    labels = tuple(tuple(range(n)) for n in x.shape[:-2])
    size = (int(x.shape[-2]), int(x.shape[-1]))
    sites = tuple(
        Site(tensor=str(i), index=(), transpose=False, labels=(), shape=size, role="")
        for i in range(flat.shape[0])
    )
    return Stack(
        Group(name="array", modes=modes, labels=labels, sites=sites),
        lambda site: flat[int(site.tensor), ...],
        concurrent=type(x) is np.ndarray,
    )


def subsets(stack: Stack) -> list[tuple[str, ...]]:
    """Non-empty sets of the site modes that have more than one label; the last has all of them."""
    names = [m for m, n in zip(stack.modes, stack.shape[:-2], strict=False) if n > 1]
    return [s for k in range(1, len(names) + 1) for s in combinations(names, k)]


def look(stack: Stack, share: float, room: Room, seed: int, progress: Progress = silent) -> Look:
    """Read a stack three times, a slice at a time; once, and hold it, where it is small.

    The first read takes the leading triplets of every slice. Stacked, they give a first basis for
    every family of slices; the second read improves it by a step of subspace iteration,
    ``Q = orth(Σ X_lᴴ X_l Q)``, which brings in what the triplets left out. The third measures what
    ``Q`` captures, exactly, and projects on the bases that all slices share.

    Parameters
    ----------
    stack
        What is read.
    share
        Stored numbers that an even share of the largest budget gives it.
    room
        How much wider the sketches are than that needs.
    seed
        Of the sketches.
    """
    small = worth_sketching(stack.shape, (1, 1)) != (1, 1)
    source = _array_stack(dense(stack), stack.modes) if small else stack
    triplets, norms = _triplets(source, share * room.slices, seed, part(progress, 0, 0.5))
    kept = np.array([sum_of_squares(s) for _, s, _ in triplets])
    whole = all(s.shape[0] == min(stack.shape[-2:]) for _, s, _ in triplets)
    outside = np.maximum(norms - kept, 0.0) * (not whole)
    families = _families(source)
    start = _start(source, families, triplets, share, room, seed)
    bases = _improved(source, start, norms, part(progress, 0.5, 0.75))
    width = _train_width(stack.shape, share, room)
    measured, core, half = _measured(source, bases, norms, width, part(progress, 0.75, 1))
    shared = {f: [measured[f[0], sites] for sites in places] for f, places in families.items()}
    passes = 1 if small else 3
    return Look(stack, float(norms.sum()), triplets, outside, shared, core, half, passes)


def _train_width(shape: tuple[int, ...], share: float, room: Room) -> int:
    """The last bond s of a train of bonds (..., r, s) that stores `share`, made wider.

    With r as large as s, or as the sites allow.
    """
    before = min(math.sqrt(share / shape[-2]), math.prod(shape[:-2]))
    bond = share / (before * shape[-2] + shape[-1])
    return min(shape[-1], math.ceil(room.train * bond) + SPARE)


def _core_width(shape: tuple[int, ...], share: float, room: Room) -> int:
    """The r of a Tucker2 of ranks (r, r) that stores `share`, made wider."""
    sites, sides = math.prod(shape[:-2]), shape[-2] + shape[-1]
    rank = (math.sqrt(sides**2 + 4 * sites * share) - sides) / (2 * sites)
    return math.ceil(room.core * rank) + SPARE


def _triplets(
    stack: Stack, share: float, seed: int, progress: Progress
) -> tuple[list[Triplets], np.ndarray]:
    """Leading triplets and squared norm of every slice."""
    sides = stack.shape[-2:]
    width = min(*sides, math.ceil(share / (stack.n_sites * (sum(sides) + 1))) + 1)

    with each_slice(stack, partial(_leading_triplets, width, seed), progress) as found:
        triplets, norms = zip(*found, strict=True)
    return list(triplets), np.array(norms)


@sendable
def _leading_triplets(width: int, seed: int, i: int, matrix: Array) -> tuple[Triplets, float]:
    norm = quick_sum_of_squares(matrix)
    if not math.isfinite(norm):
        raise DataError("the array to explore contains NaN or Inf")
    return svd_auto(matrix, width, n_oversamples=SPARE, random_state=seed), norm


def _families(stack: Stack) -> dict[Family, list[tuple[int, ...]]]:
    """Slices that agree outside of some site modes; last those that need not agree at all."""
    names = subsets(stack) or [()]
    return {(side, varying): _members(stack, varying) for varying in names for side in SIDES}


def _members(stack: Stack, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Positions of the slices that agree outside of the modes `names`, one tuple per basis."""
    sites = stack.shape[:-2]
    at = np.arange(math.prod(sites)).reshape(sites)
    varying = [k for k, m in enumerate(stack.modes[:-2]) if m in names]
    flat = np.moveaxis(at, varying, range(-len(varying), 0))
    size = math.prod(sites[k] for k in varying)
    return [tuple(int(i) for i in row) for row in flat.reshape(-1, size)]


def _start(
    stack: Stack,
    families: Mapping[Family, list[tuple[int, ...]]],
    triplets: list[Triplets],
    share: float,
    room: Room,
    seed: int,
) -> dict[Place, Array]:
    """Leading directions of the stacked triplets, and random ones where those are too few."""
    rng, found = np.random.default_rng(seed), {}
    for (side, _), places in families.items():
        n, other = stack.shape[SIDES[side]], stack.shape[-3 - SIDES[side]]
        for sites in places:
            even = share * len(sites) / stack.n_sites / (len(sites) * other + n)
            width = math.ceil(room.slices * even) + SPARE
            if len(sites) == stack.n_sites:
                width = max(width, _core_width(stack.shape, share, room))
            parts = [_scaled(triplets[i], side) for i in sites]
            beside = namespace(*parts).concat(parts, axis=1)  # (n, sites k)
            width, given = min(n, width), min(*beside.shape, width)
            basis = svd_auto(beside, given, random_state=seed)[0]
            if given < width:
                more = random_matrix(rng, (n, width - given), basis) / math.sqrt(n)
                basis = namespace(basis).concat([basis, more], axis=1)
            found[side, sites] = basis
    return found


def _scaled(triplets: Triplets, side: str) -> Array:
    u, s, vh = triplets
    return (adjoint(vh) if side == "in" else u) * s[None, :]


@contextmanager
def _visits(
    stack: Stack,
    given: Mapping[Place, Handed],
    work: Callable[[Handed, Array], Found],
    progress: Progress,
) -> Iterator[Iterator[tuple[Place, Found]]]:
    """Inside, ``work(given, matrix)`` of one read of the slices.

    In their order, each turned so that bases are of its rows, under one place after the other.
    """
    mine: dict[int, list[tuple[Place, Handed]]] = {i: [] for i in range(stack.n_sites)}
    for place, one in given.items():
        for i in place[1]:
            mine[i].append((place, one))
    with each_slice(stack, partial(_at_places, work, OfSlices(mine)), progress) as found:
        yield chain.from_iterable(found)


@sendable
def _at_places(
    work: Callable[[Handed, Array], Found],
    mine: OfSlices[list[tuple[Place, Handed]]],
    i: int,
    matrix: Array,
) -> list[tuple[Place, Found]]:
    turned = {"in": matrix, "out": adjoint(matrix)}
    return [(place, work(one, turned[place[0]])) for place, one in mine[i]]


def _improved(
    stack: Stack, start: Mapping[Place, Array], norms: np.ndarray, progress: Progress
) -> dict[Place, Array]:
    """One step of subspace iteration; leading columns stay leading."""
    sums: dict[Place, Array] = {}

    scaled = {  # squares may leave float32
        place: (basis, math.sqrt(norms[list(place[1])].sum()) or 1.0)
        for place, basis in start.items()
    }
    with _visits(stack, scaled, _step, progress) as found:
        for place, one in found:
            sums[place] = sums[place] + one if place in sums else one
    return {place: namespace(y).linalg.qr(y, mode="reduced")[0] for place, y in sums.items()}


@sendable
def _step(given: tuple[Array, float], matrix: Array) -> Array:
    basis, scale = given
    return adjoint(matrix) @ ((matrix @ basis) / scale)


def _measured(
    stack: Stack,
    bases: Mapping[Place, Array],
    norms: np.ndarray,
    width: int,
    progress: Progress,
) -> tuple[dict[Place, Basis], Core, Core]:
    """Singular values of the slices on their bases, and the slices on the bases of all."""
    everywhere = tuple(range(stack.n_sites))
    right, left = bases["in", everywhere], bases["out", everywhere]
    grams: dict[Place, Array] = {}
    cores, halves = [], []

    given = {
        place: (q, left if place == ("in", everywhere) else None, width)
        for place, q in bases.items()
    }
    with _visits(stack, given, _captured, progress) as visits:
        for place, (squares, both) in visits:
            grams[place] = grams[place] + squares if place in grams else squares
            if both is not None:
                cores.append(both[0])
                halves.append(both[1])
    found = {
        place: _basis(place[1], q, grams[place], float(norms[list(place[1])].sum()))
        for place, q in bases.items()
    }
    n = len(stack.shape)
    both = _projected(stack, cores, {n - 2: left, n - 1: right}, norms)
    return found, both, _projected(stack, halves, {n - 1: right[:, :width]}, norms)


@sendable
def _captured(
    given: tuple[Array, Array | None, int], matrix: Array
) -> tuple[Array, tuple[Array, Array] | None]:
    """Gram matrix of a slice on a basis; on the basis of all, also what is projected."""
    basis, left, width = given
    seen = matrix @ basis
    return gram(seen, 1), None if left is None else (adjoint(left) @ seen, seen[:, :width])


def _projected(
    stack: Stack, parts: list[Array], bases: Mapping[int, Array], norms: np.ndarray
) -> Core:
    """Slices ``Q1ᴴ X Q2`` as a tensor; the lift of ``in`` is the conjugate of ``Q2``."""
    xp, last = namespace(parts[0]), len(stack.shape) - 1
    array = xp.reshape(xp.stack(parts), (*stack.shape[:-2], *parts[0].shape))
    lift = {k: adjoint(q).T if k == last else q for k, q in bases.items()}
    frame = Frame(lift, {k: adjoint(u) for k, u in lift.items()})
    lost = float(norms.sum()) - sum_of_squares(array)
    return Core(array, frame, 0.0 if tuple(array.shape) == stack.shape else max(0.0, lost))


def _basis(sites: tuple[int, ...], q: Array, total: Array, energy: float) -> Basis:
    """The basis turned to singular vectors."""
    xp = namespace(total)
    values, turn = xp.linalg.eigh(total)
    squares = np.maximum(to_numpy(xp.flip(values)), 0.0)
    matrix = q @ xp.astype(xp.flip(turn, axis=1), q.dtype)
    outside = energy - float(squares.sum()) if q.shape[1] < q.shape[0] else 0.0
    return Basis(sites, matrix, squares, max(0.0, outside))
