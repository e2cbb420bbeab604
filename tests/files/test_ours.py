"""Only what this tool wrote is replaced: all of a folder must be what its list says."""

from __future__ import annotations

import inspect
import json
import os
import sys

import numpy as np
import pytest

import tdecomp as td
from tdecomp.files import ours, safetensors
from tdecomp.files.ours import MARKER, foreign_in, has_metadata, is_json, mark


@pytest.fixture
def folder(tmp_path):
    """Write an output with a folder inside."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "lora" / "adapter.safetensors").write_bytes(bytes(100))
    mark(tmp_path)
    return tmp_path


def put(name, text="x"):
    def change(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def link(name, target):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def later(folder):
    """Change a file that is too large to be hashed, at the same size."""
    os.utime(folder / "report.json", ns=(2**62, 2**62))


def within(name):
    """An output in an output, as `export` writes OUT/lora anew."""

    def change(folder):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "adapter.safetensors").write_bytes(b"another")
        mark(folder / name)

    return change


FOREIGN = {
    "a file": (put("thesis.tex"), "thesis.tex"),
    "a hidden file": (put(".git/HEAD"), ".git/HEAD"),
    "a file deep inside": (put("lora/more/notes"), "lora/more/notes"),
    "a link": (link("more", "/etc"), "more"),
    "a link in the place of a file": (link("report.json", "/etc/hostname"), "report.json"),
    "longer": (put("report.json", "{} "), "report.json"),
    "changed at the same size": (put("report.json", "[]"), "report.json"),
    "trained on": (put("lora/adapter.safetensors", "y" * 100), "lora/adapter.safetensors"),
    "a file in an output within": (
        lambda folder: (within("lora")(folder), put("lora/mine")(folder)),
        "mine",
    ),
    "the list of another": (put(MARKER, "{}"), f"no {MARKER}"),
    "a list of something else": (put(MARKER, '{"made_by": "tdecomp", "files": 3}'), MARKER),
    "a pipe in the place of the list": (
        lambda folder: ((folder / MARKER).unlink(), os.mkfifo(folder / MARKER)),
        f"no {MARKER}",
    ),
    "a device in the place of the list": (link(MARKER, "/dev/zero"), f"no {MARKER}"),
    "a pipe in the place of a file": (
        lambda folder: ((folder / "report.json").unlink(), os.mkfifo(folder / "report.json")),
        "report.json",
    ),
    "a list that is not JSON": (put(MARKER, "[" * 100_000), f"no {MARKER}"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_somebody_else_wrote_is_named(case, folder):
    change, name = FOREIGN[case]
    change(folder)
    assert name in (foreign_in(folder) or "")


OURS = {
    "as written": lambda folder: None,
    "a file less": lambda folder: (folder / "report.json").unlink(),
    "an output within": within("lora"),
    "another output within": within("model"),
    "what systems leave": put("lora/.DS_Store"),
    "an empty folder": lambda folder: (folder / "new").mkdir(),
    "times alone": later,
}


@pytest.mark.parametrize("case", OURS)
def test_what_this_tool_wrote_is_known(case, folder):
    OURS[case](folder)
    assert foreign_in(folder) is None


def test_folders_may_be_deeper_than_functions(folder):
    (folder / "/".join("d" * 300)).mkdir(parents=True)
    (folder / "/".join("d" * 300) / "thesis.tex").touch()
    usual = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 150)
        assert "thesis.tex" in (foreign_in(folder) or "")
    finally:
        sys.setrecursionlimit(usual)


def test_large_files_by_size_and_time(folder, monkeypatch):
    monkeypatch.setattr(ours, "_HASHED", 50)
    (folder / "lora" / "adapter.safetensors").write_bytes(bytes(100))
    mark(folder)
    assert (
        "sha256"
        not in json.loads((folder / MARKER).read_text())["files"]["lora/adapter.safetensors"]
    )
    assert foreign_in(folder) is None
    os.utime(folder / "lora" / "adapter.safetensors", ns=(2**62, 2**62))
    assert "lora/adapter.safetensors" in (foreign_in(folder) or "")


@pytest.mark.parametrize("key", ["tdecomp", "tdecomp.adapter", "other"])
def test_outputs_without_a_list_by_their_content(tmp_path, key):
    file = tmp_path / "factors.safetensors"
    safetensors.write(file, [("x", "U8", (4,))], lambda name: np.zeros(4, np.uint8), {key: "{}"})
    (tmp_path / "report.json").write_text('{"groups": []}')
    assert (foreign_in(tmp_path) is None) == (key != "other")
    (tmp_path / "report.json").write_text("{}")
    assert "report.json" in (foreign_in(tmp_path) or "")


def test_single_files_by_their_content(tmp_path):
    td.save(td.svd(np.eye(3), rank=2).tensor, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text('{"made_by": "tdecomp explore"}')
    (tmp_path / "y.json").write_text("[1]")
    assert has_metadata(tmp_path / "x.safetensors", "tdecomp.format")
    assert is_json(tmp_path / "x.json", "tdecomp explore")
    for name in ("x.json", "y.json", "nothing"):
        assert not has_metadata(tmp_path / name, "tdecomp.format")
    for name in ("x.safetensors", "y.json", "nothing"):
        assert not is_json(tmp_path / name, "tdecomp explore")
