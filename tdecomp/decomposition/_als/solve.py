"""One network fit: every start refined by sweeps and Newton steps, the best one kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tdecomp._xp import Array
from tdecomp.decomposition._als.newton import is_affordable, levenberg_marquardt
from tdecomp.decomposition._als.problem import Problem
from tdecomp.decomposition._als.product import product_start
from tdecomp.decomposition._als.starts import known_start, screened_start, zero_start
from tdecomp.decomposition._als.sweeps import EXACT, Result, alternate
from tdecomp.decomposition._als.tree import is_tree, tree_of_svds
from tdecomp.decomposition._run import Progress, part

__all__ = ["Options", "solve_network"]

_EXACT = 1e-13  # relative error at which no further start is tried


@dataclass(frozen=True)
class Options:
    """How to iterate; see `als`."""

    from_data: bool
    n_iter_max: int
    tol: float
    ridge: float
    n_restarts: int
    seed: int


def solve_network(
    problem: Problem, given: Sequence[Array] | None, options: Options, progress: Progress
) -> Result:
    """The best of all starts; with `given` arrays as the first of them."""
    if problem.energy == 0:
        return replace(Result.at(problem, zero_start(problem)), reason="the data are zero")
    if given is None and options.from_data and is_tree(problem):
        return _tree(problem, tree_of_svds(problem), options, progress)
    results: list[Result] = []
    for i in range(options.n_restarts):
        label, start = _start(problem, given, options, i)
        over = part(progress, i / options.n_restarts, (i + 1) / options.n_restarts)
        found = _refined(problem, start, options, over)
        origin = f"start {i + 1} of {options.n_restarts}: {label}"
        results.append(replace(found, reason=f"{origin}; {found.reason}"))
        if found.error(problem) < _EXACT:
            break
    return min(results, key=lambda r: r.residual)


def _start(
    problem: Problem, given: Sequence[Array] | None, options: Options, number: int
) -> tuple[str, Result]:
    """Start of the given number with its name: what is given or known first, then random ones."""
    if given is not None and number == 0:
        return "given", Result.at(problem, given)
    if options.from_data:
        arrays = product_start(problem, options.seed, number)
        if arrays is not None:
            return "column space of the product", Result.at(problem, arrays)
        known = known_start(problem, options.seed) if number == 0 else None
        if known is not None:
            return known[0], Result.at(problem, known[1])
    return "random", screened_start(problem, options.seed, number)


def _tree(
    problem: Problem, arrays: Sequence[Array], options: Options, progress: Progress
) -> Result:
    """The closed form, improved by sweeps where it need not be optimal."""
    start = replace(Result.at(problem, arrays), reason="closed form (tree of SVDs)")
    if len(problem.terms) <= 2 or start.error(problem) < _EXACT:
        return start
    found = _swept(problem, start, options, progress)
    first = (start.error(problem), *found.errors)
    return replace(found, errors=first, reason=f"{start.reason}, then sweeps: {found.reason}")


def _refined(problem: Problem, start: Result, options: Options, progress: Progress) -> Result:
    """Sweeps, then Newton steps; sweeps alone for large data, Newton steps alone if tied.

    Also Newton steps alone after those of a random start: sweeps in between lead astray.
    """
    found = start
    if not problem.is_tied and not start.errors:
        found = _swept(problem, start, options, part(progress, 0, 0.5))
    if found.error(problem) < EXACT or not (problem.is_tied or is_affordable(problem)):
        return found
    polished = levenberg_marquardt(
        problem,
        found,
        n_iter_max=options.n_iter_max,
        tol=options.tol,
        progress=part(progress, 0.5, 1),
    )
    reason = f"Newton steps: {polished.reason}"
    if found is not start:
        reason = f"sweeps: {found.reason}; {reason}"
    return replace(polished, errors=found.errors + polished.errors, reason=reason)


def _swept(problem: Problem, start: Result, options: Options, progress: Progress) -> Result:
    return alternate(
        problem,
        start,
        n_iter_max=options.n_iter_max,
        tol=options.tol,
        ridge=options.ridge,
        progress=progress,
    )
