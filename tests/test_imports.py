"""Imports go down the level table only, in no circle, and `import tdecomp` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests import imports

LEVELS = {
    "errors": 0,
    "_brief": 0,
    "_backends": 0,
    "_control_groups": 0,
    "_memory": 1,
    "_nearest": 0,
    "_threads": 0,
    "_version": 0,
    "_xp": 0,
    "modes": 0,
    "progress": 0,
    "_equality": 1,
    "tensor": 1,
    "linalg": 1,
    "drawing": 1,
    "_plan": 1,
    "ranking": 1,
    "formats": 2,
    "stack": 2,
    "tasks": 1,
    "statistics": 3,
    "passes": 3,
    "decomposition": 4,
    "adapters": 5,
    "collections": 5,
    "files": 6,
    "starts": 6,
    "allocation": 7,
    "picture": 7,
    "jobs": 8,
    "_public": 8,
    "__init__": 9,
    "cli": 9,
    "__main__": 10,
}
TORCH_LEVELS = {
    "plainly": 0,
    "tracing": 0,
    "apply": 1,
    "model": 1,
    "capture": 2,
    "forward": 2,
    "standing": 3,
    "training": 3,
    "watch": 3,
    "attached": 4,
    "making": 5,
    "merging": 5,
    "saving": 6,
    "decomposed": 6,
    "starting": 6,
    "allocating": 7,
    "handle": 7,
    "preparing": 8,
    "attach": 9,
    "loading": 6,
    "healing": 8,
    "together": 8,
    "peft": 9,
    "trainer": 8,
    "_public": 10,
    "jobs": 10,
    "commands": 11,
    "__init__": 11,
}
WITHIN = {
    ("_xp", "errors"),
    ("_xp", "_backends"),
    ("modes", "errors"),
    ("_threads", "_control_groups"),
    ("linalg", "tensor"),
    ("_plan", "drawing"),
}  # inside one level
HEAVY = ("torch", "jax", "cupy", "sympy", "matplotlib", "tensorly", "transformers", "peft")
CLI_ONLY = ("typer", "click", "rich")

OPTIONAL = {"torch", "tensorly", "scipy", "fsspec", "dask", "distributed"}
"""Libraries that functions import where they need them: `tdecomp` works without."""
LATE = {
    "tdecomp.cli": {"tdecomp.cli", "tdecomp.files", "numpy"},  # first of all it answers signals
    "tdecomp.files.workshop": {"fcntl", "ctypes"},  # of one operating system
    "tdecomp_torch.commands.capture": {"tdecomp_torch"},  # torch, that is
    "tdecomp_torch.commands.heal": {"tdecomp_torch"},
}
"""What else is imported inside functions, and where."""

SOURCES, TORCH_SOURCES = imports.SOURCES["tdecomp"], imports.SOURCES["tdecomp_torch"]
EVERYWHERE = [path for paths in imports.SOURCES.values() for path in paths]


def arrows(sources) -> list[tuple[str, list[str]]]:
    """(unit, name taken apart) of every import in files; they are hundreds, and one test."""
    return [
        (imports.unit(path), name.split("."))
        for path in sources
        for name in imports.imported(imports.parsed(path), path)
    ]


def test_imports_go_down():
    for here, parts in arrows(SOURCES):
        assert parts[0] != "tdecomp_torch", f"{here} of the core imports the torch layer"
        if parts[0] != "tdecomp" or len(parts) == 1 or parts[1] not in LEVELS:
            continue
        there = parts[1]
        down = LEVELS[there] < LEVELS[here]
        assert there == here or down or (here, there) in WITHIN, f"{here} imports {there}"


def test_imports_of_the_torch_layer_go_down():
    for here, parts in arrows(TORCH_SOURCES):
        assert parts != ["tdecomp_torch"], f"{here}: the public names are at the top"
        if parts[0] == "tdecomp_torch" and parts[1] != here:
            assert TORCH_LEVELS[parts[1]] < TORCH_LEVELS[here], f"{here} imports {parts[1]}"


@pytest.mark.parametrize(
    ("sources", "levels"), [(SOURCES, LEVELS), (TORCH_SOURCES, TORCH_LEVELS)], ids=imports.PACKAGES
)
def test_every_module_has_a_level(sources, levels):
    assert {imports.unit(path) for path in sources} == set(levels)


def test_rooms_hide_no_module():
    """At the top of a package an underscore means "not a public module", in a room nothing."""
    inside = {name for path in EVERYWHERE for name in path.relative_to(imports.ROOT).parts[2:]}
    assert {name for name in inside if name.startswith("_")} == {"__init__.py"}


def test_no_file_imports_itself_by_way_of_others():
    assert not imports.circles(imports.graph())


def test_circles_are_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}, "e": set()}
    assert imports.circles(arrows) == {frozenset("bc"), frozenset("d")}


def test_functions_import_optional_libraries_only():
    for path in EVERYWHERE:
        allowed = OPTIONAL | LATE.get(imports.name_of(path), set())
        parts = [name.split(".") for name in imports.late_imports(path)]
        late = {p[0] if p[0] != "tdecomp" else ".".join(p[:2]) for p in parts}
        assert late <= allowed, f"{path}: {late - allowed}"


def test_core_never_imports_a_framework_at_the_top():
    for path in SOURCES:
        for node in imports.parsed(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = isinstance(node, ast.Import)
                names = [a.name for a in node.names] if named else [node.module]
                heavy = {str(n).split(".")[0] for n in names} & set(HEAVY)
                assert not heavy, f"{path}: {heavy}"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after a statement in a fresh interpreter."""
    code = f"import sys; {statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_core_loads_no_framework_and_no_cli():
    assert not loaded_by("import tdecomp; tdecomp.svd") & {*HEAVY, *CLI_ONLY}


def test_no_decomposition_loads_what_reads_and_writes_files():
    look = (
        "files = [m for m in sys.modules if m.startswith('tdecomp.files')]; assert not files, files"
    )
    loaded_by(f"import tdecomp; tdecomp.svd; tdecomp.CP; {look}")


def test_the_torch_layer_loads_torch_for_a_name_only():
    assert "torch" not in loaded_by("import tdecomp_torch, tdecomp_torch.commands.heal")
    assert "torch" in loaded_by("import tdecomp_torch; tdecomp_torch.attach")


def test_a_public_name_is_no_module_whatever_was_imported_before():
    names = ("apply", "attach", "capture")
    loaded_by(
        "import tdecomp_torch; from importlib import import_module\n"
        f"for name in {names}:\n"
        "    import_module(f'tdecomp_torch.{name}')\n"
        "    found = getattr(tdecomp_torch, name); assert callable(found), found\n"
        "    import_module(f'tdecomp_torch.{name}')\n"
        "    assert getattr(tdecomp_torch, name) is found\n"
    )


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


def test_jobs_load_no_framework_and_no_cli():
    assert not loaded_by("import tdecomp.jobs") & {*HEAVY, *CLI_ONLY}


def test_the_check_can_fail():
    assert "sympy" in loaded_by("import tdecomp, sympy")
