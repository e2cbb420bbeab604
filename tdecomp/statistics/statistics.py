"""Statistics of all weights of a model that were looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tdecomp._brief import brief, brief_count
from tdecomp.errors import ArgumentError
from tdecomp.statistics.gradient import Gradient
from tdecomp.statistics.inputs import InputStatistics

__all__ = ["SiteStatistics", "Statistics"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SiteStatistics:
    """Of one weight.

    Attributes
    ----------
    shape
        (out, in).
    input
        Key of its inputs in `Statistics.inputs`; weights that read the same tensor share one.
    weight
        Digest of the weight that it was seen with; empty where that could not be read.
    gradient
        Of the loss by the weight; None where it was not looked at.
    outputs
        Sum over tokens of ``δ δᵀ`` with the gradient δ by an output token, ``(out, out)``.
    tokens
        Number of output tokens that `outputs` is a sum over.
    fisher
        Mean over batches of the squared gradient by the weight, entry by entry, ``(out, in)``.
    """

    shape: tuple[int, int]
    input: str = ""
    weight: str = ""
    gradient: Gradient | None = None
    outputs: np.ndarray | None = None
    tokens: int = 0
    fisher: tuple[int, np.ndarray] | None = None

    def __repr__(self) -> str:
        said = [repr(self.gradient)] if self.gradient else []
        said += ["output gradients"] if self.outputs is not None else []
        said += ["Fisher diagonal"] if self.fisher is not None else []
        return brief(type(self), f"{self.shape[0]}×{self.shape[1]}", *said)

    def __add__(self, other: SiteStatistics) -> SiteStatistics:
        if (self.shape, self.input) != (other.shape, other.input):
            raise ArgumentError("they are of another shape, or share their inputs differently")
        if self.weight and other.weight and self.weight != other.weight:
            raise ArgumentError("they were captured with another weight")
        return SiteStatistics(
            shape=self.shape,
            input=self.input,
            weight=self.weight or other.weight,
            gradient=_both(self.gradient, other.gradient, Gradient.__add__, "gradients"),
            outputs=_both(self.outputs, other.outputs, np.add, "output gradients"),
            tokens=self.tokens + other.tokens,
            fisher=_both(self.fisher, other.fisher, _mean, "a Fisher diagonal"),
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Statistics:
    """What was seen of a model.

    Attributes
    ----------
    sites
        By name of the weight: ``model.layers.0.self_attn.q_proj.weight``.
    inputs
        Moments of inputs; empty where none were looked at.
    losses
        The loss of every batch, in order.
    model
        What the model calls itself: its class, or the path it was loaded from.
    """

    sites: Mapping[str, SiteStatistics]
    inputs: Mapping[str, InputStatistics] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    model: str = ""

    def __repr__(self) -> str:
        return brief(
            type(self),
            self.model,
            brief_count(len(self.sites), "weight"),
            f"{len(self.losses)} batches" if self.losses else "",
            brief_count(len(self.inputs), "input") if self.inputs else "",
        )

    def inputs_of(self, name: str) -> InputStatistics:
        """Moments of what a weight multiplies.

        Raises
        ------
        ArgumentError
            There are none of it.
        """
        site = self.of(name)
        if site.input not in self.inputs:
            raise ArgumentError(f"the statistics hold no inputs of {name}: capture them")
        return self.inputs[site.input]

    def gradient_of(self, name: str) -> Gradient:
        """Gradient by a weight.

        Raises
        ------
        ArgumentError
            There is none of it.
        """
        found = self.of(name).gradient
        if found is None:
            raise ArgumentError(f"the statistics hold no gradient of {name}: capture it")
        return found

    def of(self, name: str) -> SiteStatistics:
        """Statistics of a weight, by name."""
        if name not in self.sites:
            known = ", ".join(list(self.sites)[:3])
            raise ArgumentError(
                f"the statistics do not know the weight {name}: they are of {known}"
            )
        return self.sites[name]

    def __add__(self, other: Statistics) -> Statistics:
        """Of the batches of both.

        Raises
        ------
        ArgumentError
            They are of other weights, or hold other things; the first weight is named.
        """
        if different := sorted(self.sites.keys() ^ other.sites.keys()):
            raise ArgumentError(f"the statistics cannot be added: one does not know {different[0]}")
        sites = {}
        for name, site in self.sites.items():
            try:
                sites[name] = site + other.sites[name]
            except ArgumentError as error:
                raise ArgumentError(f"the statistics of {name} cannot be added: {error}") from None
        if self.inputs.keys() != other.inputs.keys():
            raise ArgumentError("the statistics cannot be added: one holds no inputs, or others")
        return Statistics(
            sites=sites,
            inputs={key: own + other.inputs[key] for key, own in self.inputs.items()},
            losses=(*self.losses, *other.losses),
            model=self.model if self.model == other.model else "",
        )


def _both(a: T | None, b: T | None, add: Callable[[T, T], T], what: str) -> T | None:
    if (a is None) != (b is None):
        raise ArgumentError(f"only one of them holds {what}")
    return None if a is None or b is None else add(a, b)


def _mean(a: tuple[int, np.ndarray], b: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    n = a[0] + b[0]
    return n, (a[0] * a[1] + b[0] * b[1]) / n
