"""What can be changed on an adapter after it was attached, in one place for all its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["State"]


@dataclass
class State:
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
    dropout, shared_dropout
        Probability; one mask for all sites that read the same input, or one per site.
    rank_dropout
        Probability that a rank of the first edge behind the tokens is left out.
    """

    active: bool = True
    merged: bool = False
    folded: bool = False
    coefficients: list[list[float]] = field(default_factory=list)
    dropout: float = 0.0
    shared_dropout: bool = False
    rank_dropout: float = 0.0

    @property
    def acts(self) -> bool:
        """Whether layers have something to add."""
        return self.active and not self.merged
