"""Where to begin: closed forms where the equation has one, seeded random arrays elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition._als.newton import is_small, levenberg_marquardt
from tdecomp.decomposition._als.problem import Problem
from tdecomp.decomposition._als.sweeps import EXACT, Result, alternate
from tdecomp.decomposition._als.tree import is_tree, tree_of_svds
from tdecomp.decomposition._cp.cp import cp
from tdecomp.formats import CP

__all__ = ["cp_start", "known_start", "random_start", "screened_start", "zero_start"]

_SHORT = 20  # sweeps for a part of a start,
_ROUGH = 1e-4  # and the change of the error at which they stop
_CANDIDATES = 8  # random starts tried in short for one,
_STEPS = 12  # with this many Newton steps each,
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
    return min(found, key=lambda r: r.residual)


def random_start(
    problem: Problem, seed: int, number: tuple[int, ...], gates_open: bool = False
) -> list[Array]:
    """Standard normal arrays, scaled so that every addend has its share of the data's norm.

    With `gates_open` a factor without ranks that only scales entries of others, as in VeRA, is
    all ones.
    """
    xp = namespace(problem.x)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=number))
    arrays: list[Array] = [problem.frozen.get(k) for k in range(len(problem.terms))]
    for group in problem.groups:
        drawn = rng.standard_normal(problem.shape(group[0]))
        if gates_open and all(_is_gate(problem, k) for k in group):
            drawn = np.ones_like(drawn)
        for k in group:
            arrays[k] = xp.asarray(drawn, dtype=xp.float64, device=problem.x.device)
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


def _is_gate(problem: Problem, k: int) -> bool:
    inside = {n for j in problem.addend_of(k) if j != k for n in problem.terms[j]}
    return all(n in problem.output and n in inside for n in problem.terms[k])


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
    if (arrays := cp_start(problem, seed)) is not None:
        return "CP", arrays
    return _without_gates(problem, seed)


def _without_gates(problem: Problem, seed: int) -> tuple[str, list[Array]] | None:
    """The known start of the other factors, with those that only scale entries all ones."""
    gates = [g[0] for g in problem.groups if len(g) == 1 and _is_gate(problem, g[0])]
    rest = [k for k in range(len(problem.terms)) if k not in gates]
    covered = {n for k in rest for n in problem.terms[k]}
    if not gates or not covered.issuperset(problem.output):
        return None
    start = known_start(_part(problem, rest, problem.x), seed)
    if start is None:
        return None
    arrays = [namespace(a).ones_like(a) for a in zero_start(problem)]
    for k, array in zip(rest, start[1], strict=True):
        arrays[k] = array
    return f"all scales 1, others {start[0]}", arrays


def cp_start(problem: Problem, seed: int) -> list[Array] | None:
    """`cp` of the data with the modes of each term merged; None if the network is no CP.

    It is one if the only rank name is in all terms and every mode in one of them. LoRTA is the
    case of a split axis: ``hd r, head r, in r -> (head hd) in``.
    """
    ranks = {n for term in problem.terms for n in term if n not in problem.output}
    if len(ranks) != 1 or len(problem.addends) != 1 or problem.frozen or problem.is_tied:
        return None
    (rank,) = ranks
    own = [[n for n in term if n != rank] for term in problem.terms]
    if any(rank not in term for term in problem.terms) or len(own) < 3:
        return None
    if sorted(n for names in own for n in names) != sorted(problem.output):
        return None
    xp = namespace(problem.x)
    order = tuple(problem.output.index(n) for names in own for n in names)
    groups = tuple(math.prod(problem.sizes[n] for n in names) for names in own)
    merged = xp.reshape(xp.permute_dims(problem.x, order), groups)
    wanted = problem.sizes[rank]
    fit = cp(merged, rank=min(wanted, math.prod(groups) // max(groups)), random_state=seed)
    assert isinstance(fit.tensor, CP)
    weights, factors = double(fit.tensor.weights), [double(f) for f in fit.tensor.factors]
    share = weights ** (1.0 / len(factors))
    return [_opened(problem, k, f * share, rank) for k, f in enumerate(factors)]


def _opened(problem: Problem, k: int, factor: Array, rank: str) -> Array:
    """``(merged modes, r)`` as the array of term `k`; missing components are zero."""
    xp, term = namespace(factor), problem.terms[k]
    missing = problem.sizes[rank] - factor.shape[1]
    if missing > 0:
        blank = xp.zeros((factor.shape[0], missing), dtype=factor.dtype, device=factor.device)
        factor = xp.concat([factor, blank], axis=1)
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
            part = _part(problem, addend, left)
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


def _part(problem: Problem, addend: Sequence[int], left: Array) -> Problem:
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
