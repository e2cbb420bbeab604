"""A start for entrywise products of which one side is common to all slices, from one slice."""

from __future__ import annotations

import math
from dataclasses import replace

from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition.methods.network.newton import levenberg_marquardt
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.decomposition.methods.network.product import product_start
from tdecomp.decomposition.methods.network.starts import part_of
from tdecomp.decomposition.methods.network.sweeps import EXACT, Result
from tdecomp.decomposition.methods.network.tree import tree_of_svds

__all__ = ["slice_start"]

_STEPS = 100  # Newton steps for the slice


def slice_start(problem: Problem, seed: int, number: int) -> list[Array] | None:
    """Arrays of ``layer out r, layer r in, out s, s in -> layer out in``; None for other networks.

    One slice is the product of two low-rank matrices, which `product_start` finds. One of them is
    the common one, ``W``; all slices are divided by it, entry by entry, and what remains is of low
    rank. The slices are taken in the order of their norms, one for each `number`.
    """
    pairs = _pairs(problem)
    if pairs is None:
        return None
    own, common, batch = pairs
    xp = namespace(problem.x)
    names = [n for n in problem.output if n not in batch]
    order = tuple(problem.output.index(n) for n in (*batch, *names))
    moved = xp.permute_dims(problem.x, order)
    slabs = double(xp.reshape(moved, (-1, *moved.shape[len(batch) :])))
    energies = [sum_of_squares(slabs[b, ...]) for b in range(slabs.shape[0])]
    ranked = sorted(range(len(energies)), key=lambda b: -energies[b])
    piece = replace(
        problem,
        terms=tuple(tuple(n for n in term if n not in batch) for term in problem.terms),
        output=tuple(names),
        x=slabs[ranked[number % len(ranked)], ...],
    )
    arrays = product_start(piece, seed, number) if piece.energy > 0 else None
    if arrays is None:
        return None
    found = Result.at(piece, arrays)
    if found.error(piece) > EXACT:
        found = levenberg_marquardt(piece, found, n_iter_max=_STEPS, tol=1e-6)
    tried = []
    for pair in (own, common):  # which of the two is the common one, the slice cannot tell
        w = piece.product(found.arrays, pair)
        noise = found.residual / piece.energy * sum_of_squares(w) / math.prod(w.shape)
        square = w * w + noise
        y = slabs * w / xp.where(square > 0, square, xp.ones_like(square))
        y = xp.permute_dims(
            xp.reshape(y, tuple(moved.shape)), tuple(map(order.index, range(len(order))))
        )
        filled = dict(zip(own, tree_of_svds(part_of(problem, own, y)), strict=True))
        filled |= zip(common, tree_of_svds(part_of(piece, common, w)), strict=True)
        tried.append(Result.at(problem, [filled[k] for k in range(4)]))
    return list(min(tried, key=lambda r: r.residual).arrays)


def _pairs(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...], list[str]] | None:
    """Positions of the pair that has all modes, and of the other; the modes that this one lacks."""
    if len(problem.terms) != 4 or len(problem.addends) != 1:
        return None
    if problem.frozen or problem.is_tied:
        return None
    having = {n: tuple(k for k in range(4) if n in problem.terms[k]) for n in problem.sizes}
    pairs = sorted({where for n, where in having.items() if n not in problem.output})
    if len(pairs) != 2 or sorted(k for pair in pairs for k in pair) != [0, 1, 2, 3]:
        return None
    for own, common in (pairs, pairs[::-1]):
        seen = {n for k in common for n in problem.terms[k]}
        batch = [n for n in problem.output if n not in seen]
        if batch and {n for k in own for n in problem.terms[k]}.issuperset(problem.output):
            return own, common, batch
    return None
