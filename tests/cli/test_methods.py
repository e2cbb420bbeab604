"""tdecomp methods: the catalogue on the screen."""

from __future__ import annotations

import pytest

from tdecomp.adapters import CATALOGUE, Spec


def test_every_row_has_a_line(done):
    lines = done("methods").out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_is_a_document_that_can_be_read_again(name, report):
    assert Spec.from_json(report("methods", name)[name]) == CATALOGUE[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lotr", "core starts as zeros"),
        ("lamda", "b is frozen to a share of min(step / (0.3 * T), 1)"),
        ("aslora", "assign tells apart no more than max(left, "),
        ("dora", "norm of rows"),
        ("vera", "arXiv:2310.11454"),
    ],
)
def test_one_row_is_told_whole(name, said, done):
    assert said in done("methods", name).out


def test_an_unknown_method_is_refused(refused):
    refused(["methods", "lotrr"], "did you mean 'lotr'?")
