"""Tucker over observed or weighted entries: fill in from the model, iterate, accelerate."""

from __future__ import annotations

import math

from tdecomp._xp import Array, double, namespace, sum_of_squares
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.tucker.hooi import hooi
from tdecomp.decomposition.methods.tucker.hosvd import Bases, project
from tdecomp.progress import Progress, silent
from tdecomp.tensor import mode_product

__all__ = ["weighted_hooi"]


def weighted_hooi(
    x: Array,
    entries: Array,
    bases: Bases,
    n_iter_max: int,
    tol: float,
    progress: Progress = silent,
) -> tuple[Array, Bases, Trace]:
    """Minimise ``Σ entries (X − X̂)²`` over Tucker tensors, from given bases.

    Each sweep is one of `hooi` on the tensor with what is not observed taken from the model,
    ``X̂ + entries (X − X̂)``: whatever comes closer to that than ``X̂`` also lowers the weighted
    error ([tomasi2005]). The model is carried on along its last step while that pays (accelerated
    as gradient methods are, with a restart when the error would rise), so the error never rises.

    Parameters
    ----------
    x
        The tensor, anything finite where the weight is 0.
    entries
        Weights between 0 and 1, float64.
    bases
        Orthonormal bases to begin from.

    Returns
    -------
    core, bases, trace
        `core` belongs to the bases: it is not their projection of `x`.
    """
    xp = namespace(x)
    roots, wide = xp.sqrt(entries), double(x)
    bases = {k: double(u) for k, u in bases.items()}
    energy = sum_of_squares(roots * wide)
    core = project(wide, bases)
    model = _expanded(core, bases)
    before, residual = model, sum_of_squares(roots * (wide - model))
    errors: list[float] = []
    momentum = 1.0
    for sweep in range(n_iter_max):
        if energy == 0 or any(u.shape[1] == 0 for u in bases.values()):
            break
        step = (momentum - 1) / (momentum + 2)
        for ahead in (model + step * (model - before), model):
            goal = ahead + entries * (wide - ahead)
            swept, _ = hooi(goal, bases, 1, 0.0)
            swept_core = project(goal, swept)
            found = _expanded(swept_core, swept)
            left = sum_of_squares(roots * (wide - found))
            if left < residual:
                break
            momentum = 1.0
        if not left < residual:
            reason = "a sweep no longer lowers the error"
            return core, bases, Trace(tuple(errors), True, reason)
        last, residual = residual, left
        before, model, core, bases = model, found, swept_core, swept
        momentum += 1
        errors.append(math.sqrt(residual / energy))
        progress((sweep + 1) / n_iter_max)
        if math.sqrt(last) - math.sqrt(residual) <= tol * math.sqrt(last):
            reason = f"error changed by less than {tol:g}"
            return core, bases, Trace(tuple(errors), True, reason)
    return core, bases, Trace(tuple(errors), False, f"stopped after {n_iter_max} sweeps")


def _expanded(core: Array, bases: Bases) -> Array:
    for k, u in bases.items():
        core = mode_product(core, u, k)
    return core
