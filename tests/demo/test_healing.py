"""What healing is worth: the rows that were measured, and the table of the guide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "demo"


@pytest.fixture
def healing(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield __import__("healing")
    for name in ("healing", "finetune", "docstrings", "quiet", "runs"):
        sys.modules.pop(name, None)


def test_the_table_of_the_guide_is_that_of_the_rows(healing):
    rows = healing.Rows(healing.RESULTS, 60, 3e-3)
    guide = (DEMO.parent / "guide.md").read_text(encoding="utf-8")
    assert healing.table_text(rows) in guide
    for budget in healing.BUDGETS:
        seeds = rows.seeds(budget)
        assert seeds
        for method in healing.METHODS:
            own = rows.of(method, budget, seeds)
            assert [r["seed"] for r in own] == seeds
            assert all(r["n_params"] <= budget for r in own)


def test_methods_are_compared_over_the_same_seeds(healing, tmp_path, monkeypatch):
    monkeypatch.setattr(healing, "BUDGETS", (100,))
    file = tmp_path / "rows.json"
    rows = healing.Rows(file, 60, 3e-3)
    for seed, less in ((0, 0.25), (1, 0.75), (2, 0.5)):
        for method in ("base", "tuned"):
            rows.add(seed=seed, method=method, accuracy=0.875, cross_entropy=0.5)
        for method in healing.METHODS[: 2 if seed == 2 else 3]:
            size = {"budget": 100, "n_params": 90}
            rows.add(seed=seed, method=method, **size, accuracy=0.875 - less, cross_entropy=1.0)
    again = healing.Rows(file, 60, 3e-3)
    assert again.seeds(100) == [0, 1]
    line = "| decomposed, healed | 90 | 0.375 ± 0.354 | -0.500 ± 0.354 | 1.00 ± 0.00 | 2 |"
    assert line in healing.table_text(again)
    with pytest.raises(SystemExit, match="measured with"):
        healing.Rows(file, 30, 3e-3)


def test_texts_of_a_batch_are_of_one_length_and_none_is_lost(healing):
    tokens = healing.finetune.tokenizer(healing.finetune.minilm())
    texts = ["word " * (1 + k * 7 % 40) for k in range(200)]
    made = healing.batches_of(tokens, texts)
    assert sum(len(b["input_ids"]) for b in made) == 200
    lengths = sorted(n for b in made for n in b["attention_mask"].sum(dim=1).tolist())
    assert lengths == sorted(len(text.split()) + 2 for text in texts)
    padding = sum((1 - b["attention_mask"]).sum().item() for b in made)
    assert padding < 0.2 * sum(b["input_ids"].numel() for b in made)
