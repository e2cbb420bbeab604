"""A start for the entrywise product of two low-rank matrices (LoHa), from its column space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.methods.network.newton import levenberg_marquardt
from tdecomp.decomposition.methods.network.problem import Problem, Term
from tdecomp.decomposition.methods.network.segre import rank_one_basis
from tdecomp.decomposition.methods.network.starts import screened_start
from tdecomp.decomposition.methods.network.sweeps import EXACT
from tdecomp.linalg import truncated_svd

__all__ = ["product_start"]

_STEPS = 100  # Newton steps for the column space
_FOUND = 1e-10  # relative error at which nothing else is tried

Space = Callable[[Array, int, int, tuple[int, int]], tuple[Array, ...] | None]


@dataclass(frozen=True)
class _Product:
    """Positions of the four terms: two pairs, and the rank names of each."""

    left: tuple[int, int]
    right: tuple[int, int]
    rows: Term
    columns: Term
    ranks: tuple[Term, Term]


def product_start(problem: Problem, seed: int, number: int) -> list[Array] | None:
    """Arrays of ``out r, r in, out s, s in -> out in``, or None for any other network.

    ``X = (A B) ∘ (C D)`` is ``K M`` with ``K[out, rs] = A[out, r] C[out, s]``, a matrix of rank
    ``rs``. Its leading left singular vectors ``U`` are ``K G``: a far smaller fit than that of
    `X`, in which every row of ``U`` is a rank-1 matrix in a basis ``G`` common to all rows. With
    enough rows `rank_one_basis` computes it, else it is searched from random starts. Then
    ``M = G Uᵀ X``, and each of its columns is the rank-1 matrix ``B[:, in] D[:, in]ᵀ``. The same
    is tried from the right; the better one is returned.
    """
    product = _product(problem)
    if product is None:
        return None
    xp = namespace(problem.x)
    order = tuple(problem.output.index(n) for n in (*product.rows, *product.columns))
    n_rows = math.prod(problem.sizes[n] for n in product.rows)
    x = xp.reshape(xp.permute_dims(problem.x, order), (n_rows, -1))
    best: tuple[float, tuple[Array, ...]] | None = None
    for space, side in ((f, k) for f in (_algebraic, _searched) for k in (0, 1)):
        numbers = (seed, 2 * number + side)
        found = _factors(problem, product, x.T if side else x, space, numbers)
        if found is None:
            continue
        a, c, b, d, left = found
        if best is None or left < best[0]:
            best = left, (b, d, a, c) if side else (a, c, b, d)
        if left < _FOUND**2 * problem.energy:
            break
    assert best is not None
    arrays: dict[int, Array] = {}
    places = (*product.left, *product.right)
    for k, array, ranks in zip(places, best[1], 2 * product.ranks, strict=True):
        modes = product.rows if k in product.left else product.columns
        arrays[k] = _placed(problem, k, array, (*modes, *ranks))
    return [arrays[k] for k in range(4)]


def _product(problem: Problem) -> _Product | None:
    if len(problem.terms) != 4 or len(problem.addends) != 1:
        return None
    if problem.frozen or problem.is_tied:
        return None
    modes = [frozenset(n for n in t if n in problem.output) for t in problem.terms]
    ranks = [frozenset(n for n in t if n not in problem.output) for t in problem.terms]
    first = 0
    twins = [k for k in range(1, 4) if modes[k] == modes[first]]
    mates = [k for k in range(1, 4) if ranks[k] == ranks[first]]
    if len(twins) != 1 or len(mates) != 1 or twins == mates:
        return None
    (twin,), (mate,) = twins, mates
    (last,) = {1, 2, 3} - {twin, mate}
    apart = not modes[first] & modes[mate] and not ranks[first] & ranks[twin]
    if not (apart and modes[last] == modes[mate] and ranks[last] == ranks[twin]):
        return None
    rows, columns = (tuple(n for n in problem.output if n in modes[k]) for k in (first, mate))
    r, s = (tuple(n for n in problem.terms[k] if n in ranks[k]) for k in (first, twin))
    return _Product((first, twin), (mate, last), rows, columns, (r, s))


def _factors(
    problem: Problem, product: _Product, x: Array, space: Space, seed: tuple[int, int]
) -> tuple[Array, Array, Array, Array, float] | None:
    """``(rows, r), (rows, s), (columns, r), (columns, s)`` and what they leave of `x`."""
    xp = namespace(x)
    r, s = (math.prod(problem.sizes[n] for n in names) for names in product.ranks)
    u = double(truncated_svd(x, min(r * s, *x.shape))[0])
    found = space(u, r, s, seed)
    if found is None:
        return None
    a, c, g = found
    m = g @ (u.T @ double(x))  # (rs, columns)
    b, d = _rank_one(xp.reshape(m.T, (-1, r, s)))
    left = sum_of_squares(double(x) - (a @ b.T) * (c @ d.T))
    return a, c, b, d, left


def _algebraic(u: Array, r: int, s: int, seed: tuple[int, int]) -> tuple[Array, ...] | None:
    """``a, c, g`` of ``u = K g`` with ``K[o, rs] = a[o, r] c[o, s]``, from `rank_one_basis`."""
    xp = namespace(u)
    basis = None
    if u.shape[1] == r * s:
        basis = rank_one_basis(to_numpy(u), r, s, np.random.default_rng(seed))
    if basis is None:
        return None
    g = xp.asarray(basis, dtype=u.dtype, device=u.device).T
    a, c = _rank_one(xp.reshape(xp.linalg.solve(g.T, u.T).T, (-1, r, s)))
    return a, c, g


def _searched(u: Array, r: int, s: int, seed: tuple[int, int]) -> tuple[Array, ...]:
    """The same from random starts."""
    small = Problem(
        (("o", "r"), ("o", "s"), ("r", "s", "k")),
        ((0, 1, 2),),
        ("o", "k"),
        {"o": u.shape[0], "r": r, "s": s, "k": u.shape[1]},
        ((0,), (1,), (2,)),
        {},
        u,
    )
    found = screened_start(small, *seed)
    if found.error(small) > EXACT:
        found = levenberg_marquardt(small, found, n_iter_max=_STEPS, tol=1e-6)
    a, c, g = found.arrays
    return a, c, namespace(g).reshape(g, (r * s, -1))


def _rank_one(x: Array) -> tuple[Array, Array]:
    """``(n, r), (n, s)`` whose products are nearest to the matrices ``(n, r, s)``."""
    xp = namespace(x)
    p, value, q = xp.linalg.svd(x, full_matrices=False)
    root = xp.sqrt(value[:, :1])
    return p[:, :, 0] * root, q[:, 0, :] * root


def _placed(problem: Problem, k: int, array: Array, names: Term) -> Array:
    """An array over merged modes and merged ranks, with the axes of term `k`."""
    xp = namespace(array)
    opened = xp.reshape(array, tuple(problem.sizes[n] for n in names))
    return xp.permute_dims(opened, tuple(names.index(n) for n in problem.terms[k]))
