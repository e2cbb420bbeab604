"""What the files of both packages import, and the circles among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("tdecomp", "tdecomp_torch")
SOURCES = {package: sorted((ROOT / package).rglob("*.py")) for package in PACKAGES}


def name_of(path: Path) -> str:
    """Absolute name of the module that a file is."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for paths in SOURCES.values() for path in paths}


def unit(path: Path) -> str:
    """Row of a level table that a file belongs to: a folder or a file of its package."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Absolute names of the modules that a part of a file imports anywhere.

    ``from tdecomp.formats import pairs`` is the module ``tdecomp.formats.pairs``, ``from
    tdecomp.formats import CP`` is ``tdecomp.formats``. Imports for type checkers count too: a file
    whose types come from above cannot be read, moved or checked without what is above.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, path)
            whole = {f"{base}.{alias.name}" for alias in node.names}
            names |= whole & MODULES.keys()
            if not whole <= MODULES.keys():
                names.add(base)
    return names


def _base(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parts[:-1]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *filter(None, [node.module])])


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def graph() -> dict[str, set[str]]:
    """The modules of both packages that each of them imports."""
    found = {name: imported(parsed(path), path) for name, path in MODULES.items()}
    return {name: names & MODULES.keys() - {name} for name, names in found.items()}


def circles(arrows: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Modules that import each other, directly or by way of others."""
    beyond = {name: reached(name, arrows) for name in arrows}
    return {
        frozenset(other for other in seen if name in beyond[other])
        for name, seen in beyond.items()
        if name in seen
    }


def reached(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """Everything that a module imports, directly or by way of others."""
    seen: set[str] = set()
    waiting = list(arrows[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += arrows[name]
    return seen


def late_imports(path: Path) -> Iterator[str]:
    """Modules that are imported inside functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(node, path)
