"""Sites of a model by name, groups of them on a grid of site modes, and lazy stacks."""

from tdecomp.stack.families import FAMILIES, Family, Rule
from tdecomp.stack.find import find_sites
from tdecomp.stack.groups import Group, group_sites
from tdecomp.stack.names import canonical, canonical_names, is_adapter
from tdecomp.stack.select import Targets, parse_layers, parse_targets
from tdecomp.stack.selection import Selection
from tdecomp.stack.sites import Index, Site, Survey
from tdecomp.stack.stack import Recipe, Stack

__all__ = [
    "FAMILIES",
    "Family",
    "Group",
    "Index",
    "Recipe",
    "Rule",
    "Selection",
    "Site",
    "Stack",
    "Survey",
    "Targets",
    "canonical",
    "canonical_names",
    "find_sites",
    "group_sites",
    "is_adapter",
    "parse_layers",
    "parse_targets",
]
