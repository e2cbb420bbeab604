"""Sweeps over the cores of a tensor train: truncation, orthogonalisation, spectra of the bonds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tdecomp._xp import Array, adjoint, namespace, to_numpy
from tdecomp.decomposition._bonds import (
    Bonds,
    grow_bonds,
    tails_of,
    usable_bonds,
)
from tdecomp.decomposition._run import (
    Progress,
    silent,
)
from tdecomp.linalg import Svd, left_basis, singular_values

__all__ = [
    "Cores",
    "Step",
    "bond_spectra",
    "bonds_of",
    "even_shares",
    "fixed_bonds",
    "reshape",
    "right_orthonormal",
    "split_cores",
    "truncated",
    "within_loss",
]

Cores = tuple[list[Array], list[np.ndarray]]
"""Cores ``(r, n, s)``, and the singular values seen at every bond."""

Step = Callable[[int, Array], Array]
"""``(bond, matrix (rows, rest)) -> orthonormal basis (rows, r)`` of what is kept."""


def fixed_bonds(x: Array, sizes: Sequence[int], bonds: Bonds, svd: Svd | None) -> Cores:
    """TT-SVD with given bonds."""
    if 0 in bonds:
        return _zero(x, sizes), [np.zeros(0)] * len(bonds)
    if svd is None:
        return _tt_svd(x, sizes, lambda bond, energy: min(bonds[bond - 1], len(energy)))
    spectra = [np.zeros(0)] * len(bonds)

    def step(bond: int, matrix: Array) -> Array:
        u, s, _ = svd(matrix, min(bonds[bond - 1], *matrix.shape))
        spectra[bond - 1] = to_numpy(s)
        return u

    return _sweep(x, sizes, step, from_right=sizes[-1] > sizes[0]), spectra


def within_loss(
    x: Array, sizes: Sequence[int], energies: list[np.ndarray], allowed: float
) -> Cores:
    """TT-SVD of a squared error of at most `allowed`: bisection on the path, then carrying."""
    path = grow_bonds(sizes, energies)
    first: dict[int, tuple[Array, Array]] = {}
    low, high = 0, len(path) - 1
    while low < high:
        middle = (low + high) // 2
        fits = sum(_losses(x, sizes, path[middle], first)) <= allowed
        low, high = (low, middle) if fits else (middle + 1, high)
    losses = _losses(x, sizes, path[low], first)
    spare = allowed - sum(losses)

    def keep(bond: int, energy: np.ndarray) -> int:
        nonlocal spare
        room = losses[bond - 1] + max(0.0, spare)
        tails = tails_of(energy)
        r = min(max(1, int(np.argmax(tails <= room))), path[low][bond - 1])
        spare = room - tails[r]
        return r

    cores, spectra = _tt_svd(x, sizes, keep, first)
    if usable_bonds(bonds_of(cores), sizes) != bonds_of(cores):
        cores = right_orthonormal(_left_orthonormal(cores))  # nothing lost: QR drops what is idle
    return cores, spectra


def _losses(x: Array, sizes: Sequence[int], bonds: Bonds, first: dict) -> list[float]:
    """Squared error that each bond adds when a tensor is cut to `bonds`."""
    losses = [0.0] * len(bonds)

    def keep(bond: int, energy: np.ndarray) -> int:
        r = min(bonds[bond - 1], len(energy))
        losses[bond - 1] = float(energy[r:].sum())
        return r

    _tt_svd(x, sizes, keep, first)
    return losses


def _tt_svd(
    x: Array,
    sizes: Sequence[int],
    keep: Callable[[int, np.ndarray], int],
    first: dict[int, tuple[Array, Array]] | None = None,
) -> Cores:
    """Sequential SVDs from the longer end of the chain.

    Algorithm 1 of [oseledets2011], which starts at the left; the end does not matter to its bound,
    and the longer one shrinks the tensor most.

    Parameters
    ----------
    x
        ``(n_1, ..., n_d)``.
    sizes
        Its shape.
    keep
        ``(bond, squared singular values) -> how many are kept``, called in the order of the steps.
    first
        Keeps the basis of the first bond between calls on the same `x`.
    """
    spectra = [np.zeros(0)] * (len(sizes) - 1)
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

    return _sweep(x, sizes, step, from_right=sizes[-1] > sizes[0]), spectra


def _sweep(x: Array, sizes: Sequence[int], step: Step, *, from_right: bool) -> list[Array]:
    """Cores from one end to the other; each `step` gives the basis of one core."""
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
    xp = namespace(cores[0])
    done, core = [], cores[-1]
    for before in reversed(cores[:-1]):
        r, n, s = core.shape
        q, carry = xp.linalg.qr(adjoint(reshape(core, (r, n * s))), mode="reduced")
        done.append(reshape(adjoint(q), (q.shape[1], n, s)))
        core = _absorb(before, adjoint(carry))
    return [core, *reversed(done)]


def _left_orthonormal(cores: Sequence[Array]) -> list[Array]:
    """The same train, all cores but the last orthonormal, no bond wider than it can use."""
    flip = lambda core: namespace(core).permute_dims(core, (2, 1, 0))
    return [flip(c) for c in right_orthonormal([flip(c) for c in reversed(cores)])][::-1]


def _absorb(core: Array, matrix: Array) -> Array:
    """``core[r, n, s] · matrix[s, t]``."""
    r, n, s = core.shape
    return reshape(reshape(core, (r * n, s)) @ matrix, (r, n, matrix.shape[1]))


def truncated(cores: list[Array], keep: Callable[[int, np.ndarray], int]) -> list[Array]:
    """Truncated SVDs from left to right of a right-orthonormal train."""
    done, core = [], cores[0]
    for bond, after in enumerate(cores[1:], start=1):
        r, n, s = core.shape
        matrix = reshape(core, (r * n, s))
        u, values = left_basis(matrix, 0)
        u = u[:, : keep(bond, to_numpy(values) ** 2)]
        done.append(reshape(u, (r, n, u.shape[1])))
        carry = adjoint(u) @ matrix  # (kept, s)
        flat = reshape(after, (s, -1))
        core = reshape(carry @ flat, (u.shape[1], *after.shape[1:]))
    return [*done, core]


def even_shares(error: float, bonds: int) -> Callable[[int, np.ndarray], int]:
    """Kept at each bond so that all cuts together are `error` of the first bond's norm."""
    left = 0.0

    def keep(bond: int, energy: np.ndarray) -> int:
        nonlocal left
        if bond == 1:
            left = error**2 * float(energy.sum())
        tails = tails_of(energy)
        r = max(1, int(np.argmax(tails <= left / (bonds + 1 - bond))))
        left -= float(tails[r])
        return r

    return keep


def bond_spectra(x: Array, progress: Progress = silent) -> list[np.ndarray]:
    """Singular values of the unfoldings at all bonds."""
    spectra, d = [], len(x.shape)
    for k in range(1, d):
        spectra.append(to_numpy(singular_values(reshape(x, (math.prod(x.shape[:k]), -1)))))
        progress(k / (d - 1))
    return spectra


def bonds_of(cores: Sequence[Array]) -> Bonds:
    return tuple(int(c.shape[0]) for c in cores[1:])


def _zero(x: Array, sizes: Sequence[int]) -> list[Array]:
    """The train of rank 0: nothing is stored."""
    bonds = (1, *(0 for _ in sizes[1:]), 1)
    shapes = zip(bonds, sizes, bonds[1:], strict=False)
    return [namespace(x).zeros(s, dtype=x.dtype, device=x.device) for s in shapes]


def split_cores(cores: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Cores ``(r, n, s)`` with the modes of each core apart."""
    return tuple(
        reshape(c, (c.shape[0], *shape, c.shape[-1]))
        for c, shape in zip(cores, shapes, strict=True)
    )


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return namespace(x).reshape(x, shape)
