"""Tests that run over a table fail with a row that fails, and say which one."""

from __future__ import annotations

import inspect

import pytest

from tests.tables import each


def test_every_row_is_run_and_the_one_that_fails_is_named():
    seen = []

    @each("a, b", [(1, 2), pytest.param(3, 4, id="other"), (5, 0)])
    def law(tmp_path, a, b):
        seen.append((tmp_path, a, b))
        assert a < b

    assert [*inspect.signature(law).parameters] == ["tmp_path"]
    with pytest.raises(AssertionError) as failed:
        law(tmp_path="here")
    assert seen == [("here", 1, 2), ("here", 3, 4), ("here", 5, 0)]
    assert failed.value.__notes__ == ["in row 2 of 3: a=5, b=0"]


def test_rows_of_a_table_that_others_have_to_run_are_not_taken():
    with pytest.raises(AssertionError, match="marks"):
        each("a", [pytest.param(1, marks=pytest.mark.slow)])
    with pytest.raises(AssertionError, match="nothing"):
        each("a", [])
    with pytest.raises(AssertionError, match="b"):
        each("a, b", [(1, 2)])(lambda a: None)
