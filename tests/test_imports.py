"""Imports go down the level table only, and `import tdecomp` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = {
    "errors": 0,
    "_xp": 0,
    "modes": 0,
    "progress": 0,
    "tensor": 1,
    "linalg": 1,
    "_plan": 1,
    "ranking": 1,
    "formats": 2,
    "stack": 2,
    "passes": 3,
    "decomposition": 4,
    "adapters": 5,
    "files": 6,
    "_public": 7,
    "__init__": 8,
    "cli": 8,
    "__main__": 9,
}
WITHIN = {("_xp", "errors"), ("modes", "errors"), ("linalg", "tensor")}  # inside one level
HEAVY = ("torch", "jax", "cupy", "sympy", "matplotlib", "tensorly", "transformers", "peft")
CLI_ONLY = ("typer", "click", "rich")

SOURCES = sorted((ROOT / "tdecomp").rglob("*.py"))


def unit(path: Path) -> str:
    """Row of the level table a file belongs to."""
    return path.relative_to(ROOT / "tdecomp").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of the modules a file imports anywhere."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
            names |= {f"{node.module}.{a.name}" for a in node.names if node.module == "tdecomp"}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            names.add(".".join([*base, node.module or ""]).rstrip("."))
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    here = unit(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "tdecomp_torch":
            pytest.fail("the core imports the torch layer")
        if parts[0] != "tdecomp" or len(parts) == 1 or parts[1] not in LEVELS:
            continue
        there = parts[1]
        down = LEVELS[there] < LEVELS[here]
        assert there == here or down or (here, there) in WITHIN, f"{here} imports {there}"


def test_every_module_has_a_level():
    assert {unit(path) for path in SOURCES} == set(LEVELS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_never_imports_a_framework_at_the_top(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in top:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        assert not {str(n).split(".")[0] for n in names} & set(HEAVY)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after a statement in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_core_loads_no_framework_and_no_cli():
    assert not loaded_by("import tdecomp; tdecomp.svd") & {*HEAVY, *CLI_ONLY}


def test_the_command_answers_signals_before_anything_large_is_loaded():
    assert not loaded_by("import tdecomp.cli") & {*HEAVY, *CLI_ONLY, "numpy", "opt_einsum"}


def test_public_names_are_what_they_say_whatever_was_loaded_before():
    for before in ("tdecomp.formats", "tdecomp.cli", "tdecomp._plan"):
        assert loaded_by(
            f"import {before}, tdecomp as td;"
            "assert callable(td.plan) and callable(td.svd) and td.linalg.Svd and td.adapters;"
            "assert set(td.__all__) <= set(dir(td));"
            "assert not hasattr(td, 'nothing') and not hasattr(td, '__wrapped__')"
        )


def test_reading_a_factors_file_loads_no_framework():
    assert not loaded_by("import tdecomp.files.factors, tdecomp.files.delta") & set(HEAVY)


def test_the_check_can_fail():
    assert "sympy" in loaded_by("import tdecomp, sympy")
