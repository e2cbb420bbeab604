"""Sweeps over the bonds of a chain: truncation, orthogonalisation, spectra.

A *source* is a tensor that can be swept from one end to the other: a dense one, or a train whose
other cores are orthonormal. At every bond both show a matrix with the singular values of the
unfolding there, so what chooses bonds does not need to know which of the two it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array, adjoint, double, floor, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.methods.train.bonds import Bonds, tails_of
from tdecomp.decomposition.which import Which
from tdecomp.linalg import left_basis, orthonormal, singular_values
from tdecomp.progress import Progress

__all__ = [
    "Cores",
    "DenseSource",
    "FixedBonds",
    "Keep",
    "Source",
    "Step",
    "Sweep",
    "TrainSource",
    "WithinTail",
    "bonds_of",
    "difference_energy",
    "exact_train",
    "fixed_bonds",
    "flipped",
    "left_orthonormal",
    "reshape",
    "resumed",
    "right_orthonormal",
    "split_cores",
    "step_at",
    "swept",
    "tensor_source",
    "train_source",
]

Cores = tuple[list[Array], list[np.ndarray]]
"""Cores ``(r, n, s)``, and the singular values seen at every bond."""

Keep = Callable[[int, np.ndarray], int]
"""``(bond, squared singular values) -> how many are kept``, called in the order of the steps."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A tensor that can be swept, bond by bond; what is left of it after some is its *rest*.

    Attributes
    ----------
    sizes
        Entries of every core between its bonds, as the result will store them.
    from_right
        Whether the sweeps start at the right end.
    """

    sizes: tuple[int, ...]
    from_right: bool = False

    @property
    def bonds(self) -> Sequence[int]:
        """The bonds in the order of the steps; bond `k` lies behind core `k`, counted from 1."""
        steps = range(1, len(self.sizes))
        return steps[::-1] if self.from_right else steps

    @property
    @abstractmethod
    def like(self) -> Array:
        """An array of its library, device and dtype."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Numbers that it holds."""

    @abstractmethod
    def start(self) -> Array:
        """The rest before the first step: its norm is that of the tensor."""

    @abstractmethod
    def matrix(self, bond: int, rest: Array) -> Array:
        """``(rows, others)``: what a basis ``(rows, r)`` is chosen for at this bond."""

    @abstractmethod
    def core(self, bond: int, basis: Array) -> Array:
        """The core ``(r, n, s)`` that a basis is."""

    @abstractmethod
    def after(self, bond: int, basis: Array, matrix: Array) -> Array:
        """The rest, once a basis is chosen."""

    @abstractmethod
    def last(self, rest: Array) -> Array:
        """The core that is left after all steps."""

    @abstractmethod
    def spectra(self, progress: Progress) -> list[np.ndarray]:
        """Singular values of the unfoldings at all bonds."""


@dataclass(frozen=True, kw_only=True)
class DenseSource(Source):
    """A dense tensor ``x``, one mode per core."""

    x: Array

    @property
    def like(self) -> Array:
        """The tensor."""
        return self.x

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.x.shape)

    def start(self) -> Array:
        """The tensor as one row, or as one column."""
        return reshape(self.x, (-1, 1) if self.from_right else (1, -1))

    def matrix(self, bond: int, rest: Array) -> Array:
        """The rest unfolded behind the next core."""
        if self.from_right:
            return reshape(rest, (-1, self.x.shape[bond] * rest.shape[1])).T
        return reshape(rest, (rest.shape[0] * self.x.shape[bond - 1], -1))

    def core(self, bond: int, basis: Array) -> Array:
        """The rows apart into a bond and a mode."""
        rows, r = basis.shape
        if self.from_right:
            n = self.x.shape[bond]
            return reshape(basis.T, (r, n, rows // n))
        n = self.x.shape[bond - 1]
        return reshape(basis, (rows // n, n, r))

    def after(self, bond: int, basis: Array, matrix: Array) -> Array:
        """What the basis keeps."""
        del bond
        rest = adjoint(basis) @ matrix
        return rest.T if self.from_right else rest

    def last(self, rest: Array) -> Array:
        """The core at the other end."""
        if self.from_right:
            return reshape(rest, (1, self.x.shape[0], -1))
        return reshape(rest, (-1, self.x.shape[-1], 1))

    def spectra(self, progress: Progress) -> list[np.ndarray]:
        """Of every unfolding by itself."""
        found, shape = [], self.x.shape
        for k in range(1, len(shape)):
            unfolding = reshape(self.x, (math.prod(shape[:k]), -1))
            found.append(to_numpy(singular_values(unfolding)))
            progress(k / (len(shape) - 1))
        return found


@dataclass(frozen=True, kw_only=True)
class TrainSource(Source):
    """A train; nothing larger than a core is formed.

    Attributes
    ----------
    ready
        Its cores in the order of the steps, all but the first orthonormal towards it.
    """

    ready: Sequence[Array]

    @property
    def like(self) -> Array:
        """A core."""
        return self.ready[0]

    @property
    def size(self) -> int:
        """Numbers of all cores."""
        return sum(math.prod(core.shape) for core in self.ready)

    def start(self) -> Array:
        """The core that carries the norm."""
        return self.ready[0]

    def matrix(self, bond: int, rest: Array) -> Array:
        """The core unfolded behind its mode."""
        del bond
        return reshape(rest, (-1, rest.shape[2]))

    def core(self, bond: int, basis: Array) -> Array:
        """The rows apart into a bond and a mode."""
        rows, r = basis.shape
        n = self.ready[self._place(bond) - 1].shape[1]
        return self._turned(reshape(basis, (rows // n, n, r)))

    def after(self, bond: int, basis: Array, matrix: Array) -> Array:
        """What the basis keeps, carried into the next core."""
        return _carried(adjoint(basis) @ matrix, self.ready[self._place(bond)])

    def last(self, rest: Array) -> Array:
        """The core at the other end."""
        return self._turned(rest)

    def spectra(self, progress: Progress) -> list[np.ndarray]:
        """Of what is carried over every bond."""
        found, core = [], self.ready[0]
        for k, after in enumerate(self.ready[1:], start=1):
            matrix = reshape(core, (-1, core.shape[2]))
            carry = namespace(matrix).linalg.qr(matrix, mode="reduced")[1]
            found.append(to_numpy(singular_values(carry)))
            core = _carried(carry, after)
            progress(k / (len(self.ready) - 1))
        return found[::-1] if self.from_right else found

    def _place(self, bond: int) -> int:
        """Position of a bond in the order of the steps, from 1."""
        return len(self.ready) - bond if self.from_right else bond

    def _turned(self, core: Array) -> Array:
        return namespace(core).permute_dims(core, (2, 1, 0)) if self.from_right else core


def tensor_source(x: Array) -> DenseSource:
    """A dense tensor, swept from its longer end, which shrinks it most.

    Algorithm 1 of [oseledets2011] starts at the left; the end does not matter to its bound.
    """
    sizes = tuple(int(n) for n in x.shape)
    return DenseSource(sizes=sizes, from_right=sizes[-1] > sizes[0], x=x)


def train_source(cores: Sequence[Array]) -> TrainSource:
    """A train of cores ``(r, n, s)``, swept from the left."""
    sizes = tuple(int(c.shape[1]) for c in cores)
    return TrainSource(sizes=sizes, ready=right_orthonormal(cores))


def exact_train(x: Array) -> TrainSource:
    """A dense tensor as a train, without what the precision cannot tell from nothing.

    Worth it for many sweeps of a tensor of many modes: the unfoldings are large, the cores are not.
    """
    towards = tensor_source(x)
    against = DenseSource(sizes=towards.sizes, from_right=not towards.from_right, x=x)
    allowed = (floor(x.dtype) / 4) ** 2 * sum_of_squares(x) / max(1, len(towards.sizes) - 1)
    cores = swept(against, WithinTail(allowed)).cores  # ready to be swept back
    return TrainSource(
        sizes=towards.sizes,
        from_right=towards.from_right,
        ready=flipped(cores) if towards.from_right else cores,
    )


@dataclass(frozen=True)
class FixedBonds:
    """Keeps what is asked for, as far as there is so much."""

    bonds: Bonds

    def __call__(self, bond: int, energy: np.ndarray) -> int:
        """The bond, or all."""
        return min(self.bonds[bond - 1], len(energy))


@dataclass(frozen=True)
class WithinTail:
    """Keeps what a squared error for each bond needs, 1 at least."""

    allowed: float

    def __call__(self, bond: int, energy: np.ndarray) -> int:
        """The least number whose tail is within it."""
        del bond
        return max(1, int(np.argmax(tails_of(energy) <= self.allowed)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a sweep saw and did at one bond.

    Attributes
    ----------
    bond
        Where.
    matrix, basis, values
        What was unfolded, all its left singular vectors and singular values.
    kept
        How many of them.
    """

    bond: int
    matrix: Array
    basis: Array
    values: np.ndarray
    kept: int

    @property
    def cut(self) -> Array:
        """The basis that is kept."""
        return self.basis[:, : self.kept]

    def lost(self, kept: int | None = None) -> float:
        """Squared error of this step, or of one that keeps another number."""
        return float(np.sum(self.values[self.kept if kept is None else kept :] ** 2))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A train from one sweep: its squared error is the sum of what the steps lose.

    Every step projects orthogonally on what the steps before it have kept.
    """

    source: Source
    steps: tuple[Step, ...]
    rest: Array

    @property
    def bonds(self) -> Bonds:
        """Inner bonds, from the left."""
        return tuple(step.kept for step in self._from_left)

    @property
    def lost(self) -> float:
        """Squared error."""
        return math.fsum(step.lost() for step in self.steps)

    @property
    def cores(self) -> list[Array]:
        """``(r, n, s)``, orthonormal but for the last one in the order of the steps."""
        done = [self.source.core(step.bond, step.cut) for step in self.steps]
        done.append(self.source.last(self.rest))
        return done[::-1] if self.source.from_right else done

    @property
    def spectra(self) -> list[np.ndarray]:
        """Singular values seen at every bond, from the left."""
        return [step.values for step in self._from_left]

    @property
    def _from_left(self) -> tuple[Step, ...]:
        return self.steps[::-1] if self.source.from_right else self.steps


def swept(source: Source, keep: Keep, begun: Sequence[Step] = ()) -> Sweep:
    """One sweep of exact SVDs, from where `begun` stands.

    Parameters
    ----------
    source
        What is swept.
    keep
        How many singular values are kept at each bond.
    begun
        Steps of another sweep of the same source that this one begins with.
    """
    found = resumed(source, keep, begun, math.inf)
    assert found is not None
    return found


def resumed(source: Source, keep: Keep, begun: Sequence[Step], allowed: float) -> Sweep | None:
    """`swept`, or None as soon as it has lost more than is allowed."""
    steps, lost = [*begun], math.fsum(step.lost() for step in begun)
    rest = _after(source, steps[-1]) if steps else source.start()
    for bond in source.bonds[len(steps) :]:
        if lost > allowed:
            return None
        steps.append(step_at(source, keep, bond, rest))
        lost += steps[-1].lost()
        rest = _after(source, steps[-1])
    found = Sweep(source=source, steps=tuple(steps), rest=rest)
    return found if found.lost <= allowed else None


def step_at(source: Source, keep: Keep, bond: int, rest: Array) -> Step:
    """The step at one bond."""
    matrix = source.matrix(bond, rest)
    basis, s = left_basis(matrix, 0)
    values = to_numpy(s)
    kept = keep(bond, values**2)
    return Step(bond=bond, matrix=matrix, basis=basis, values=values, kept=kept)


def _after(source: Source, step: Step) -> Array:
    return source.after(step.bond, step.cut, step.matrix)


def fixed_bonds(source: Source, bonds: Bonds, which: Which | None) -> Cores:
    """TT-SVD with given bonds."""
    if 0 in bonds:
        return _zero(source), [np.zeros(0)] * len(bonds)
    if which is None:
        found = swept(source, FixedBonds(bonds))
        return found.cores, found.spectra
    done, rest, spectra = [], source.start(), [np.zeros(0)] * len(bonds)
    for bond in source.bonds:
        matrix = source.matrix(bond, rest)
        u, s, _ = which.triplets(matrix, min(bonds[bond - 1], *matrix.shape))
        spectra[bond - 1] = to_numpy(s)
        done.append(source.core(bond, u))
        rest = source.after(bond, u, matrix)
    done.append(source.last(rest))
    return done[::-1] if source.from_right else done, spectra


def right_orthonormal(cores: Sequence[Array]) -> list[Array]:
    """The same train, all cores but the first orthonormal, no bond wider than it can use."""
    done, core = [], cores[-1]
    for before in reversed(cores[:-1]):
        r, n, s = core.shape
        rows = adjoint(reshape(core, (r, n * s)))
        q = orthonormal(rows)
        carry = adjoint(q) @ rows
        done.append(reshape(adjoint(q), (q.shape[1], n, s)))
        core = _absorb(before, adjoint(carry))
    return [core, *reversed(done)]


def left_orthonormal(cores: Sequence[Array]) -> list[Array]:
    """The same train, all cores but the last orthonormal, no bond wider than it can use."""
    return flipped(right_orthonormal(flipped(cores)))


def flipped(cores: Sequence[Array]) -> list[Array]:
    """The train of the chain read backwards."""
    return [namespace(c).permute_dims(c, (2, 1, 0)) for c in reversed(cores)]


def difference_energy(a: Sequence[Array], b: Sequence[Array]) -> tuple[float, float]:
    """``‖A − B‖²`` and ``‖A‖²`` of two trains over one chain, in float64.

    The difference is a train itself; orthonormalised, its first core has its norm. So the smallest
    difference seen is about 1e-16 of ``‖A‖``, where inner products would stop at 1e-8.
    """
    a, b = [double(c) for c in a], [double(c) for c in b]
    energy = sum_of_squares(right_orthonormal(a)[0])
    if 0 in bonds_of(b):
        return energy, energy
    if len(a) == 1:
        return sum_of_squares(a[0] - b[0]), energy
    xp = namespace(*a, *b)
    middle = [_blocks(x, y) for x, y in zip(a[1:-1], b[1:-1], strict=True)]
    first, last = xp.concat([a[0], -b[0]], axis=2), xp.concat([a[-1], b[-1]], axis=0)
    return sum_of_squares(right_orthonormal([first, *middle, last])[0]), energy


def _blocks(x: Array, y: Array) -> Array:
    """``(r, n, s)`` and ``(t, n, u)`` as one block-diagonal core."""
    xp = namespace(x, y)
    n, made = x.shape[1], {"dtype": x.dtype, "device": x.device}
    upper = xp.concat([x, xp.zeros((x.shape[0], n, y.shape[2]), **made)], axis=2)
    lower = xp.concat([xp.zeros((y.shape[0], n, x.shape[2]), **made), y], axis=2)
    return xp.concat([upper, lower], axis=0)


def _absorb(core: Array, matrix: Array) -> Array:
    """``core[r, n, s] · matrix[s, t]``."""
    r, n, s = core.shape
    return reshape(reshape(core, (r * n, s)) @ matrix, (r, n, matrix.shape[1]))


def _carried(matrix: Array, core: Array) -> Array:
    """``matrix[q, r] · core[r, n, s]``."""
    r, n, s = core.shape
    return reshape(matrix @ reshape(core, (r, n * s)), (matrix.shape[0], n, s))


def bonds_of(cores: Sequence[Array]) -> Bonds:
    """Inner bonds of the cores of a train."""
    return tuple(int(c.shape[0]) for c in cores[1:])


def _zero(source: Source) -> list[Array]:
    """The train of rank 0: nothing is stored, unless there is only one core."""
    bonds = (1, *(0 for _ in source.sizes[1:]), 1)
    shapes = zip(bonds, source.sizes, bonds[1:], strict=False)
    like = source.like
    return [namespace(like).zeros(s, dtype=like.dtype, device=like.device) for s in shapes]


def split_cores(cores: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Cores ``(r, n, s)`` with the modes of each core apart."""
    return tuple(
        reshape(c, (c.shape[0], *shape, c.shape[-1]))
        for c, shape in zip(cores, shapes, strict=True)
    )


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` in another shape, by its own library."""
    return namespace(x).reshape(x, shape)
