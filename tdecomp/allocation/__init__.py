"""Ranks before training: a budget of numbers shared out over the weights by what data say.

A rule is a row of `ALLOCATIONS`; it is given units, each of which gets one rank: a weight, or a
group of weights that share factors.
"""

from tdecomp.allocation.allocation_rule import AllocationRule as AllocationRule
from tdecomp.allocation.allocation_rule import RankBudget as RankBudget
from tdecomp.allocation.table import ALLOCATIONS as ALLOCATIONS
from tdecomp.allocation.table import allocation_of as allocation_of
from tdecomp.allocation.unit import RankUnit as RankUnit

__all__ = ["ALLOCATIONS", "AllocationRule", "RankBudget", "RankUnit", "allocation_of"]
