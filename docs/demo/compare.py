"""Compare adapters of equal size on the docstring task: ``python docs/demo/compare.py``.

Every method trains as many adapter parameters as LoRA of rank 1 on query, key and value (within 5 %
where its ranks allow; others have a star), and the classifier besides. One grid of learning rates
for all; each method takes the one that is best on a part of the training items, with a seed that is
not reported. Then it is trained on all of them with the reported seeds. It takes hours; every run
is kept in ``comparison.json`` beside this file as soon as it is done, and a second start goes on
from there.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import finetune
import torch
from adapter import (
    TARGETS,
    Trained,
    fresh_model,
    test_accuracy,
    timed_steps,
    train_adapter,
)
from docstrings import Item, task
from quiet import quietly
from rich.console import Console
from rich.table import Table
from runs import Results, Run, Sweep, deviation, markdown

from tdecomp_torch import Adapter, attach

RESULTS = Path(__file__).parent / "comparison.json"
SIZE = 13_824  # LoRA of rank 1 on 18 matrices of 384 x 384
STEPS = 80
PEFT = "PEFT LoRA"
THEIRS: Mapping[str, Callable[[Any], Any]] = {
    PEFT: lambda peft: peft.LoraConfig(r=1, lora_alpha=1, target_modules=list(TARGETS)),
    "PEFT VeRA": lambda peft: peft.VeraConfig(r=384, target_modules=list(TARGETS)),
    "PEFT RandLoRA": lambda peft: peft.RandLoraConfig(r=32, target_modules=list(TARGETS)),
}
"""Rows of PEFT's own, by the library."""

METHODS: Mapping[str, dict[str, int] | None] = {
    PEFT: None,
    "lora": {"r": 1},
    "lotr": {"r": 14, "s": 14},
    "lorta": {"r": 32},
    "tenslora_qkv_depth": {"r": 14, "s": 14, "u": 3, "v": 6},
    "tenslora_qkv_depth_cp": {"r": 18},
    "fact_tk": {"r": 14, "s": 14, "t": 14},
    "tt_lora": {"r1": 5, "r2": 5, "r3": 5, "r4": 5, "r5": 4},
    "vera": {"r": 384},
    "lora_xs": {"r": 28},
    "PEFT VeRA": None,
}


def train(method: str, items: list[Item], recipe: finetune.Recipe) -> Trained:
    """One training of one method."""
    if method in THEIRS:
        return _train_peft(method, items, recipe)

    def put(model: Any) -> Adapter:
        return attach(
            model,
            method,
            targets=list(TARGETS),
            rank=METHODS[method],
            seed=recipe.seed,
            also_train=["classifier"],
            tokens=recipe.batch * finetune.MAX_LENGTH,
        )

    return train_adapter(put, items, recipe)


def _train_peft(method: str, items: list[Item], recipe: finetune.Recipe) -> Trained:
    import peft

    model = fresh_model(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapted = peft.get_peft_model(model, THEIRS[method](peft))
    factors = [p for p in adapted.parameters() if p.requires_grad]
    head = list(model.classifier.parameters())
    for p in head:
        p.requires_grad_(True)
    groups = [{"params": factors, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    silent: Any = lambda _: None
    seconds, loss = timed_steps(model, items, recipe, groups, on_step=silent, after=silent)
    sizes = [sum(p.numel() for p in group) for group in (factors, head)]
    return Trained(model, None, sizes[0], sizes[1], seconds, loss)


def results_in(path: Path) -> Results[Run]:
    """The runs so far, in a file."""
    about = {
        "command": "python docs/demo/compare.py",
        "steps": STEPS,
        "batch": finetune.Recipe.batch,
        "size": SIZE,
    }
    return Results(path, about, Run)


class Comparison(Sweep[Run]):
    """All trainings of the table."""

    def __init__(self, results: Results[Run], console: Console):
        self.results, self.console = results, console
        data = task(0)
        cut = len(data.train) // 5
        self.all, self.test = data.train, data.test
        self.held_out, self.rest = data.train[:cut], data.train[cut:]

    def run(self, method: str, lr: float, seed: int, *, choosing: bool) -> None:
        """One training, unless it was done before."""
        if (method, lr, seed, choosing) in self.results.runs:
            return
        items = self.rest if choosing else self.all
        recipe = finetune.Recipe(steps=STEPS, lr=lr, seed=seed)
        done = train(method, items, recipe)
        accuracy = test_accuracy(done.model, self.held_out if choosing else self.test)
        run = Run(
            method,
            lr,
            seed,
            choosing,
            done.n_adapter,
            done.n_head,
            accuracy,
            done.loss,
        )
        self.results.add(run)
        what = "choosing" if choosing else "reported"
        self.console.print(
            f"{method}, rate {lr:g}, seed {seed} ({what}): accuracy {accuracy:.3f},"
            f" {done.n_adapter:,} parameters, {1e3 * done.seconds:.0f} ms a step",
            highlight=False,
        )


HEADINGS = (
    "adapter",
    "of LoRA's",
    "classifier",
    "rate",
    "test accuracy",
    "minus PEFT LoRA",
    "seeds",
)


def rows(results: Results[Run]) -> list[tuple[str, ...]]:
    """Method, sizes, rate, accuracy over the reported seeds; a size that is off has a star.

    Accuracy is mean and standard deviation; what it is more than PEFT's LoRA with the same seeds,
    mean and standard error.
    """
    found = []
    baseline = results.reported(PEFT)
    for method in METHODS:
        own = list(results.reported(method).values())
        if own:
            accuracies = [r.accuracy for r in own]
            more = [r.accuracy - baseline[r.seed].accuracy for r in own if r.seed in baseline]
            share = own[0].n_adapter / SIZE
            row = (
                method,
                f"{own[0].n_adapter:,}",
                f"{share:.3f}{'' if abs(share - 1) <= 0.05 else ' *'}",
                f"{own[0].n_head:,}",
                f"{own[0].lr:g}",
                f"{statistics.mean(accuracies):.3f} ± {deviation(accuracies):.3f}",
                f"{statistics.mean(more):+.3f} ± {deviation(more) / len(more) ** 0.5:.3f}"
                if more and method != PEFT
                else "",
                str(len(own)),
            )
            found.append(row)
    return found


def table_text(results: Results[Run]) -> str:
    """The same as a table in markdown."""
    return markdown(("method", *HEADINGS), rows(results))


def table(results: Results[Run]) -> Table:
    """The same for the screen."""
    made = Table("method", title="Docstring task, MiniLM, query, key and value")
    for heading in HEADINGS:
        made.add_column(heading, justify="right")
    for row in rows(results):
        made.add_row(*row)
    return made


def main() -> None:
    """Run what has not been run, then print the table."""
    parser = argparse.ArgumentParser(description="Compare adapters of equal size.")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the runs")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--markdown", action="store_true", help="print it as markdown")
    options = parser.parse_args()
    quietly()
    console, results = Console(), results_in(options.results)
    if not options.show:
        comparison = Comparison(results, console)
        methods = options.methods.split(",")
        known = dict.fromkeys((*METHODS, *THEIRS))
        if unknown := [method for method in methods if method not in known]:
            raise SystemExit(f"error: no {unknown[0]!r} here: there are {', '.join(known)}")
        for method in methods:
            comparison.choose(method)
        comparison.report(methods)
    if options.markdown:
        print(table_text(results))
    else:
        console.print(table(results))


if __name__ == "__main__":
    main()
