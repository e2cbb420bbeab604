"""Where CP iterations start: HOSVD, random, a generalised eigenproblem, or a given tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tdecomp._xp import Array, double, namespace, to_numpy
from tdecomp.decomposition.methods.cp.sweeps import Components
from tdecomp.decomposition.methods.tucker.hosvd import project, sequential_bases
from tdecomp.linalg import left_basis

__all__ = ["STARTS", "Start", "StartError", "gevd_start", "hosvd_start", "random_start"]

Start = Callable[[Array, int, Callable[[int], Array]], Components]
"""``(x, rank, random columns of a mode) -> components``; their weights are 0: still to be found."""

_SHAKE = 0.01  # norm of what is added to a singular vector to leave saddle points
_SINGULAR = 1e-10  # ratio of singular values at which the eigenproblem means nothing


class StartError(Exception):
    """A start that this tensor does not allow; the text says why."""


def random_start(x: Array, rank: int, columns: Callable[[int], Array]) -> Components:
    """Normal columns in every mode."""
    del rank
    return _unweighted([columns(k) for k in range(len(x.shape))])


def hosvd_start(x: Array, rank: int, columns: Callable[[int], Array]) -> Components:
    """Leading left singular vectors of every unfolding, random columns where there are too few.

    Structured tensors (permutations, symmetric ones) make exact singular vectors a saddle point
    where alternating least squares stands still, so a little of the random columns is added.
    """
    xp = namespace(x)
    factors = []
    for mode, n in enumerate(x.shape):
        u = double(left_basis(x, mode)[0])
        u = u[:, : min(rank, u.shape[1])]
        drawn = columns(mode) / math.sqrt(n)
        k = u.shape[1]
        along = xp.sum(u * drawn[:, :k], axis=0)  # (k,)
        u = u * xp.where(along < 0, -xp.ones_like(along), xp.ones_like(along))  # libraries differ
        factors.append(xp.concat([u + _SHAKE * drawn[:, :k], drawn[:, k:]], axis=1))
    return _unweighted(factors)


def gevd_start(x: Array, rank: int, columns: Callable[[int], Array]) -> Components:
    """Components from the generalised eigenvectors of two slices.

    With ``X_1 = A D_1 Bᵀ`` and ``X_2 = A D_2 Bᵀ``, the columns of ``A`` are eigenvectors of
    ``X_1 X_2⁻¹``; the other factors are read from ``A⁻¹ X``, one rank-1 tensor per component. Exact
    for an exact tensor of rank `rank` with two factors of full column rank ([leurgans1993]);
    unstable in general ([beltran2019]), so a start and no more. The small matrices are solved in
    numpy on the host: the array standard has no general eigenproblem.

    Raises
    ------
    StartError
        Fewer than two modes of size `rank` or more, or slices that are singular.
    """
    del columns
    xp = namespace(x)
    numbers = math.prod(x.shape)
    bases, _ = sequential_bases(x, {k: min(n, rank, numbers // n) for k, n in enumerate(x.shape)})
    core = to_numpy(project(x, bases)).astype(np.float64)
    a, b = sorted(range(core.ndim), key=lambda k: -core.shape[k])[:2]
    if core.shape[b] < rank:
        raise StartError(f"fewer than two modes have size {rank}")
    vectors = _eigenvectors(np.moveaxis(core, (a, b), (0, 1)).reshape(rank, rank, -1))
    parts = np.linalg.solve(vectors, np.moveaxis(core, a, 0).reshape(rank, -1))
    rest = [k for k in range(core.ndim) if k != a]
    small = {k: np.empty((core.shape[k], rank)) for k in rest} | {a: vectors}
    for r, part in enumerate(parts.reshape(rank, *(core.shape[k] for k in rest))):
        for k, column in zip(rest, _rank_one(part), strict=True):
            small[k][:, r] = column
    if not all(np.isfinite(f).all() for f in small.values()):
        raise StartError("the eigenproblem is not finite")
    lifted = [
        double(bases[k]) @ xp.asarray(small[k], dtype=xp.float64, device=x.device)
        for k in range(core.ndim)
    ]
    return _unweighted(lifted)


STARTS: Mapping[str, Start] = {
    "hosvd": hosvd_start,
    "random": random_start,
    "gevd": gevd_start,
}


def _eigenvectors(slices: np.ndarray) -> np.ndarray:
    """Real ``(R, R)`` generalised eigenvectors of two mixtures of ``slices[:, :, i]``.

    The two mixtures of most energy first; where slices of equal energy leave those singular, two
    arbitrary ones.
    """
    rank, _, n = slices.shape
    if n < 2:
        raise StartError("there is only one slice")
    rows = slices.reshape(rank * rank, n)
    u = np.linalg.svd(rows, full_matrices=False)[0][:, :2]
    mixed = rows @ np.random.default_rng(rank).standard_normal((n, 2))
    for pair in (u @ np.array([[1, 1], [1, -1]]), mixed):
        first, second = pair.T.reshape(2, rank, rank)
        if _regular(second):
            values, vectors = np.linalg.eig(np.linalg.solve(second.T, first.T).T)
            # a complex pair spans the same plane as its real and imaginary parts
            real = np.where(np.imag(values) < 0, np.imag(vectors), np.real(vectors))
            if _regular(real):
                return real
    raise StartError("the slices or their eigenvectors are dependent")


def _regular(matrix: np.ndarray) -> bool:
    s = np.linalg.svd(matrix, compute_uv=False)
    return bool(s[-1] > _SINGULAR * s[0])


def _rank_one(part: np.ndarray) -> list[np.ndarray]:
    """One vector per mode: leading left singular vectors, each projected out before the next."""
    found = []
    for _ in range(part.ndim - 1):
        u, s, vh = np.linalg.svd(part.reshape(part.shape[0], -1), full_matrices=False)
        found.append(u[:, 0])
        part = (s[0] * vh[0]).reshape(part.shape[1:])
    return [*found, part]


def _unweighted(factors: list[Array]) -> Components:
    c = Components.of(factors)
    return Components(0 * c.weights, c.factors)
