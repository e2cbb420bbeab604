"""Where to begin: closed forms where the equation has one, seeded random arrays elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition.methods.cp.cp import cp
from tdecomp.decomposition.methods.network.gates import eigenvector_gate, is_gate
from tdecomp.decomposition.methods.network.newton import is_small, levenberg_marquardt
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.decomposition.methods.network.sweeps import EXACT, Result, alternate
from tdecomp.decomposition.methods.network.tree import is_tree, padded, tree_of_svds
from tdecomp.formats import CP
from tdecomp.ranking.rounding import first_least

__all__ = [
    "cp_start",
    "known_start",
    "padded_start",
    "part_of",
    "random_start",
    "screened_start",
    "zero_start",
]

_REFERENCES = 3  # slices from which scales are computed
_SHORT = 20  # sweeps for a part of a start,
_ROUGH = 1e-4  # and the change of the error at which they stop
_CANDIDATES = 8  # random starts tried in short for one,
_STEPS = 12  # with this many Newton steps each,
_SLIGHT = 1e-3  # size of what is added to an array where zeros would stay
_SMALLNESS = 0.3  # from arrays this much too small: large ones lead into more local minima


def screened_start(problem: Problem, seed: int, number: int) -> Result:
    """The best of several random starts after a few Newton steps; the normal one if not small."""
    if not is_small(problem):
        return Result.at(problem, random_start(problem, seed, (number,)))
    found = []
    for i in range(_CANDIDATES):
        drawn = random_start(problem, seed, (number, i), gates_open=bool(i % 2))
        small = [_SMALLNESS * a if k in problem.free else a for k, a in enumerate(drawn)]
        start = Result.at(problem, small)
        found.append(levenberg_marquardt(problem, start, n_iter_max=_STEPS, tol=_ROUGH))
        if found[-1].error(problem) < EXACT:
            break
    return found[first_least([r.residual for r in found], EXACT**2 * problem.energy)]


def random_start(
    problem: Problem, seed: int, number: tuple[int, ...], gates_open: bool = False
) -> list[Array]:
    """Standard normal arrays, scaled so that every addend has its share of the data's norm.

    With `gates_open` a factor without ranks that only scales entries of others, as in VeRA, is
    all ones.
    """
    xp = namespace(problem.x)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=number))
    made: dict[int, Array] = dict(problem.frozen)
    for group in problem.groups:
        drawn = rng.standard_normal(problem.shape(group[0]))
        if gates_open and all(is_gate(problem, k) for k in group):
            drawn = np.ones_like(drawn)
        for k in group:
            made[k] = xp.asarray(drawn, dtype=xp.float64, device=problem.x.device)
    arrays = [made[k] for k in range(len(problem.terms))]
    share = problem.energy / len(problem.addends)
    factor = {}
    for addend in problem.addends:
        free = [k for k in addend if k in problem.free]
        size = sum_of_squares(problem.product(arrays, addend))
        if free and size > 0:
            factor |= dict.fromkeys(free, (share / size) ** (0.5 / len(free)))
    for group in problem.groups:
        for k in group:
            arrays[k] = arrays[k] * factor.get(group[0], 1.0)
    return arrays


def padded_start(problem: Problem, smaller: Sequence[Array], seed: int) -> list[Array]:
    """Arrays of smaller ranks filled up: zeros in one array of an addend, random in the others.

    The product is that of the smaller arrays. Only what is alone in its addend, as tied arrays
    are, gets small random entries, so that it can move.
    """
    arrays = random_start(problem, seed, (0,))
    for addend in problem.addends:
        groups = [g for g in problem.groups if g[0] in addend]
        grown = [g for g in groups if smaller[g[0]].shape != arrays[g[0]].shape]
        for group in groups:
            new, old = arrays[group[0]], smaller[group[0]]
            if group in grown[:1]:
                new = new * (0.0 if len(grown) > 1 else _SLIGHT)
            kept = namespace(old).ones_like(old)
            for axis, size in enumerate(new.shape):
                old, kept = (padded(a, size, axis) for a in (old, kept))
            for k in group:
                arrays[k] = old + (1.0 - kept) * new
    return arrays


def zero_start(problem: Problem) -> list[Array]:
    """All free arrays zero."""
    xp = namespace(problem.x)
    made = {"dtype": xp.float64, "device": problem.x.device}
    return [
        problem.frozen[k] if k in problem.frozen else xp.zeros(problem.shape(k), **made)
        for k in range(len(problem.terms))
    ]


def known_start(problem: Problem, seed: int) -> tuple[str, list[Array]] | None:
    """A start from the data, with its name; None where the equation offers none."""
    if len(problem.addends) > 1:
        return _one_by_one(problem, seed)
    if is_tree(problem):
        return "closed form (tree of SVDs)", tree_of_svds(problem)
    if is_cp(problem):
        return "CP", cp_start(problem, seed, 10 * _SHORT, _ROUGH**2)
    return _gated(problem, seed)


def _gated(problem: Problem, seed: int) -> tuple[str, list[Array]] | None:
    """The known start of the other factors, with those that only scale entries by themselves.

    The scales are all ones, or those of `eigenvector_gate`: what a few sweeps bring nearest.
    """
    gates = [g[0] for g in problem.groups if len(g) == 1 and is_gate(problem, g[0])]
    rest = [k for k in range(len(problem.terms)) if k not in gates]
    covered = {n for k in rest for n in problem.terms[k]}
    if not gates or not covered.issuperset(problem.output):
        return None
    ones = [namespace(a).ones_like(a) for a in zero_start(problem)]
    tried = [("all scales 1", {k: ones[k] for k in gates}, problem.x)]
    for reference in range(_REFERENCES if len(gates) == 1 else 0):
        split = eigenvector_gate(problem, gates[0], reference)
        if split is not None:
            tried.insert(reference, ("scales from eigenvectors", {gates[0]: split[0]}, split[1]))
    found: list[tuple[str, Result]] = []
    for label, scales, data in tried:
        start = known_start(part_of(problem, rest, data), seed)
        if start is None:
            return None
        filled = scales | dict(zip(rest, start[1], strict=True))
        result = Result.at(problem, [filled[k] for k in range(len(problem.terms))])
        result = alternate(problem, result, n_iter_max=_SHORT, tol=_ROUGH)
        found.append((f"{label}, others {start[0]}", result))
        if result.error(problem) < EXACT:
            break
    residuals = [result.residual for _, result in found]
    label, best = found[first_least(residuals, EXACT**2 * problem.energy)]
    return label, list(best.arrays)


def is_cp(problem: Problem) -> bool:
    """Whether the only rank name is in all terms, three or more, and every mode in one of them.

    LoRTA is the case of a split axis: ``hd r, head r, in r -> (head hd) in``.
    """
    ranks = {n for term in problem.terms for n in term if n not in problem.output}
    if len(ranks) != 1 or len(problem.addends) != 1 or problem.frozen or problem.is_tied:
        return False
    modes = [n for term in problem.terms for n in term if n not in ranks]
    everywhere = all(ranks.issubset(term) for term in problem.terms)
    return everywhere and len(problem.terms) > 2 and sorted(modes) == sorted(problem.output)


def cp_start(problem: Problem, seed: int, n_iter_max: int, tol: float) -> list[Array]:
    """`cp` of the data with the modes of each term merged, for a network that `is_cp`."""
    (rank,) = {n for n in problem.terms[0] if n not in problem.output}
    own = [[n for n in term if n != rank] for term in problem.terms]
    xp = namespace(problem.x)
    order = tuple(problem.output.index(n) for names in own for n in names)
    groups = tuple(math.prod(problem.sizes[n] for n in names) for names in own)
    merged = xp.reshape(xp.permute_dims(problem.x, order), groups)
    wanted = problem.sizes[rank]
    useful = min(wanted, math.prod(groups) // max(groups))
    fit = cp(merged, rank=useful, random_state=seed, n_iter_max=n_iter_max, tol=tol)
    assert isinstance(fit.tensor, CP)
    weights, factors = double(fit.tensor.weights), [double(f) for f in fit.tensor.factors]
    share = weights ** (1.0 / len(factors))
    return [_opened(problem, k, f * share, rank) for k, f in enumerate(factors)]


def _opened(problem: Problem, k: int, factor: Array, rank: str) -> Array:
    """``(merged modes, r)`` as the array of term `k`; missing components are zero."""
    xp, term = namespace(factor), problem.terms[k]
    factor = padded(factor, problem.sizes[rank], 1)
    names = [*(n for n in term if n != rank), rank]
    array = xp.reshape(factor, tuple(problem.sizes[n] for n in names))
    return xp.permute_dims(array, tuple(names.index(n) for n in term))


def _one_by_one(problem: Problem, seed: int) -> tuple[str, list[Array]] | None:
    """Every addend fitted to what those before it leave."""
    crossing = [g for g in problem.groups if any(k not in problem.addend_of(g[0]) for k in g)]
    if problem.is_tied or crossing:
        return None
    arrays, left = zero_start(problem), problem.x
    for addend in sorted(problem.addends, key=lambda a: any(k in problem.free for k in a)):
        if any(k in problem.free for k in addend):
            part = part_of(problem, addend, left)
            start = known_start(part, seed)
            found = random_start(part, seed, (0,)) if start is None else start[1]
            if part.energy > 0:
                found = alternate(
                    part, Result.at(part, found), n_iter_max=_SHORT, tol=_ROUGH
                ).arrays
            for k, array in zip(addend, found, strict=True):
                arrays[k] = array
        left = left - problem.product(arrays, addend)
    return "addends one by one", arrays


def part_of(problem: Problem, addend: Sequence[int], left: Array) -> Problem:
    """One addend as a problem of its own."""
    where = {k: i for i, k in enumerate(addend)}
    return replace(
        problem,
        terms=tuple(problem.terms[k] for k in addend),
        addends=(tuple(range(len(addend))),),
        groups=tuple(tuple(where[k] for k in g) for g in problem.groups if g[0] in where),
        frozen={where[k]: a for k, a in problem.frozen.items() if k in where},
        x=left,
    )
