"""Levenberg-Marquardt on any network: all factors at once, tied ones too."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce

from tdecomp._xp import Array, double, namespace
from tdecomp.decomposition.methods.network.problem import (
    Block,
    Problem,
    conjugate_gradients,
    dot,
    einsum,
)
from tdecomp.decomposition.methods.network.sweeps import EXACT, Result, balanced
from tdecomp.progress import Progress, silent

__all__ = ["is_affordable", "is_small", "levenberg_marquardt"]

_UNKNOWNS = 1500  # up to which the Jacobian may be formed,
_NUMBERS = 20_000_000  # and this many numbers in it
_STEPS = 60  # of conjugate gradients per step otherwise
_DATA = 1 << 18  # numbers in the data beyond which only sweeps are run, if not small
_LEAST, _FIRST = 1e-13, 1e-3  # damping, relative to the largest diagonal entry
_STALLED = 5  # steps in a row that change the error by less than the tolerance
_LONGEST = 1e3  # step relative to the largest entry of the factors; beyond, squares may overflow
_REFUSED = 15  # dampings in a row that do not lower the error

Solve = Callable[[float], Array]


def is_affordable(problem: Problem) -> bool:
    """Whether steps take no longer than some tens of sweeps."""
    return is_small(problem) or math.prod(problem.x.shape) <= _DATA


def is_small(problem: Problem) -> bool:
    """Whether the Jacobian may be formed, so that steps are cheap."""
    unknowns = sum(math.prod(problem.shape(group[0])) for group in problem.groups)
    return unknowns <= _UNKNOWNS and unknowns * math.prod(problem.x.shape) <= _NUMBERS


def levenberg_marquardt(
    problem: Problem, start: Result, *, n_iter_max: int, tol: float, progress: Progress = silent
) -> Result:
    """Lower ``‖X − X̂‖²`` by damped Gauss-Newton steps in all free factors together.

    The step solves ``(JᵀJ + μ) step = Jᵀ(X − X̂)``, directly where the Jacobian ``J`` is small, else
    by conjugate gradients with the normal equations of the single factors as preconditioner. The
    damping ``μ`` follows the ratio of the error's true fall to the predicted one, and takes care of
    the directions that change the factors but not their product. Quadratic on exact data.

    Parameters
    ----------
    problem, start
        What to fit and where to begin.
    n_iter_max, tol
        Steps at most; relative change of the error at which to stop, five times in a row.
    progress
        Called with the fraction of the steps done.

    Returns
    -------
    Result
        A step is taken only if the residual falls.
    """
    now, errors, damping = start, [], _FIRST
    small = 0

    def result(converged: bool, reason: str) -> Result:
        return Result(now.arrays, now.residual, tuple(errors), converged, reason)

    for number in range(n_iter_max):
        arrays = balanced(problem, now.arrays)
        left = problem.remainder(arrays)
        gradient = _pulled(problem, arrays, left)
        solve, largest = _system(problem, arrays, gradient)
        longest = max(_largest(arrays[k]) for k in problem.free) or 1.0
        for _ in range(_REFUSED):
            shift = max(damping, _LEAST) * largest
            step = solve(shift)
            if _largest(step) < _LONGEST * longest:
                there = Result.at(problem, _moved(problem, arrays, step))
                if there.residual < now.residual:
                    break
            damping = 4 * max(damping, _LEAST)
        else:
            return result(True, "no step lowers the error")
        fall = now.residual - there.residual
        expected = shift * dot(step, step) + dot(step, gradient)
        ratio = fall / expected if expected > 0 else 1.0
        damping *= 0.1 if ratio > 0.75 else 1.0 if ratio > 0.25 else 3.0
        small = small + 1 if fall <= 2 * tol * now.residual else 0
        now = there
        errors.append(now.error(problem))
        progress((number + 1) / n_iter_max)
        if errors[-1] < EXACT:
            return result(True, "exact to rounding")
        if small == _STALLED:
            return result(True, f"error changed by less than {tol:g}")
    return result(False, f"stopped after {n_iter_max} steps")


def _system(problem: Problem, arrays: list[Array], gradient: Array) -> tuple[Solve, float]:
    """A function from the damping to the step, and the scale of the damping."""
    if is_small(problem):
        return _dense_system(problem, arrays, gradient)
    return _iterated_system(problem, arrays, gradient)


def _dense_system(problem: Problem, arrays: list[Array], gradient: Array) -> tuple[Solve, float]:
    xp = namespace(gradient)
    jacobian = xp.concat([_columns(problem, arrays, g) for g in problem.groups], axis=1)
    normal = jacobian.T @ jacobian
    identity = xp.eye(normal.shape[0], dtype=normal.dtype, device=normal.device)
    largest = float(xp.max(xp.sum(normal * identity, axis=1))) or 1.0

    def solve(shift: float) -> Array:
        return xp.linalg.solve(normal + shift * identity, gradient[:, None])[:, 0]

    return solve, largest


def _iterated_system(problem: Problem, arrays: list[Array], gradient: Array) -> tuple[Solve, float]:
    blocks = [Block.of(problem, arrays, group[0]) for group in problem.groups]
    largest = max(float(namespace(gradient).max(block.scale)) for block in blocks)
    size = math.sqrt(dot(gradient, gradient))

    def solve(shift: float) -> Array:
        def apply(v: Array) -> Array:
            steps = zip(problem.groups, _unpacked(problem, v), strict=True)
            changes = (problem.change(arrays, k, step) for group, step in steps for k in group)
            return _pulled(problem, arrays, reduce(operator.add, changes)) + shift * v

        def precondition(v: Array) -> Array:
            steps = _unpacked(problem, v)
            return _packed(
                [
                    block.solve(step, shift) if len(group) == 1 else step / largest
                    for group, block, step in zip(problem.groups, blocks, steps, strict=True)
                ]
            )

        accuracy = min(0.03, size / (largest * math.sqrt(problem.energy)))
        return conjugate_gradients(apply, gradient, _STEPS, accuracy, precondition)

    return solve, largest


def _columns(problem: Problem, arrays: Sequence[Array], group: Sequence[int]) -> Array:
    """Jacobian by one array, ``(entries of x, entries of the array)``: summed where it is tied."""
    xp, twins = namespace(*arrays), problem.twins

    def columns(k: int) -> Array:
        others = [j for j in problem.addend_of(k) if j != k]
        own = [n for n in problem.terms[k] if n in problem.output]
        tagged = tuple(twins[n] if n in own else n for n in problem.terms[k])
        like = arrays[k]
        eyes = [xp.eye(problem.sizes[n], dtype=xp.float64, device=like.device) for n in own]
        terms = (*(problem.terms[j] for j in others), *((n, twins[n]) for n in own))
        wide = [double(arrays[j]) for j in others]
        found = einsum(terms, (*problem.output, *tagged), [*wide, *eyes])
        return xp.reshape(found, (math.prod(problem.x.shape), -1))

    return reduce(operator.add, map(columns, group))


def _pulled(problem: Problem, arrays: Sequence[Array], left: Array) -> Array:
    """``Jᵀ left``, one vector over all free arrays."""

    def pulled(k: int) -> Array:
        return problem.pull(arrays, k, left)

    return _packed([reduce(operator.add, map(pulled, group)) for group in problem.groups])


def _packed(arrays: Sequence[Array]) -> Array:
    xp = namespace(*arrays)
    return xp.concat([xp.reshape(a, (-1,)) for a in arrays])


def _unpacked(problem: Problem, vector: Array) -> list[Array]:
    found, at = [], 0
    for group in problem.groups:
        shape = problem.shape(group[0])
        n = math.prod(shape)
        found.append(namespace(vector).reshape(vector[at : at + n], shape))
        at += n
    return found


def _moved(problem: Problem, arrays: Sequence[Array], step: Array) -> list[Array]:
    moved = list(arrays)
    for group, part in zip(problem.groups, _unpacked(problem, step), strict=True):
        for k in group:
            moved[k] = arrays[k] + part
    return moved


def _largest(a: Array) -> float:
    return float(namespace(a).max(namespace(a).abs(a)))
