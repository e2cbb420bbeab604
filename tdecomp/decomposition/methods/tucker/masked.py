"""Tucker over observed or weighted entries: fill in from the model, iterate, accelerate."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    task = _Task(double(x), entries, namespace(x).sqrt(entries))
    bases = {k: double(u) for k, u in bases.items()}
    energy = task.lost_by(0.0)
    here = task.at(project(task.x, bases), bases)
    empty = energy == 0 or any(u.shape[1] == 0 for u in bases.values())
    before, momentum, errors, settled = here, 1.0, [], ""
    for sweep in range(0 if empty else n_iter_max):
        found = task.swept(here.model + _step(momentum) * (here.model - before.model), here.bases)
        if not found.lost < here.lost:
            found, momentum = task.swept(here.model, here.bases), 1.0
        if not found.lost < here.lost:
            settled = "a sweep no longer lowers the error"
            break
        before, here = here, found
        momentum += 1
        errors.append(math.sqrt(here.lost / energy))
        progress((sweep + 1) / n_iter_max)
        if math.sqrt(before.lost) - math.sqrt(here.lost) <= tol * math.sqrt(before.lost):
            settled = f"error changed by less than {tol:g}"
            break
    reason = settled or f"stopped after {n_iter_max} sweeps"
    return here.core, here.bases, Trace(tuple(errors), bool(settled), reason)


@dataclass(frozen=True)
class _Point:
    """A Tucker tensor, dense as `model`, and the weighted squared error that it leaves."""

    core: Array
    bases: Bases
    model: Array
    lost: float


@dataclass(frozen=True)
class _Task:
    """A tensor in float64, the weights of its entries, and their square roots."""

    x: Array
    entries: Array
    roots: Array

    def lost_by(self, model: Array | float) -> float:
        """Weighted squared error."""
        return sum_of_squares(self.roots * (self.x - model))

    def at(self, core: Array, bases: Bases) -> _Point:
        """The point of a core and bases."""
        model = core
        for k, u in bases.items():
            model = mode_product(model, u, k)
        return _Point(core, bases, model, self.lost_by(model))

    def swept(self, ahead: Array, bases: Bases) -> _Point:
        """One sweep from bases, with what is not observed taken from a model."""
        goal = ahead + self.entries * (self.x - ahead)
        bases, _ = hooi(goal, bases, 1, 0.0)
        return self.at(project(goal, bases), bases)


def _step(momentum: float) -> float:
    """How far the model is carried on along its last step."""
    return (momentum - 1) / (momentum + 2)
