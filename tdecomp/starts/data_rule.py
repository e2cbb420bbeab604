"""What a start rule is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from tdecomp.adapters import Bound, Spec
from tdecomp.adapters.bases import PLAIN
from tdecomp.adapters.bound import WeightOf
from tdecomp.errors import ArgumentError
from tdecomp.starts.fitting import check_can_be_fitted, is_pair
from tdecomp.statistics import Gradient, InputStatistics

__all__ = ["Arrays", "GroupData", "DataRule"]

Arrays = dict[str, np.ndarray]
"""Factors by name, float64."""

RowKind = Literal["any", "pairs", "cores"]
"""Adapters that a rule is for: all that can be fitted, LoRA's two factors for every weight, or a
core between two factors for every weight."""

_PLACES: Mapping[RowKind, tuple[tuple[str, ...], ...]] = {
    "pairs": (("site", "out", "#"), ("site", "#", "in")),
    "cores": (("site", "out", "#"), ("site", "#", "#"), ("site", "#", "in")),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupData:
    """What a rule makes factors of: one group of weights and what is known of each.

    Attributes
    ----------
    bound
        The adapter on the weights, without a residual base.
    names
        Of the weights, in the order of the grid.
    gradients
        Mean gradient by every weight; empty for a rule that needs none.
    inputs
        Moments of what every weight multiplies; empty for a rule that needs none.
    weights
        Base weight ``(out, in)`` by number; read only by rules that say so.
    settled
        Factors that other groups have decided, which this one shares.
    metric
        Whether gradients are fitted in the metric of the inputs.
    size
        Root mean square entry of ΔW at the start, where the rule leaves it open.
    gamma
        Constant of the rules that have one; None: as in the paper.
    seed
        Of what is random.
    """

    bound: Bound
    names: Sequence[str]
    gradients: Sequence[Gradient] = ()
    inputs: Sequence[InputStatistics] = ()
    weights: WeightOf | None = None
    settled: Mapping[str, np.ndarray] = field(default_factory=dict)
    metric: bool = False
    size: float = 1e-3
    gamma: float | None = None
    seed: int = 0

    @cached_property
    def rank(self) -> int:
        """The rank of an adapter that has one."""
        return max(self.bound.ranks.values())

    @property
    def own_start(self) -> Arrays:
        """The factors as the adapter itself starts."""
        return self.bound.start(self.weights, seed=self.seed)

    def weight(self, k: int) -> np.ndarray:
        """Base weight number k, ``(out, in)``, float64."""
        if self.weights is None:
            raise ArgumentError(f"this start reads the weight {self.names[k]}: give weights=")
        return np.asarray(self.weights(k), dtype=np.float64)

    def on(self, side: str) -> str:
        """Name of the factor that has the axis ``out`` or ``in``."""
        operands = self.bound.spec.terms[0].operands
        return next(o.factor for o in operands if side in o.letters)


@dataclass(frozen=True, kw_only=True)
class DataRule:
    """One way to start an adapter from data.

    Attributes
    ----------
    says
        One sentence.
    source
        Where it is published, with the equation.
    make
        The factors of one group of weights.
    needs
        What it is made of: ``"gradients"``, ``"inputs"``, ``"weights"``.
    whole
        Whether it needs gradients whole, not sketched.
    fitted
        Whether gradients are fitted, which can be in the metric of the inputs.
    ranks
        Singular vectors of a gradient that it uses, in ranks of the adapter.
    rows
        Adapters that it is for.
    residual
        Whether what the factors give is taken off the weight again, so that nothing changes.
    zero
        Whether ΔW is zero.
    """

    says: str
    source: str
    make: Callable[[GroupData], Arrays]
    needs: frozenset[str]
    whole: bool = False
    fitted: bool = False
    ranks: int = 1
    rows: RowKind = "any"
    residual: bool = False
    zero: bool = False

    def rank_seen(self, spec: Spec, rank: int, *, metric: bool) -> int:
        """Rank of the gradients that it is made of, for an adapter of some rank.

        Two factors for every weight take no more of its gradient than their own rank.
        """
        alone = self.fitted and not metric and is_pair(spec)
        return rank if alone else self.ranks * rank

    def check(self, name: str, spec: Spec) -> None:
        """Refuse an adapter that this is not for.

        Raises
        ------
        ArgumentError
            Says which it is for.
        """
        check_can_be_fitted(spec)
        if spec.base != PLAIN:
            raise ArgumentError(
                f"{spec.name!r} has a start of its own, made of the weights, which is taken off"
                f" again: the start {name!r} cannot take its place"
            )
        if self.rows != "any" and _places(spec) != _PLACES[self.rows]:
            kind = "'lora' and its kin" if self.rows == "pairs" else "'lora_xs' and its kin"
            raise ArgumentError(
                f"the start {name!r} is for {kind}, and {spec.name!r} is another equation: take"
                " 'zero', 'step' or 'offset', which are for all"
            )

    def adapted(self, spec: Spec) -> Spec:
        """The adapter with the base rule that this start asks for."""
        return replace(spec, base="residual") if self.residual else spec


def _places(spec: Spec) -> tuple[tuple[str, ...], ...]:
    """Letters of every operand, ranks as ``#``."""
    fixed = ("site", "out", "in")
    return tuple(tuple(n if n in fixed else "#" for n in o.letters) for o in spec.terms[0].operands)
