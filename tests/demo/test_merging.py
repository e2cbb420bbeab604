"""What merges are worth: the rows that were measured, and the tables of the guide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "demo"


@pytest.fixture
def merging(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield __import__("merging")
    for name in ("merging", "adapter", "finetune", "docstrings", "quiet", "runs"):
        sys.modules.pop(name, None)


def test_the_tables_of_the_guide_are_those_of_the_rows(merging):
    rows = merging.Rows(merging.RESULTS, merging.Sizes())
    guide = (DEMO.parent / "guide.md").read_text(encoding="utf-8")
    seeds = rows.complete(merging.METHODS)
    assert len(seeds) > 1
    assert merging.table_text(rows) in guide
    assert merging.bases_text(rows) in guide
    (size,) = {row["numbers"] for row in rows.over(seeds, merging.OWN)}
    for name in merging.METHODS:
        own = rows.over(seeds, name)
        assert [row["seed"] for row in own] == seeds
        assert all(row["numbers"] <= size for row in own)
    for share in merging.BUDGETS:
        shared, alone = (rows.over(seeds, n, share) for n in (merging.SHARED, merging.ALONE))
        for one, other in zip(shared, alone, strict=True):
            assert other["numbers"] <= one["numbers"] <= share * 3 * size


def test_every_method_that_takes_three_adapters_is_there(merging):
    from tdecomp.collections.merging import MERGES

    assert set(MERGES) - set(merging.METHODS) == {"slerp"}


@pytest.mark.slow
def test_few_items_are_trained_merged_shared_and_kept(merging, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merging, "BUDGETS", (0.5,))
    monkeypatch.setattr(merging, "SCALES", (1.0, 2.0))
    sizes = merging.Sizes(steps=2, batch=4, rank=2, held=2, tried=3, seen=4)
    file, methods = tmp_path / "rows.json", ("mean", "regmean", "fisher")
    rows = merging.Rows(file, sizes)
    merging.measure(rows, 7, sizes, tmp_path / "models", methods)
    assert rows.complete(methods) == [7]
    again = merging.Rows(file, sizes)
    capsys.readouterr()
    merging.measure(again, 7, sizes, tmp_path / "models", methods)
    assert capsys.readouterr().out == ""
    table = merging.table_text(again, methods)
    assert all(f"| `{name}` |" in table for name in methods)
    assert len(merging.bases_text(again, methods).splitlines()) == 5
    for row in again.rows:
        assert all(0 <= value <= 1 for value in row["accuracy"])
    (own,) = again.of(merging.OWN)
    assert {row["numbers"] for row in again.rows if "cut" in row} == {own["numbers"]}
    with pytest.raises(SystemExit, match="measured with"):
        merging.Rows(file, merging.Sizes())
