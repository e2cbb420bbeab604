"""One word for one thing: no class or public constant has the name of another in the tree."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests import imports

KNOWN = {
    # decomposition and passes
    *("Basis", "Factors", "Family", "Found", "Init", "METHODS", "Ranks", "SIDES", "Source"),
    *("Spectra", "State", "Task", "Term"),
    # files
    "Index",
    # torch
    *("Keep", "Layout", "Shape"),
}
"""Names that stand for two things still; the list is to become shorter."""

OPTIONS = "tdecomp.cli.options"  # types of options, each the name of what it reads


def named(tree: ast.Module) -> Iterator[str]:
    """Classes, and what is assigned at the top of a file under a public name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
        elif isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_no_name_stands_for_two_things():
    homes = defaultdict(set)
    for module, path in imports.MODULES.items():
        for name in named(imports.parsed(path)):
            if not name.startswith("_") and module != OPTIONS:
                homes[name].add(module)
    doubles = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not {name: doubles[name] for name in doubles.keys() - KNOWN}
