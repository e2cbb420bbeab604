"""Alternating least squares for a tensor train: one core after another, the error never rises."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdecomp._xp import Array, adjoint, floor, sum_of_squares
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.train.sweeps import reshape, right_orthonormal
from tdecomp.linalg import orthonormal
from tdecomp.progress import Progress, silent

__all__ = ["tt_als"]


def tt_als(
    x: Array,
    cores: Sequence[Array],
    n_iter_max: int,
    tol: float,
    progress: Progress = silent,
    energy: float | None = None,
) -> tuple[list[Array], Trace]:
    """Improve a train of given bonds for a dense tensor ``(n_1, ..., n_d)``.

    With orthonormal cores on both sides, the best core between them is the projection of the tensor
    on those sides ([holtz2012], one-site). A sweep goes from left to right; what is projected from
    the left is kept, so that it costs about two skinny products with `x`.

    Parameters
    ----------
    energy
        Squared norm of the tensor that `x` is a part of; that of `x` by default.

    Returns
    -------
    cores, trace
        Left-orthonormal but the last. `trace.errors` are ``√(1 − captured / ‖X‖²)``.
    """
    energy = sum_of_squares(x) if energy is None else energy
    if n_iter_max == 0 or energy == 0 or len(cores) < 3:
        return list(cores), Trace()
    cores, errors, before = list(cores), [], 0.0
    for sweep in range(n_iter_max):
        cores = _left_to_right(x, right_orthonormal(cores))
        captured = sum_of_squares(cores[-1])
        errors.append(math.sqrt(max(0.0, 1 - captured / energy)))
        progress((sweep + 1) / n_iter_max)
        won, before = captured - before, captured
        seen = won > floor(x.dtype) * energy  # else rounding would decide
        if len(errors) > 1 and (not seen or errors[-2] - errors[-1] <= tol * errors[-2]):
            return cores, Trace(tuple(errors), True, f"error changed by less than {tol:g}")
    return cores, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def _left_to_right(x: Array, cores: list[Array]) -> list[Array]:
    """One pass over a right-orthonormal train."""
    done, rest = [], reshape(x, (1, -1))  # (r, n_k ... n_d), projected on the cores before
    for k, core in enumerate(cores):
        r, n, s = core.shape
        best = rest
        for after in reversed(cores[k + 1 :]):
            t, m, u = after.shape
            best = reshape(best, (-1, m * u)) @ adjoint(reshape(after, (t, m * u)))
        best = reshape(best, (r * n, s))
        if k == len(cores) - 1:
            return [*done, reshape(best, (r, n, s))]
        q = orthonormal(best)
        done.append(reshape(q, (r, n, q.shape[1])))
        rest = adjoint(q) @ reshape(rest, (r * n, -1))
    return done
