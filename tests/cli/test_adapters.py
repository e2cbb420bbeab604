"""`adapters`: the catalogue on the screen."""

from __future__ import annotations

import pytest

import tdecomp as td
from tdecomp.adapters import CATALOGUE, Spec
from tests.tables import each


@each("name", CATALOGUE)
def test_a_row_is_a_document_that_can_be_read_again(name, report):
    assert Spec.from_json(report("adapters", name)[name]) == CATALOGUE[name]


def test_the_list_is_a_document_of_all_rows(report):
    assert list(report("adapters")) == list(CATALOGUE)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lotr", "core starts as zeros"),
        ("LoTR", "core starts as zeros"),
        ("lamda", "b is frozen to a share of min(step / (0.3 * T), 1)"),
        ("aslora", "assign has at most max(left, "),
        ("dora", "norm of rows"),
        ("vera", "arXiv:2310.11454"),
    ],
)
def test_one_row_is_told_whole(name, said, done):
    assert said in done("adapters", name).out


def test_an_unknown_adapter_is_refused(refused):
    refused(["adapters", "lotrr"], "no adapter 'lotrr'", "lotr")


def test_a_row_is_drawn(tmp_path, done, refused):
    file = tmp_path / "lotr.svg"
    assert f"Written to {file}." in done("adapters", "lotr", "--picture", file).out
    assert file.read_text(encoding="utf-8") == td.draw(CATALOGUE["lotr"]).svg
    refused(["adapters", "lotr", "--picture", file], "already exists", "--overwrite")
    done("adapters", "vera", "--picture", file, "--overwrite", "-q")
    assert ">vera<" in file.read_text(encoding="utf-8")
    refused(["adapters", "--picture", tmp_path / "all.svg"], "draws one row")
