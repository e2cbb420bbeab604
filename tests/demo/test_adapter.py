"""The script that trains one adapter, and the one that compares many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "demo"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield __import__("compare")
    for name in ("compare", "adapter", "finetune", "docstrings", "quiet", "runs", "costs"):
        sys.modules.pop(name, None)


@pytest.fixture
def runs(compare):
    return __import__("runs")


def run(*options):
    command = [sys.executable, str(DEMO / "adapter.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.slow
def test_a_few_steps_train_save_and_report(tmp_path):
    done = run(
        "--method", "lotr", "--rank", "r=2,s=3", "--steps", "2", "--save", str(tmp_path / "a")
    )
    assert done.returncode == 0, done.stderr
    assert "trainable parameters, adapter │ 2,028" in " ".join(done.stdout.split())
    assert (tmp_path / "a" / "factors.safetensors").stat().st_size < 60_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lotrr"], "did you mean 'lotr'?"),
        (["--targets", "nothing"], "no site matches"),
        (["--rank", "many"], "rank"),
    ],
    ids=["method", "targets", "rank"],
)
def test_bad_options_are_told_in_one_line(options, message):
    done = run(*options, "--steps", "1")
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]


def test_every_row_of_the_comparison_has_the_size(compare):
    from tdecomp.adapters import Grid, bind, method

    grid = Grid.full((384, 384), layer=6, proj=3, heads=12)
    for name, rank in compare.METHODS.items():
        if rank is not None:
            assert bind(method(name), grid, rank).n_trainable == pytest.approx(
                compare.SIZE, rel=0.05
            )


@pytest.mark.slow
def test_runs_are_kept_and_not_done_again(compare, runs, tmp_path, monkeypatch):
    from rich.console import Console

    trained = []

    def train(method, items, recipe):
        trained.append((method, recipe.lr, recipe.seed))
        return compare.Trained(None, None, 10, 20, 0.5, 1.0)

    monkeypatch.setattr(compare, "train", train)
    monkeypatch.setattr(compare, "test_accuracy", lambda model, items: 0.1 + trained[-1][1])
    file = tmp_path / "runs.json"
    comparison = compare.Comparison(compare.results_in(file), Console(quiet=True))
    comparison.choose("lora")
    rates = sorted({lr for _, lr, _ in trained})
    assert rates[:4] == sorted(runs.GRID)
    assert rates[4:] == [lr for lr in runs.WIDER if lr > max(runs.GRID)]  # an edge won
    again = compare.Comparison(compare.results_in(file), Console(quiet=True))
    before = len(trained)
    again.choose("lora")
    assert len(trained) == before
    assert again.results.best("lora") == max(runs.WIDER)


def test_the_table_of_the_documents_is_that_of_the_runs(compare, runs):
    page = Path(__file__).parents[2] / "docs" / "adapters.md"
    results = compare.results_in(compare.RESULTS)
    assert compare.table_text(results) in page.read_text(encoding="utf-8")
    for method in compare.METHODS:
        reported = results.reported(method)
        assert set(reported) == set(runs.REPORTED)
        assert {run.lr for run in reported.values()} == {results.best(method)}
        tried = results.tried(method)
        assert set(runs.GRID) <= set(tried)
        assert min(tried) < results.best(method) < max(tried)


def test_the_table_of_costs_is_that_of_the_file(compare):
    costs = __import__("costs")
    page = Path(__file__).parents[2] / "docs" / "adapters.md"
    kept = costs.kept()
    assert set(kept) == set(costs.ROWS)
    assert costs.table_text(kept) in page.read_text(encoding="utf-8")
    for method in compare.METHODS:
        (numbers,) = {
            run.n_adapter for run in compare.results_in(compare.RESULTS).reported(method).values()
        }
        assert kept[method]["trained"] == numbers


@pytest.mark.slow
def test_a_row_of_costs_is_measured_anew():
    command = [sys.executable, str(DEMO / "costs.py"), "--row", "lora"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trained"] == 13_824
    assert 4 * 13_824 < found["file"] < 4 * 13_824 + 10_000
    assert found["step"] > 0
    assert found["memory"] > 1e8


def test_validation_items_are_no_test_items(compare):
    from rich.console import Console

    comparison = compare.Comparison(compare.results_in(Path("none.json")), Console(quiet=True))
    held_out, rest = (
        {item.text for item in part} for part in (comparison.held_out, comparison.rest)
    )
    assert held_out.isdisjoint(rest)
    assert {item.text for item in comparison.test}.isdisjoint(held_out | rest)
