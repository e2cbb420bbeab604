"""Sweeps over the cores of a tensor train: truncation, orthogonalisation, spectra of the bonds.

A *source* is a tensor that can be swept from one end to the other: a dense one, or a train whose
other cores are orthonormal. At every bond both show a matrix with the singular values of the
unfolding there, so what chooses bonds does not need to know which of the two it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array, adjoint, double, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.methods.train.bonds import Bonds
from tdecomp.decomposition.which import Which
from tdecomp.linalg import left_basis, orthonormal, singular_values
from tdecomp.progress import Progress

__all__ = [
    "Cores",
    "Keep",
    "Source",
    "bonds_of",
    "difference_energy",
    "exact_train",
    "fixed_bonds",
    "flipped",
    "left_orthonormal",
    "reshape",
    "right_orthonormal",
    "split_cores",
    "tensor_source",
    "train_source",
    "truncated",
]

Cores = tuple[list[Array], list[np.ndarray]]
"""Cores ``(r, n, s)``, and the singular values seen at every bond."""

Step = Callable[[int, Array], Array]
"""``(bond, matrix (rows, rest)) -> orthonormal basis (rows, r)`` of what is kept."""

Keep = Callable[[int, np.ndarray], int]
"""``(bond, squared singular values) -> how many are kept``, called in the order of the steps."""


@dataclass(frozen=True)
class Source:
    """A tensor that can be swept.

    Attributes
    ----------
    sizes
        Entries of every core between its bonds.
    sweep
        Cores from one end to the other; each step gives the basis of one core.
    spectra
        Singular values of the unfoldings at all bonds.
    like
        An array of its library, device and dtype.
    """

    sizes: tuple[int, ...]
    sweep: Callable[[Step], list[Array]]
    spectra: Callable[[Progress], list[np.ndarray]]
    like: Array


def tensor_source(x: Array) -> Source:
    """A dense tensor, one mode per core, swept from its longer end, which shrinks it most.

    Algorithm 1 of [oseledets2011] starts at the left; the end does not matter to its bound.
    """
    sizes = tuple(int(n) for n in x.shape)
    from_right = sizes[-1] > sizes[0]

    def spectra(progress: Progress) -> list[np.ndarray]:
        found = []
        for k in range(1, len(sizes)):
            matrix = reshape(x, (math.prod(sizes[:k]), -1))
            found.append(to_numpy(singular_values(matrix)))
            progress(k / (len(sizes) - 1))
        return found

    return Source(sizes, lambda step: _sweep(x, sizes, step, from_right=from_right), spectra, x)


def train_source(cores: Sequence[Array], *, from_right: bool = False) -> Source:
    """A train of cores ``(r, n, s)``, swept from the left; nothing larger than a core is formed."""
    if from_right:
        return _mirrored(train_source(flipped(cores)))
    sizes = tuple(int(c.shape[1]) for c in cores)
    ready = right_orthonormal(cores)

    def spectra(progress: Progress) -> list[np.ndarray]:
        found, core = [], ready[0]
        for k, after in enumerate(ready[1:], start=1):
            matrix = reshape(core, (-1, core.shape[2]))
            carry = namespace(matrix).linalg.qr(matrix, mode="reduced")[1]
            found.append(to_numpy(singular_values(carry)))
            core = _carried(carry, after)
            progress(k / (len(ready) - 1))
        return found

    def sweep(step: Step) -> list[Array]:
        done, core = [], ready[0]
        for bond, after in enumerate(ready[1:], start=1):
            r, n, s = core.shape
            matrix = reshape(core, (r * n, s))
            u = step(bond, matrix)  # (r n, kept)
            done.append(reshape(u, (r, n, u.shape[1])))
            core = _carried(adjoint(u) @ matrix, after)
        return [*done, core]

    return Source(sizes, sweep, spectra, cores[0])


def exact_train(x: Array) -> Source:
    """A dense tensor as the source that its train of full bonds is.

    Worth it for many sweeps of a tensor of many modes: the unfoldings are large, the cores are not.
    """
    from_right = x.shape[-1] > x.shape[0]
    if not from_right:  # the QR runs against the sweeps, so the train is ready for them
        x = namespace(x).permute_dims(x, tuple(reversed(range(len(x.shape)))))
    cores, bond, rest = [], 1, x
    for n in x.shape[:-1]:
        q, rest = namespace(x).linalg.qr(reshape(rest, (bond * n, -1)), mode="reduced")
        cores.append(reshape(q, (bond, n, q.shape[1])))
        bond = q.shape[1]
    cores.append(reshape(rest, (bond, x.shape[-1], 1)))
    return train_source(cores if from_right else flipped(cores), from_right=from_right)


def _mirrored(source: Source) -> Source:
    """The source of the chain read backwards."""
    d = len(source.sizes)
    return Source(
        source.sizes[::-1],
        lambda step: flipped(source.sweep(lambda bond, matrix: step(d - bond, matrix))),
        lambda progress: source.spectra(progress)[::-1],
        source.like,
    )


def fixed_bonds(source: Source, bonds: Bonds, which: Which | None) -> Cores:
    """TT-SVD with given bonds."""
    if 0 in bonds:
        return _zero(source), [np.zeros(0)] * len(bonds)
    if which is None:
        return truncated(source, lambda bond, energy: min(bonds[bond - 1], len(energy)))
    spectra = [np.zeros(0)] * len(bonds)

    def step(bond: int, matrix: Array) -> Array:
        u, s, _ = which.triplets(matrix, min(bonds[bond - 1], *matrix.shape))
        spectra[bond - 1] = to_numpy(s)
        return u

    return source.sweep(step), spectra


def truncated(
    source: Source, keep: Keep, first: dict[int, tuple[Array, Array]] | None = None
) -> Cores:
    """One sweep of exact SVDs.

    Parameters
    ----------
    source
        What is swept.
    keep
        How many singular values are kept at each bond.
    first
        Keeps the basis of the first bond between calls on the same source.
    """
    spectra = [np.zeros(0)] * (len(source.sizes) - 1)
    first = {} if first is None else first

    def step(bond: int, matrix: Array) -> Array:
        if bond in first:
            u, s = first[bond]
        else:
            u, s = left_basis(matrix, 0)
        if not first:
            first[bond] = u, s
        spectra[bond - 1] = to_numpy(s)
        return u[:, : keep(bond, spectra[bond - 1] ** 2)]

    return source.sweep(step), spectra


def _sweep(x: Array, sizes: Sequence[int], step: Step, *, from_right: bool) -> list[Array]:
    cores, bond, rest, d = [], 1, x, len(sizes)
    for k in range(d - 1, 0, -1) if from_right else range(d - 1):
        rows = sizes[k] * bond
        matrix = reshape(rest, (-1, rows)).T if from_right else reshape(rest, (rows, -1))
        u = step(k if from_right else k + 1, matrix)  # (rows, r)
        r = u.shape[1]
        rest = adjoint(u) @ matrix  # (r, what is left of the chain)
        if from_right:
            rest = rest.T
            cores.append(reshape(u.T, (r, sizes[k], bond)))
        else:
            cores.append(reshape(u, (bond, sizes[k], r)))
        bond = r
    if from_right:
        return [reshape(rest, (1, sizes[0], bond)), *reversed(cores)]
    return [*cores, reshape(rest, (bond, sizes[-1], 1))]


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
