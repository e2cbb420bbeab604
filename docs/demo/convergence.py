"""How many steps adapters take: ``python docs/demo/convergence.py digits`` (or ``docstrings``).

Starts from gradients or weights against each method's own start, on two tasks: MiniLM on the
docstrings of the demo, and a tiny vision transformer on scikit-learn's digits. Every method has
one grid of learning rates and takes the one whose curve is highest on a part of the training
items, with a seed that is not reported; then it is trained on all of them with the reported seeds,
and looked at on the test items while it trains. On the docstrings, methods of ``compare.py`` take
the rate that was best there. Every run is kept in ``convergence-TASK.json`` beside this file as
soon as it is done, and a second start goes on from there.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import finetune
import torch
from problems import PROBLEMS, STARTING, Batch, Contender, Problem
from quiet import quietly
from runs import Results, Run, Sweep, deviation, markdown

from tdecomp_torch import attach, gradients


@dataclass(frozen=True)
class Curve(Run):
    """A training that was looked at.

    Attributes
    ----------
    captured
        Passes over a batch, forward and backward, before the first step.
    accuracies
        After the steps at which the task looks.
    """

    captured: int = 0
    accuracies: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean height of the curve: of two that end alike the faster one is better."""
        return statistics.mean(self.accuracies)


@dataclass(frozen=True)
class Ready:
    """A model with an adapter, and what is trained of it."""

    model: Any
    groups: list[dict[str, Any]]
    n_adapter: int
    n_head: int


def prepared(
    problem: Problem, contender: Contender, items: list[Any], recipe: finetune.Recipe
) -> Ready:
    """The adapter on a fresh model, from its start."""
    model = problem.fresh(recipe.seed)
    seen = [
        batch
        for drawn in finetune.drawn(items, _starting(recipe))
        for batch in problem.batches(drawn)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if contender.peft is not None:
            return _peft(problem, contender, model, seen, recipe)
        handle = attach(
            model,
            contender.row,
            targets=list(problem.targets),
            rank=contender.rank,
            alpha=contender.alpha,
            seed=recipe.seed,
            also_train=["classifier"],
            start=None
            if contender.rule is None
            else gradients(
                seen, problem.loss, rule=contender.rule, steps=None, passes=contender.passes
            ),
        )
    groups = handle.param_groups(recipe.lr, also_train=recipe.head_lr)
    head = sum(p.numel() for p in handle.trained_besides().values())
    return Ready(model, groups, handle.n_trainable, head)


def _starting(recipe: finetune.Recipe) -> finetune.Recipe:
    """The draw of the batches of a start: the first ones of the training."""
    return finetune.Recipe(steps=STARTING, batch=recipe.batch, seed=recipe.seed)


def _peft(
    problem: Problem,
    contender: Contender,
    model: Any,
    seen: list[Batch],
    recipe: finetune.Recipe,
) -> Ready:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    rank, starts_from_gradients = contender.rank["r"], contender.peft == "lora_ga"
    init: Any = contender.peft
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(problem.targets),
        init_lora_weights=init,
        lora_ga_config=LoraGAConfig() if starts_from_gradients else None,
    )
    if starts_from_gradients:

        def step() -> None:
            for batch in seen:
                problem.loss(model, batch).backward()

        preprocess_loraga(model, config, step)
        model.zero_grad(set_to_none=True)
    get_peft_model(model, config)
    factors = [p for p in model.parameters() if p.requires_grad]
    head = list(model.classifier.parameters())
    for p in head:
        p.requires_grad_(True)
    groups = [{"params": factors, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    sizes = [sum(p.numel() for p in group) for group in (factors, head)]
    return Ready(model, groups, *sizes)


def trained(
    problem: Problem,
    ready: Ready,
    items: list[Any],
    recipe: finetune.Recipe,
    *,
    after: Callable[[int], None],
) -> float:
    """Take the steps; `after` is called after each, the model then being in evaluation.

    Returns
    -------
    float
        Loss of the last step.
    """
    optimizer, schedule = finetune.scheduled(ready.groups, recipe)
    last = math.nan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for step, drawn in enumerate(finetune.drawn(items, recipe), start=1):
            ready.model.train()
            last = 0.0
            for batch in problem.batches(drawn):
                loss = problem.loss(ready.model, batch) * (len(batch["labels"]) / len(drawn))
                loss.backward()
                last += loss.item()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ready.model.eval()
            after(step)
    return last


class Race(Sweep[Curve]):
    """All trainings of one task."""

    def __init__(self, problem: Problem, results: Results[Curve]):
        self.problem, self.results = problem, results
        cut = len(problem.train) // 5
        self.held_out, self.rest = problem.train[:cut], problem.train[cut:]

    def run(self, method: str, lr: float, seed: int, *, choosing: bool) -> None:
        """One training, unless it was done before."""
        if (method, lr, seed, choosing) in self.results.runs:
            return
        problem, contender = self.problem, self.problem.contenders[method]
        items = self.rest if choosing else problem.train
        looked_at = self.held_out if choosing else problem.test
        recipe = finetune.Recipe(steps=problem.steps, lr=lr, seed=seed)
        ready = prepared(problem, contender, items, recipe)
        accuracies: list[float] = []

        def after(step: int) -> None:
            if step in problem.looks:
                accuracies.append(problem.accuracy(ready.model, looked_at))

        loss = trained(problem, ready, items, recipe, after=after)
        sizes = ready.n_adapter, ready.n_head
        last = accuracies[-1]
        self.results.add(
            Curve(method, lr, seed, choosing, *sizes, last, loss, contender.captured, accuracies)
        )
        what = "choosing" if choosing else "reported"
        print(f"{method}, rate {lr:g}, seed {seed} ({what}): accuracy {last:.3f}", flush=True)

    def choose(self, method: str) -> None:
        """Look for a rate, unless one is known."""
        if self.problem.tuned_rate(self.problem.contenders[method]) is None:
            super().choose(method)

    def rate(self, method: str) -> float:
        """The one that was chosen here, or is known."""
        known = self.problem.tuned_rate(self.problem.contenders[method])
        return self.results.best(method) if known is None else known


def results_in(path: Path, problem: Problem) -> Results[Curve]:
    """The runs of a task so far, in a file."""
    about = {
        "command": f"python docs/demo/convergence.py {problem.name}",
        "looks": problem.looks,
        "batch": finetune.Recipe.batch,
    }
    return Results(path, about, Curve)


def steps_to(goal: float, curve: Curve, looks: tuple[int, ...]) -> float:
    """The first look with that accuracy; infinite where it was never reached."""
    pairs = zip(looks, curve.accuracies, strict=True)
    return next((step for step, accuracy in pairs if accuracy >= goal), math.inf)


def headings(problem: Problem) -> tuple[str, ...]:
    """Of the table."""
    at = _shown(problem)
    goals = [f"{name} {goal:g}" for goal in problem.goals for name in ("steps to", "with capture")]
    return ("method", "adapter", "rate", *(f"after {step}" for step in at), *goals)


def _shown(problem: Problem) -> tuple[int, ...]:
    """The steps whose accuracy the table has: a quarter, half, all."""
    return tuple(problem.steps * part // 4 for part in (1, 2, 4))


def rows(problem: Problem, results: Results[Curve]) -> Iterator[tuple[str, ...]]:
    """Mean and standard deviation of accuracy; median steps over the seeds that count."""
    for method in problem.contenders:
        own = list(results.reported(method).values())
        if own:
            cells = [method, f"{own[0].n_adapter:,}", f"{own[0].lr:g}"]
            for step in _shown(problem):
                values = [c.accuracies[problem.looks.index(step)] for c in own]
                cells.append(f"{statistics.mean(values):.3f} ± {deviation(values):.3f}")
            for goal in problem.goals:
                median = statistics.median(steps_to(goal, c, problem.looks) for c in own)
                cells += [_steps(median, problem), _steps(median + own[0].captured, problem)]
            yield tuple(cells)


def _steps(count: float, problem: Problem) -> str:
    return f"{count:g}" if count < math.inf else f"> {problem.steps}"


def table_text(problem: Problem, results: Results[Curve]) -> str:
    """The table in markdown."""
    return markdown(headings(problem), rows(problem, results))


def main() -> None:
    """Run what has not been run, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", help="some of them")
    parser.add_argument("--results", type=Path, help="file of the runs")
    parser.add_argument("--show", action="store_true", help="only print the table")
    options = parser.parse_args()
    quietly()
    problem = PROBLEMS[options.task]()
    path = Path(__file__).parent / f"convergence-{problem.name}.json"
    results = results_in(options.results or path, problem)
    if not options.show:
        race = Race(problem, results)
        methods = options.methods or [*problem.contenders]
        for method in methods:
            race.choose(method)
        race.report(methods)
    print(table_text(problem, results))


if __name__ == "__main__":
    main()
