"""What follows the number of steps: scales, columns that are frozen, labels that are in use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdecomp.adapters import Bound, Factor
from tdecomp.errors import ArgumentError
from tdecomp_torch.forward.pool import FactorPool, Member
from tdecomp_torch.training.clusters import RunningMean, join_closest

__all__ = ["Schedule"]


class Schedule:
    """Keeps a pool at the step that training is at.

    Attributes
    ----------
    pool
        Its scales, frozen columns and labels follow the step.
    at_step
        How many steps were trained.
    """

    def __init__(self, pool: FactorPool):
        self.pool, self.at_step = pool, 0.0
        self._means: dict[str, RunningMean] = {}
        self.move_to(0)

    def move_to(self, step: float) -> None:
        """Bring scales, frozen columns and labels to a step; called after every step.

        Raises
        ------
        ArgumentError
            `step` is not a number.
        """
        if not isinstance(step, int | float):
            raise ArgumentError(f"step={step!r} must be a number")
        self.at_step = float(step)
        members = self.pool.members
        with torch.inference_mode(False), torch.no_grad():
            self.pool.state.scale_by([_coefficients(member.bound, step) for member in members])
            for member in members:
                for factor in member.bound.factors:
                    self._freeze(member, factor, step)
                    self._cluster(member, factor, step)

    def _freeze(self, member: Member, factor: Factor, step: float) -> None:
        """Stop the gradient of the columns of a factor that are frozen at a step."""
        if factor.freeze is None:
            return
        share = float(factor.freeze({**member.bound.numbers, "step": step}))
        n = member.bound.shapes[factor.name][-1]
        frozen = torch.arange(n) < round(min(max(share, 0.0), 1.0) * n)  # (column,)
        # in place, so that a compiled program need not be compiled again
        self.pool.frozen.setdefault(member.keys[factor.name], frozen).copy_(frozen)

    def _cluster(self, member: Member, assign: Factor, step: float) -> None:
        """Merge the closest labels of a constant until at most ``clusters(step)`` remain.

        Labels are compared by the mean of their factors over the steps so far.
        """
        if assign.clusters is None:
            return
        numbers = {**member.bound.numbers, "step": step}
        wanted = assign.clusters.size(numbers, f"clusters of {assign.name}")
        apart, label = assign.modes[:-2], assign.modes[-1]
        laid: list[tuple[list[str], Tensor | None]] = []
        for factor in member.bound.factors:
            if factor.trainable and label in factor.modes:
                running = self._mean(member.keys[factor.name], counts=step > 0)
                lead = [n for n in (*apart, label) if n in factor.modes]
                laid.append((lead, running.laid([factor.modes.index(n) for n in lead])))
        if any(mean is None for _, mean in laid):
            return
        array = getattr(self.pool, member.keys[assign.name])  # (*apart, row, label)
        for cell in np.ndindex(*array.shape[: len(apart)]):
            at = dict(zip(apart, cell, strict=True))
            features = []
            for lead, mean in laid:
                assert mean is not None
                features.append(mean[tuple(at[n] for n in lead[:-1])])  # (label, n)
            join_closest(array[cell], torch.cat(features, dim=1), wanted)

    def _mean(self, key: str, *, counts: bool) -> RunningMean:
        """The mean of a factor; with `counts` it takes in what the factor is now."""
        mean = self._means.setdefault(key, RunningMean())
        if counts:
            mean.add(getattr(self.pool, key))
        return mean


def _coefficients(bound: Bound, step: float) -> list[float]:
    """What every term is multiplied by at a step."""
    return [bound.coefficient(term, step) for term in bound.spec.terms]
