"""Starts of adapters from data: rules that make factors of gradients, of inputs, or of changes.

A rule is a row of `RULES`; `fit_row` is what most of them come down to: the factors of an adapter
that are closest to given matrices.
"""

from tdecomp.starts.data_rule import DataRule as DataRule
from tdecomp.starts.data_rule import GroupData as GroupData
from tdecomp.starts.fitting import FittedRow as FittedRow
from tdecomp.starts.fitting import fit_row as fit_row
from tdecomp.starts.from_tensors import rank_for as rank_for
from tdecomp.starts.from_tensors import row_of as row_of
from tdecomp.starts.table import RULES as RULES
from tdecomp.starts.table import rule_of as rule_of

__all__ = [
    "RULES",
    "FittedRow",
    "GroupData",
    "DataRule",
    "fit_row",
    "rank_for",
    "row_of",
    "rule_of",
]
