"""`basis`: adapters in common bases, shown, added to, taken from, exported and applied."""

from __future__ import annotations

import pytest

from tdecomp.files.loras import read_adapter
from tests.collections.files import SITES, adapter, related


@pytest.fixture
def folder(tmp_path, done):
    paths = [related(tmp_path / f"t{seed}", seed) for seed in range(6)]
    text = done("basis", *paths, "-o", tmp_path / "basis", "--error", "0.05").out
    for said in ("adapters in common bases", " t3 ", "sharing wins", "numbers"):
        assert said in text
    return tmp_path / "basis"


def test_members_come_and_go(folder, tmp_path, done, report):
    new = adapter(tmp_path / "new", 99)
    assert "new" in done("basis", new, "--add-to", folder).out
    done("basis", folder, "--remove", "t0", "-q")
    told = report("basis", folder)
    assert [row["name"] for row in told["members"]] == ["new", *(f"t{k}" for k in range(1, 6))]
    assert told["members"][0]["lost"] > 0.1 > told["members"][1]["lost"]


def test_a_task_is_exported_and_applied(folder, tmp_path, base, done):
    text = done("export", folder, "--task", "t2", "--lora", tmp_path / "lora").out
    assert "t2" in text
    assert read_adapter(tmp_path / "lora").pairs.keys() == SITES.keys()
    done("apply", folder, base, "--task", "t2", "-o", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "-o", "NEW"], "exactly one of rank, error and budget"),
        (["A", "BASIS"], "one is taken"),
        (["A", "--rank", "2"], "where to write"),
        (["BASIS", "--remove", "x"], "no member 'x'"),
        (["A", "--add-to", "A"], "no folder that 'tdecomp basis' wrote"),
        (["BASIS", "-o", "NEW", "--rank", "2"], "export it first"),
    ],
)
def test_what_does_not_fit_is_refused(words, said, folder, tmp_path, refused):
    adapter(tmp_path / "a", 1)
    places = {"A": tmp_path / "a", "BASIS": folder, "NEW": tmp_path / "new"}
    refused(["basis", *(places.get(word, word) for word in words)], said)


def test_a_basis_without_a_task_is_told(folder, base, tmp_path, refused):
    refused(["export", folder, "--lora", tmp_path / "x"], "--task")
    refused(["apply", folder, base, "-o", tmp_path / "x"], "--task")
    refused(["export", tmp_path / "t0", "--task", "a", "--lora", tmp_path / "x"], "basis")
