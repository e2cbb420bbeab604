"""Starts of any adapter from the gradients of its weights: bases only, one step, or taken off."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tdecomp.errors import ArgumentError
from tdecomp.starts.data_rule import Arrays, GroupData
from tdecomp.starts.fitting import FittedRow, fit_row
from tdecomp.starts.metric import fit_in_metric
from tdecomp.statistics import Gradient

__all__ = ["step", "times", "weights", "zero_core"]


def zero_core(data: GroupData) -> Arrays:
    """The adapter's own zero factor stays zero, all others are those of the fitted gradients.

    Every gradient has norm 1 in the fit, so that no layer outweighs the others, as an optimiser
    that divides by the size of gradients sees them. Every factor keeps the norm that it has in the
    adapter's own start, so that learning rates carry over.
    """
    norms = {name: float(np.linalg.norm(array)) for name, array in data.own_start.items()}
    zeros = [o.factor for o in data.bound.spec.terms[0].operands if not norms[o.factor]]
    if not zeros:
        raise ArgumentError(
            f"{data.bound.spec.name!r} has no factor that starts as zeros: take 'step' or 'offset'"
        )
    alike = [_normalised(gradient) for gradient in data.gradients]
    fit = _fitted(data, alike)
    found = {}
    for name, array in fit.factors.items():
        if name in data.settled:
            found[name] = data.settled[name]
        elif name in zeros:
            found[name] = np.zeros_like(array)
        else:
            found[name] = _spread(array, norms[name])
    return found


def step(data: GroupData) -> Arrays:
    """``ΔW = -η Ĝ``, the fitted gradients; η gives ΔW the entries that are asked for."""
    fit = _fitted(data, data.gradients)
    (n_out, n_in), n = data.bound.grid.shape, len(data.gradients)
    energy = sum(float(np.sum(data.bound.delta(fit.factors, k) ** 2)) for k in range(n))
    if energy == 0:
        raise ArgumentError(
            f"the gradients of {data.names[0]} and its group are zero: there is no step to start"
            " from"
        )
    eta = data.size / math.sqrt(energy / (n * n_out * n_in))
    return times(fit.factors, -eta, data.settled)


def weights(data: GroupData) -> Arrays:
    """The factors nearest to the weights themselves: PiSSA, for any adapter."""
    whole = [Gradient(batches=1, left=None, right=data.weight(k)) for k in range(len(data.names))]
    fit = fit_row(data.bound, whole, frozen=data.settled)
    return times(fit.factors, 1 / data.bound.scale(), data.settled)


def _fitted(data: GroupData, matrices: Sequence[Gradient]) -> FittedRow:
    """The adapter that is nearest to some matrices, in the metric that is asked for."""
    if not data.metric:
        return fit_row(data.bound, matrices, frozen=data.settled)
    moments = [own.second_moment() for own in data.inputs]
    return fit_in_metric(data.bound, matrices, moments, frozen=data.settled)


def times(factors: Mapping[str, np.ndarray], by: float, settled: Collection[str] = ()) -> Arrays:
    """The product times a number, evenly in all factors that are not settled."""
    free = [name for name in factors if name not in settled]
    if not free:
        return dict(factors)
    share = abs(by) ** (1 / len(free))
    found = {n: a if n in settled else a * share for n, a in factors.items()}
    found[free[0]] = np.copysign(1, by) * found[free[0]]
    return found


def _normalised(gradient: Gradient) -> Gradient:
    norm = gradient.norm() or 1.0
    if gradient.left is None:
        return Gradient(batches=gradient.batches, left=None, right=gradient.right / norm)
    return Gradient(batches=gradient.batches, left=gradient.left / norm, right=gradient.right)


def _spread(array: np.ndarray, norm: float) -> np.ndarray:
    """A factor scaled to a norm, in its place: those of many weights are large."""
    now = float(np.linalg.norm(array))
    array *= norm / now if now else 1.0
    return array
