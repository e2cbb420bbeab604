"""Many deltas of one weight into one: rules, where they work, and the table of both."""

from tdecomp.collections.merging.cores import CommonCores as CommonCores
from tdecomp.collections.merging.cores import cores_of as cores_of
from tdecomp.collections.merging.rule import Combination as Combination
from tdecomp.collections.merging.rule import MergeRule as MergeRule
from tdecomp.collections.merging.rule import StackRule as StackRule
from tdecomp.collections.merging.site import Merged as Merged
from tdecomp.collections.merging.site import MergeSite as MergeSite
from tdecomp.collections.merging.table import MERGES as MERGES
from tdecomp.collections.merging.table import MergeMethod as MergeMethod
from tdecomp.collections.merging.table import merge_method as merge_method

__all__ = [
    "MERGES",
    "Combination",
    "CommonCores",
    "MergeMethod",
    "MergeRule",
    "MergeSite",
    "Merged",
    "StackRule",
    "cores_of",
    "merge_method",
]
