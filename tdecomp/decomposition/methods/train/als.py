"""Alternating least squares for a tensor train: one core after another, the error never rises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tdecomp._threads import threads_by_size
from tdecomp._xp import Array, adjoint, floor, sum_of_squares
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.train.sweeps import reshape, right_orthonormal
from tdecomp.linalg import orthonormal
from tdecomp.progress import Progress, silent

__all__ = ["Swept", "tt_als"]

Swept = tuple[list[Array], Trace]
"""Cores ``(r, n, s)``, and how the sweeps went."""


@threads_by_size
def tt_als(
    x: Array,
    cores: Sequence[Array],
    n_iter_max: int,
    tol: float,
    progress: Progress = silent,
    energy: float | None = None,
) -> Swept:
    """Improve a train of given bonds for a dense tensor ``(n_1, ..., n_d)``.

    With orthonormal cores on both sides, the best core between them is the projection of the tensor
    on those sides ([holtz2012], one-site). A sweep goes from left to right. The chain is halved
    again and again: a half is improved on the tensor projected on the other one, so that a sweep
    costs about two products with `x`, whatever the number of modes.

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
        cores = _improved(reshape(x, (1, -1)), right_orthonormal(cores), is_last=True)
        captured = sum_of_squares(cores[-1])
        errors.append(math.sqrt(max(0.0, 1 - captured / energy)))
        progress((sweep + 1) / n_iter_max)
        won, before = captured - before, captured
        seen = won > floor(x.dtype) * energy  # else rounding would decide
        if len(errors) > 1 and (not seen or errors[-2] - errors[-1] <= tol * errors[-2]):
            reason = f"error changed by less than {tol:g}"
            return cores, Trace(tuple(errors), True, reason)
    return cores, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def _improved(block: Array, cores: Sequence[Array], *, is_last: bool) -> list[Array]:
    """Best cores, one after the other, for a block ``(r, n_1 ... n_k s)`` between two bonds.

    Parameters
    ----------
    block
        The tensor projected on all cores before, those new, and after these.
    cores
        Right-orthonormal, of the bonds ``r`` to ``s``.
    is_last
        Whether the last core is that of the chain and carries the norm.
    """
    r, s = block.shape[0], cores[-1].shape[2]
    if len(cores) == 1:
        best = reshape(block, (-1, s))  # (r n, s)
        best = best if is_last else orthonormal(best)
        return [reshape(best, (r, cores[0].shape[1], best.shape[1]))]
    half = _middle([core.shape[1] for core in cores])
    left, right = cores[:half], cores[half:]
    rows = r * math.prod(core.shape[1] for core in left)
    block = reshape(block, (rows, -1))
    after = reshape(_joined(right), (right[0].shape[0], -1))  # (q, n ... s)
    done = _improved(reshape(block @ adjoint(after), (r, -1)), left, is_last=False)
    before = reshape(_joined(done), (rows, -1))  # (r n ..., q)
    return [*done, *_improved(adjoint(before) @ block, right, is_last=is_last)]


def _joined(cores: Sequence[Array]) -> Array:
    """The product of neighbouring cores, ``(r n ..., s)``."""
    found = cores[0]
    for core in cores[1:]:
        found = reshape(found, (-1, core.shape[0])) @ reshape(core, (core.shape[0], -1))
        found = reshape(found, (-1, core.shape[2]))
    return reshape(found, (-1, cores[-1].shape[2]))


def _middle(sizes: Sequence[int]) -> int:
    """Where a chain falls into two parts of nearly the same size, as products."""
    logs = np.cumsum(np.log(np.asarray(sizes, dtype=np.float64)))
    return 1 + int(np.argmin(np.abs(2 * logs[:-1] - logs[-1])))
