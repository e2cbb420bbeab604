"""What a rule of ranks is, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdecomp.allocation.unit import RankUnit
from tdecomp.errors import ArgumentError

__all__ = ["AllocationRule", "RankBudget"]


@dataclass(frozen=True, kw_only=True)
class RankBudget:
    """What the ranks may cost, and how large they may be.

    Attributes
    ----------
    numbers
        Trained numbers in all.
    rank_max
        The largest rank.
    kinds
        Kinds of modules that are chosen, for rules that choose some; None: half of them.
    """

    numbers: int
    rank_max: int
    kinds: int | None = None


@dataclass(frozen=True, kw_only=True)
class AllocationRule:
    """One way to share out a budget.

    Attributes
    ----------
    says
        One sentence.
    source
        Where it is published.
    make
        A rank for every unit, 0 for those that get none.
    needs
        What it is made of: ``"gradients"``, ``"inputs"``, ``"weights"``.
    whole
        Whether it needs gradients whole, not sketched.
    alone
        Whether it is only for weights with factors of their own.
    spread
        The largest rank unless one is given, in ranks that all would have alike.
    """

    says: str
    source: str
    make: Callable[[Sequence[RankUnit], RankBudget], list[int]]
    needs: frozenset[str] = frozenset()
    whole: bool = False
    alone: bool = True
    spread: float = 4.0

    def rank_max(self, units: Sequence[RankUnit], numbers: int) -> int:
        """The largest rank unless one is given."""
        side = max(unit.side for unit in units)
        alike = numbers / sum(unit.cost(1) for unit in units)
        return (
            side if self.spread == math.inf else min(side, max(1, math.ceil(self.spread * alike)))
        )

    def check(self, name: str, units: Sequence[RankUnit]) -> None:
        """Refuse weights that this is not for.

        Raises
        ------
        ArgumentError
            Some share factors, and the rule knows single weights.
        """
        shared = next((unit for unit in units if not unit.alone), None)
        if self.alone and shared is not None:
            raise ArgumentError(
                f"the ranks {name!r} are for adapters with factors of every weight, and"
                f" {shared.spec.name!r} shares its own over {shared.grid.name}: take 'energy' or"
                " 'uniform', or share=() for groups of one weight"
            )
