"""The race to fixed accuracies: who runs, from where, and what is counted."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "demo"
LORA = 4608, 13_824
"""Numbers of LoRA on the digits and on the docstrings."""
NEW = ("adapter", "compare", "convergence", "digits", "docstrings", "finetune", "problems")


@pytest.fixture(scope="module")
def convergence():
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEMO))
        module = __import__("convergence")
        patch.setattr(sys.modules["digits"], "FIRST", module.finetune.Recipe(steps=2))
        yield module
    for name in (*NEW, "quiet", "runs"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def runs(convergence):
    return sys.modules["runs"]


@pytest.fixture(scope="module")
def problem(convergence):
    return convergence.PROBLEMS["digits"]()


def bound(contender, numbers):
    from tdecomp.adapters import Grid, bind, method

    spec = method(contender.row) if isinstance(contender.row, str) else contender.row
    width, layers, heads = numbers
    grid = Grid.full((width, width), layer=layers, proj=3, heads=heads)
    return bind(spec, grid, contender.rank, alpha=contender.alpha)


@pytest.mark.parametrize(
    ("task", "numbers", "size"),
    [("digits", (48, 4, 4), LORA[0]), ("docstrings", (384, 6, 12), LORA[1])],
    ids=["digits", "docstrings"],
)
def test_all_have_the_size_of_lora_or_a_fifth_and_the_scale_of_theory(
    convergence, task, numbers, size
):
    from theory.rates import alpha_for

    for name, contender in convergence.PROBLEMS[task].contenders.items():
        made = bound(contender, numbers)
        if "a fifth" in name:
            assert 5 * made.n_trainable <= size
        else:
            assert made.n_trainable == pytest.approx(size, rel=0.05), name
        if contender.alpha is not None:
            assert contender.alpha == pytest.approx(alpha_for(made, made.start()), rel=0.01)


CHANGED = ("lora, one step", "lotr_narrow, one step")
DIGITS = (
    *("lora", "lora, gradients", "PEFT LoRA-GA", "PEFT PiSSA", "lotr, gradients"),
    *("lotr_narrow, a fifth, gradients", "tenslora_qkv_depth, alpha 0.43"),
    *("tenslora_qkv_depth, gradients", "lorta", "tt_lora, gradients", *CHANGED),
    pytest.param("lorta, gradients", marks=pytest.mark.slow),
)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # PEFT's LoRA-GA
@pytest.mark.parametrize("name", DIGITS)
def test_all_but_steps_start_at_the_model_that_was_trained_before(convergence, problem, name):
    items, recipe = problem.train[:64], convergence.finetune.Recipe(steps=2, batch=16, lr=1e-3)
    ready = convergence.prepared(problem, problem.contenders[name], items, recipe)
    (batch,) = problem.batches(items)
    before = problem.fresh(recipe.seed)(**batch).logits
    change = (ready.model(**batch).logits - before).abs().max().item()
    assert (change > 1e-4) == (name in CHANGED)
    assert change < 1e-4 or name in CHANGED
    moved = []
    convergence.trained(problem, ready, items, recipe, after=moved.append)
    assert moved == [1, 2]
    assert (ready.model(**batch).logits - before).abs().max().item() > 1e-3


def curve(convergence, method, seed, accuracies, captured=0):
    return convergence.Curve(
        method, 0.01, seed, False, 4608, 10, accuracies[-1], 1.0, captured, accuracies
    )


def test_steps_are_the_median_over_seeds_and_censored_where_most_never_arrive(
    convergence, problem, tmp_path
):
    small = replace_looks(problem, (2, 4, 8), (0.5, 0.9))
    results = convergence.results_in(tmp_path / "runs.json", small)
    heights = ([0.1, 0.5, 0.95], [0.6, 0.7, 0.8], [0.2, 0.3, 0.6])
    for seed, accuracies in enumerate(heights):
        results.add(curve(convergence, "lora, gradients", seed, accuracies, captured=8))
    assert (
        convergence.steps_to(0.9, results.reported("lora, gradients")[1], small.looks) == math.inf
    )
    (row,) = convergence.rows(small, convergence.results_in(results.path, small))
    assert row[:3] == ("lora, gradients", "4,608", "0.01")
    assert row[3] == "0.300 ± 0.265"
    assert row[-4:] == ("4", "12", "> 8", "> 8")


def replace_looks(problem, looks, goals):
    small = type(problem)()
    small.looks, small.goals = looks, goals
    return small


def test_a_rate_is_chosen_by_the_height_of_the_curve(convergence, problem, tmp_path):
    results = convergence.results_in(tmp_path / "runs.json", problem)
    late, early = [0.1, 0.9], [0.8, 0.9]
    for lr, accuracies in ((1e-3, late), (1e-2, early)):
        run = curve(convergence, "lora", 100, accuracies)
        results.add(replace(run, lr=lr, choosing=True))
    assert results.best("lora") == 1e-2
    race = convergence.Race(problem, results)
    assert not {id(i) for i in race.held_out} & {id(i) for i in race.rest}


def test_the_table_of_the_documents_is_that_of_the_runs(convergence, problem, runs):
    results = convergence.results_in(DEMO / "convergence-digits.json", problem)
    page = DEMO.parent / "adapters.md"
    assert convergence.table_text(problem, results) in page.read_text(encoding="utf-8")
    for name in problem.contenders:
        reported = results.reported(name)
        assert set(reported) == set(runs.REPORTED)
        assert {run.lr for run in reported.values()} == {results.best(name)}
        assert min(results.tried(name)) < results.best(name) < max(results.tried(name))


def test_the_table_of_the_docstrings_is_that_of_their_runs(convergence, runs):
    kind = convergence.PROBLEMS["docstrings"]
    problem = kind.__new__(kind)  # without its texts
    results = convergence.results_in(DEMO / "convergence-docstrings.json", problem)
    page = DEMO.parent / "adapters.md"
    assert convergence.table_text(problem, results) in page.read_text(encoding="utf-8")
    for name in {run.method for run in results.runs.values()}:
        reported, known = results.reported(name), problem.tuned_rate(problem.contenders[name])
        assert set(reported) == set(runs.REPORTED)
        assert {run.lr for run in reported.values()} == {known or results.best(name)}
