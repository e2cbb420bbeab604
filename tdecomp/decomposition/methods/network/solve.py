"""One network fit: every start refined by sweeps and Newton steps, the best one kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tdecomp._xp import Array
from tdecomp.decomposition.methods.network.newton import (
    is_affordable,
    is_small,
    levenberg_marquardt,
)
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.decomposition.methods.network.product import product_start
from tdecomp.decomposition.methods.network.slices import slice_start
from tdecomp.decomposition.methods.network.starts import (
    cp_start,
    is_cp,
    known_start,
    padded_start,
    random_start,
    screened_start,
    zero_start,
)
from tdecomp.decomposition.methods.network.sweeps import EXACT, Result, alternate
from tdecomp.decomposition.methods.network.tree import is_tree, tree_of_svds
from tdecomp.progress import Progress, part, silent
from tdecomp.ranking.rounding import first_least

__all__ = ["NetworkIteration", "solve_network"]

_EXACT = 1e-13  # relative error at which no further start is tried
_FEW, _NEAR = 20, 1e-6  # sweeps that may do without screening, where they come so near
_FROM_DATA = {
    "column space of the product": product_start,
    "product found in one slice": slice_start,
}


@dataclass(frozen=True, kw_only=True)
class NetworkIteration:
    """How to iterate; see `als`."""

    from_data: bool
    n_iter_max: int
    tol: float
    ridge: float
    n_restarts: int
    seed: int
    newton: bool = True


def solve_network(
    problem: Problem,
    given: Sequence[Array] | None,
    smaller: Sequence[Array] | None,
    iteration: NetworkIteration,
    progress: Progress,
) -> Result:
    """The best of all starts: with `given` arrays as the first of them, and a `smaller` network."""
    if problem.energy == 0:
        return replace(Result.at(problem, zero_start(problem)), reason="the data are zero")
    results: list[Result] = []
    if given is None and iteration.from_data and is_tree(problem):
        results.append(_tree(problem, tree_of_svds(problem), iteration, progress))
        if smaller is None or len(problem.terms) <= 2:
            return results[0]
    else:
        for i in range(iteration.n_restarts):
            label, start = _start(problem, given, iteration, i)
            over = part(progress, i / iteration.n_restarts, (i + 1) / iteration.n_restarts)
            found = _refined(problem, start, iteration, over)
            origin = f"start {i + 1} of {iteration.n_restarts}: {label}"
            results.append(replace(found, reason=f"{origin}; {found.reason}"))
            if found.error(problem) < _EXACT:
                break
    if smaller is not None and results[-1].error(problem) > _EXACT:
        start = Result.at(problem, padded_start(problem, smaller, iteration.seed))
        found = _refined(problem, start, iteration, silent)
        results.append(replace(found, reason=f"from a smaller rank; {found.reason}"))
    return results[first_least([r.residual for r in results], EXACT**2 * problem.energy)]


def _start(
    problem: Problem, given: Sequence[Array] | None, iteration: NetworkIteration, number: int
) -> tuple[str, Result]:
    """Start of the given number with its name: what is given or known first, then random ones."""
    if given is not None and number == 0:
        return "given", Result.at(problem, given)
    if iteration.from_data:
        for label, find in _FROM_DATA.items():
            arrays = find(problem, iteration.seed, number)
            if arrays is not None:
                return label, Result.at(problem, arrays)
        if number == 0 and is_cp(problem):
            fitted = Result.at(
                problem, cp_start(problem, iteration.seed, iteration.n_iter_max, iteration.tol)
            )
            errors = (fitted.error(problem),)
            return "CP", replace(fitted, errors=errors, reason="swept by cp")
        known = known_start(problem, iteration.seed) if number == 0 else None
        if known is not None:
            return known[0], Result.at(problem, known[1])
    drawn = Result.at(problem, random_start(problem, iteration.seed, (number,)))
    if not iteration.newton:  # which is what screens
        return "random", drawn
    if not problem.is_tied:
        swept = _swept(problem, drawn, replace(iteration, n_iter_max=_FEW), silent)
        if swept.error(problem) < _NEAR:
            return "random", replace(swept, errors=())
    return "random", screened_start(problem, iteration.seed, number)


def _tree(
    problem: Problem, arrays: Sequence[Array], iteration: NetworkIteration, progress: Progress
) -> Result:
    """The closed form, improved by sweeps where it need not be optimal."""
    start = replace(Result.at(problem, arrays), reason="closed form (tree of SVDs)")
    if len(problem.terms) <= 2 or start.error(problem) < _EXACT:
        return start
    found = _swept(problem, start, iteration, progress)
    first = (start.error(problem), *found.errors)
    return replace(found, errors=first, reason=f"{start.reason}, then sweeps: {found.reason}")


def _refined(
    problem: Problem, start: Result, iteration: NetworkIteration, progress: Progress
) -> Result:
    """Sweeps, then Newton steps; sweeps alone for large data, while they win, or where asked for.

    Newton steps alone if factors are tied, after those of a random start, where sweeps in between
    lead astray, and after `cp`, which has swept.
    """
    found = start
    if not iteration.newton:
        return _swept(problem, start, iteration, progress)
    if not problem.is_tied and not start.errors:
        found = _swept(problem, start, iteration, part(progress, 0, 0.5))
    if found.error(problem) < EXACT or not (problem.is_tied or is_affordable(problem)):
        return found
    if found is not start and not found.converged and not is_small(problem):
        return found  # a step costs as much as tens of sweeps, and these still win
    polished = levenberg_marquardt(
        problem,
        found,
        n_iter_max=iteration.n_iter_max,
        tol=iteration.tol,
        progress=part(progress, 0.5, 1),
    )
    reason = f"Newton steps: {polished.reason}"
    if found is not start:
        reason = f"sweeps: {found.reason}; {reason}"
    return replace(polished, errors=found.errors + polished.errors, reason=reason)


def _swept(
    problem: Problem, start: Result, iteration: NetworkIteration, progress: Progress
) -> Result:
    return alternate(
        problem,
        start,
        n_iter_max=iteration.n_iter_max,
        tol=iteration.tol,
        ridge=iteration.ridge,
        progress=progress,
    )
