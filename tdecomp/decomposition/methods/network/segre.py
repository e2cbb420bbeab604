"""Vectors that are rank-1 matrices in an unknown basis: the basis, by linear algebra alone."""

from __future__ import annotations

import numpy as np

__all__ = ["rank_one_basis"]

_ENTRIES = 25  # of a matrix at most: the cost grows with their sixth power
_DRAWS, _ENOUGH = 1000, 10  # elements of the algebra drawn, and used
_REAL = 1e-8  # imaginary part of an eigenvalue, relative, that is rounding


def rank_one_basis(u: np.ndarray, r: int, s: int, rng: np.random.Generator) -> np.ndarray | None:
    """``T (rs, rs)`` such that every row of ``u T⁻ᵀ`` is an ``(r, s)`` matrix of rank 1.

    The squares ``u uᵀ`` of the rows span the image of ``Sym²(r) ⊗ Sym²(s)``, whose complement ``Q``
    are the quadrics through all rank-1 matrices (their minors). The matrices ``L`` with
    ``⟨Q, L S⟩ = 0`` for all ``S`` of that span keep it as it is: they are
    ``T (g ⊗ 1 + 1 ⊗ h) T⁻¹``. The eigenvectors of one of them are the columns of ``T`` up to order
    and scale, which the others tell: in this basis they have entries only within the rows and the
    columns of an ``(r, s)`` grid.

    Parameters
    ----------
    u
        ``(n, rs)``, of full rank.
    r, s
        Sides of the matrices, 2 or more.
    rng
        Draws the elements whose eigenvectors are taken; those must be real.

    Returns
    -------
    array or None
        None for fewer than ``r(r+1)s(s+1)/4`` rows, more than 25 entries, or without a grid.
        Exact on exact data; not stable under noise that is more than small.
    """
    n_squares = r * (r + 1) * s * (s + 1) // 4
    norms = np.linalg.norm(u, axis=1)
    rows = np.argsort(-norms)[: 4 * n_squares]
    rows = rows[norms[rows] > 0]
    if min(r, s) < 2 or r * s > _ENTRIES or len(rows) < n_squares:
        return None
    algebra = _algebra(u[rows] / norms[rows, None], n_squares, r * r + s * s - 1)
    vectors = _eigenvectors(algebra, rng)
    if vectors is None:
        return None
    turned = np.linalg.solve(vectors, algebra @ vectors)
    grid = _grid(turned, r, s)
    if grid is None:
        return None
    basis = np.empty((r * s, r, s))
    for i, j in np.ndindex(r, s):
        first, here = (turned[:, grid[i, k], grid[0, k]] for k in (0, j))
        scale = (first @ here) / (first @ first) if i and j else 1.0
        basis[:, i, j] = scale * vectors[:, grid[i, j]]
    return basis.reshape(r * s, r * s)


def _algebra(u: np.ndarray, n_squares: int, dimension: int) -> np.ndarray:
    """Basis ``(dimension, n, n)`` of the matrices that keep the span of the squares of the rows."""
    n = u.shape[1]
    i, j = np.triu_indices(n)
    weight = np.where(i == j, 1.0, np.sqrt(2.0))
    squares = np.linalg.qr(u[:, i] * u[:, j] * weight, mode="r")
    vectors = np.linalg.svd(squares)[2] / weight
    symmetric = np.zeros((len(vectors), n, n))
    symmetric[:, i, j] = symmetric[:, j, i] = vectors
    normal = np.zeros((n * n, n * n))
    for quadric in symmetric[n_squares:]:
        conditions = (quadric @ symmetric[:n_squares]).reshape(-1, n * n)
        normal += conditions.T @ conditions
    return np.linalg.eigh(normal)[1][:, :dimension].T.reshape(dimension, n, n)


def _eigenvectors(algebra: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Real eigenvectors of the element, of those drawn, whose eigenvalues are farthest apart."""
    best, widest, found = None, 0.0, 0
    for _ in range(_DRAWS):
        drawn = np.tensordot(rng.standard_normal(len(algebra)), algebra, axes=1)
        values, vectors = np.linalg.eig(drawn)
        if np.max(np.abs(np.imag(values))) > _REAL * np.max(np.abs(values)):
            continue
        gap = float(np.min(np.diff(np.sort(np.real(values)))))
        if gap > widest:
            best, widest = np.real(vectors), gap
        found += 1
        if found == _ENOUGH:
            break
    return best


def _grid(turned: np.ndarray, r: int, s: int) -> np.ndarray | None:
    """Positions on an ``(r, s)`` grid in whose rows and columns the matrices have their entries."""
    size = np.sum(turned**2, axis=0)
    size = np.maximum(size, size.T)
    np.fill_diagonal(size, 0)
    near = [set(np.argsort(-row)[: r + s - 2].tolist()) for row in size]
    start, *others = sorted(near[0])
    line = [start, *(k for k in others if k in near[start])]
    crossing = [k for k in others if k not in near[start]]
    if (len(line), len(crossing)) == (s - 1, r - 1):
        line, crossing = crossing, line
    if (len(line), len(crossing)) != (r - 1, s - 1):
        return None
    grid = np.zeros((r, s), dtype=int)
    grid[1:, 0], grid[0, 1:] = line, crossing
    for i, j in np.ndindex(r - 1, s - 1):
        corner = (near[line[i]] & near[crossing[j]]) - {0}
        if len(corner) != 1:
            return None
        (grid[i + 1, j + 1],) = corner
    return grid
