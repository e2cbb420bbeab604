"""Alternating least squares on any network: sweep after sweep, and the error never rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tdecomp._xp import Array, namespace, sum_of_squares
from tdecomp.decomposition.methods.network.problem import NO_RIDGE, Problem, update
from tdecomp.progress import Progress, silent

__all__ = ["EXACT", "Result", "alternate", "balanced"]

EXACT = 1e-14  # relative error below which a sweep only moves rounding


@dataclass(frozen=True)
class Result:
    """Arrays of all terms, what they leave of the data, and how they were found.

    Attributes
    ----------
    arrays
        One per term, frozen ones as they were.
    residual
        ``‖X − X̂‖²``.
    errors
        Relative error after each step; never rises.
    converged
        Whether it stopped by itself.
    reason
        Why it stopped.
    """

    arrays: tuple[Array, ...]
    residual: float
    errors: tuple[float, ...] = ()
    converged: bool = True
    reason: str = ""

    @classmethod
    def at(cls, problem: Problem, arrays: Sequence[Array]) -> Result:
        """A start, measured."""
        return cls(tuple(arrays), sum_of_squares(problem.remainder(arrays)))

    def error(self, problem: Problem) -> float:
        """Relative error."""
        return math.sqrt(self.residual / problem.energy)


def alternate(
    problem: Problem,
    start: Result,
    *,
    n_iter_max: int,
    tol: float,
    ridge: float = 0.0,
    progress: Progress = silent,
) -> Result:
    """Update every free factor in turn by `update`, then extrapolate the sweep if that pays.

    Parameters
    ----------
    problem
        Without tied factors: for those the model is not linear in each array.
    start
        Where to begin; its residual is the first to beat.
    n_iter_max, tol
        Sweeps at most; relative change of the error at which to stop.
    ridge
        Of the proximal term, relative to the largest eigenvalue; 1e-12 at least.
    progress
        Called with the fraction of the sweeps done.

    Returns
    -------
    Result
        Its errors never rise: a sweep that does not lower the residual is not taken.
    """
    now, residual = balanced(problem, start.arrays), start.residual
    rest = problem.remainder(now)
    errors: list[float] = []
    length = 1.0

    def result(converged: bool, reason: str) -> Result:
        return Result(tuple(now), residual, tuple(errors), converged, reason)

    for sweep in range(n_iter_max):
        swept = balanced(problem, _swept(problem, now, rest, max(ridge, NO_RIDGE)))
        rest = problem.remainder(swept)
        left = sum_of_squares(rest)
        if sweep > 1 and left > EXACT**2 * problem.energy:
            ahead = [b + length * (b - a) for a, b in zip(now, swept, strict=True)]
            rest_ahead = problem.remainder(ahead)
            beyond = sum_of_squares(rest_ahead)
            if beyond < left:
                swept, rest, left, length = ahead, rest_ahead, beyond, 1.5 * length
            else:
                length = max(0.5, 0.4 * length)
        if not left < residual:
            return result(True, "a sweep no longer lowers the error")
        before, (now, residual) = math.sqrt(residual), (swept, left)
        errors.append(math.sqrt(residual / problem.energy))
        progress((sweep + 1) / n_iter_max)
        if errors[-1] < EXACT:
            return result(True, "exact to rounding")
        if before - math.sqrt(residual) <= tol * before:
            return result(True, f"error changed by less than {tol:g}")
    return result(False, f"stopped after {n_iter_max} sweeps")


def _swept(problem: Problem, arrays: Sequence[Array], left: Array, ridge: float) -> list[Array]:
    """One least-squares update of every free factor of arrays that leave `left`."""
    arrays = list(arrays)
    for (k,) in problem.groups:
        step = update(problem, arrays, k, left, ridge)
        left = left - problem.change(arrays, k, step)
        arrays[k] = arrays[k] + step
    return arrays


def balanced(problem: Problem, arrays: Sequence[Array]) -> list[Array]:
    """The same model with the norms of the free factors evened out.

    First along every rank name, slice by slice over all free terms that have it, then the norms of
    the whole factors of an addend. Slices that are zero somewhere stay as they are.
    """
    arrays = list(arrays)
    alone = {group[0] for group in problem.groups if len(group) == 1}
    for addend in problem.addends:
        members = [k for k in addend if k in alone]
        if not members:
            continue
        names = dict.fromkeys(n for k in members for n in problem.terms[k])
        for name in names:
            having = [k for k in members if name in problem.terms[k]]
            if name not in problem.output and len(having) > 1:
                _even(problem, arrays, having, name)
        _even(problem, arrays, members, None)
    return arrays


def _even(problem: Problem, arrays: list[Array], where: Sequence[int], name: str | None) -> None:
    """Scale the arrays at `where`, per index of `name`, to their geometric mean norm, in place."""
    xp = namespace(*arrays)
    logs = []
    for k in where:
        term, a = problem.terms[k], arrays[k]
        axes = tuple(i for i, n in enumerate(term) if n != name)
        square = xp.sum(a * a, axis=axes, keepdims=True)
        logs.append(xp.reshape(square, (-1,)))
    ok = logs[0] > 0
    for square in logs[1:]:
        ok = ok & (square > 0)
    logs = [0.5 * xp.log(xp.where(ok, square, xp.ones_like(square))) for square in logs]
    mean = sum(logs[1:], start=logs[0]) / len(logs)
    for k, log in zip(where, logs, strict=True):
        shape = tuple(problem.sizes[n] if n == name else 1 for n in problem.terms[k])
        arrays[k] = arrays[k] * xp.reshape(xp.exp(mean - log), shape)
