"""What can be changed on an adapter after it was attached, in one place for all its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tdecomp_torch.forward.tasks import Examples

__all__ = ["Switches"]


@dataclass(kw_only=True)
class Switches:
    """What the pool and all layers of an adapter look at.

    Attributes
    ----------
    active
        Whether the adapter acts.
    merged
        Whether it is in the weights, so that layers add nothing.
    folded
        Whether the start was subtracted from the weights.
    coefficients
        Of every group and term, at the present step.
    scales
        The same as tensors without axes, for programs that are compiled once for all steps.
    task
        Number of the task that acts; of an adapter without tasks 0.
    examples
        Tasks by example, where a batch has several; `task` does not count then.
    dropout, shared_dropout
        Probability; one mask for all sites that read the same input, or one per site.
    rank_dropout
        Probability that a rank of the first edge behind the tokens is left out.
    """

    active: bool = True
    merged: bool = False
    folded: bool = False
    coefficients: list[list[float]] = field(default_factory=list)
    scales: list[list[Tensor]] = field(default_factory=list)
    task: int = 0
    examples: Examples | None = None
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0

    def scale_by(self, coefficients: list[list[float]]) -> None:
        """Set the coefficients; the tensors stay the same ones."""
        self.coefficients = coefficients
        if not self.scales:
            self.scales = [[torch.tensor(x).double() for x in own] for own in coefficients]
        for tensors, own in zip(self.scales, coefficients, strict=True):
            for tensor, number in zip(tensors, own, strict=True):
                tensor.fill_(number)

    @property
    def acts(self) -> bool:
        """Whether layers have something to add."""
        return self.active and not self.merged
