"""What the documents say holds: citations resolve, examples run, commands exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from typer.main import get_command

from tdecomp.cli.commands import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SOURCES = [
    p for d in ("tdecomp", "tdecomp_torch", "theory") for p in sorted((ROOT / d).rglob("*.py"))
]


def test_every_citation_is_in_the_bibliography():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text()))
    cited = {
        key
        for path in (*SOURCES, *DOCUMENTS, *NOTEBOOKS)
        for key in re.findall(r"\[([a-z]+(?:19|20)\d\d[a-z]*)\]", path.read_text(encoding="utf-8"))
    }
    assert cited
    assert cited == known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_examples_run(path):
    result = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert result.failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_options_exist(path):
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^\$? ?tdecomp .*(?:\\\n.*)*", path.read_text(encoding="utf-8"), re.M):
        words = line.removeprefix("$").split()
        assert words[1] in commands or words[1].startswith("--"), line
        if words[1] in commands:
            known = {o for p in commands[words[1]].params for o in p.opts}
            assert {w.split("=")[0] for w in words if w.startswith("-")} <= known, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_resolve(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_nobody_is_told_to_install_another_project():
    """`tdecomp` on the package index is not this one."""
    for path in DOCUMENTS:
        assert not re.search(r"pip install (-U )?[\"']?tdecomp", path.read_text(encoding="utf-8"))
