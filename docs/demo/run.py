"""The demo: fine-tune MiniLM, compress what fine-tuning changed, and see what it costs.

``python docs/demo/run.py`` fine-tunes a small sentence encoder on a classification task, then does
all the rest through the command line, as a reader would: inspect, decompose, verify, apply, export,
heal.
It needs no network and some minutes on two cores, of which the fine-tuning is cached.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from docstrings import LABELS, Item, task, texts_beside
from quiet import quietly
from report import Agreement, Row, save_picture, save_results, save_table, table, winners
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    import torch

METHODS = ("svd", "tucker2", "tucker")
LOGITS_TOLERANCE = 1e-4  # PEFT against `apply --dtype float32`, relative
SAME_CLASS = 0.99  # PEFT against `apply --dtype bfloat16`, share of the items that are no ties


class CommandLine:
    """Runs ``tdecomp`` commands; each subcommand is shown the first time it is run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen: set[str] = set()

    def __call__(self, *arguments: str | Path) -> None:
        """Run one command; stop the demo with its message if it fails."""
        words = [str(argument) for argument in arguments]
        first = words[0] not in self._seen
        self._seen.add(words[0])
        if not first and words[0] == "decompose":
            words.append("--quiet")
        line = shlex.join(["tdecomp", *words])
        if first:
            self.console.print(f"\n$ {line}", style="bold", markup=False, soft_wrap=True)
        done = subprocess.run(
            [sys.executable, "-m", "tdecomp", *words],
            env={**os.environ, "COLUMNS": str(self.console.width)},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            raise SystemExit(f"$ {line}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        if first and done.stdout.strip():
            self.console.print(done.stdout.rstrip(), markup=False, highlight=False, soft_wrap=True)


class Workplace(NamedTuple):
    """What every stage of the demo needs."""

    output: Path
    test: list[Item]
    run: CommandLine
    console: Console

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.output / "models" / "base"

    @property
    def tuned(self) -> Path:
        """Folder of the fine-tuned model."""
        return self.output / "models" / "tuned"

    def factors(self, method: str, budget: int) -> Path:
        """Folder of one decomposition."""
        return self.output / f"{method}-{budget}"

    def logits(self, folder: Path, *, lora: Path | None = None) -> "torch.Tensor":
        """Class scores ``(item, label)`` of the test items, with a PEFT adapter on top if given."""
        import finetune

        model = finetune.load(folder)
        if lora is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(lora)).eval()
        return finetune.logits(model, finetune.tokenizer(self.base), self.test)


@contextmanager
def advancing(console: Console, text: str, total: int) -> Iterator[Progress]:
    """Show a progress bar with the remaining time; ``advance(progress)`` moves it."""
    with Progress(console=console) as progress:
        progress.add_task(text, total=total)
        yield progress


def advance(progress: Progress) -> None:
    """Move the only bar of `progress` one step."""
    progress.advance(progress.task_ids[0])


def fine_tune(place: Workplace, train: list[Item], *, steps: int, seed: int) -> None:
    """Make the base and the tuned model, or find them in the output folder."""
    import finetune

    recipe = finetune.Recipe(steps=steps, seed=seed)
    with advancing(place.console, f"Fine-tune MiniLM, {steps} steps", steps) as progress:
        cached = finetune.cached_models(
            place.output / "models", train, recipe, on_step=lambda loss: advance(progress)
        )
        if cached:
            progress.update(progress.task_ids[0], completed=steps, description="Fine-tuned before")


def compress(place: Workplace, budgets: list[int]) -> list[Row]:
    """Decompose the delta by every method within every budget; verify, apply and test each."""
    from finetune import accuracy

    rows: list[Row] = []
    applied = place.output / "applied"  # 90 MB, written anew each time
    total = len(METHODS) * len(budgets)
    with advancing(place.console, "Decompose, verify, apply, test", total + 1) as progress:
        before, after = (
            accuracy(place.logits(folder), place.test) for folder in (place.base, place.tuned)
        )
        advance(progress)
        delta_params = 0
        for method in METHODS:
            for budget in budgets:
                out = place.factors(method, budget)
                chosen = ("--method", method, "--budget", str(budget))
                place.run("decompose", place.base, place.tuned, "-o", out, *chosen, "--overwrite")
                place.run("verify", out, place.base, place.tuned)
                apply = ("apply", out, place.base, "-o", applied, "--overwrite")
                place.run(*apply, "--dtype", "float32")
                report = json.loads((out / "report.json").read_text(encoding="utf-8"))
                n_params, delta_params = report["n_params"], report["delta_params"]
                score = accuracy(place.logits(applied), place.test)
                share = n_params / delta_params
                rows.append(Row(method, budget, n_params, share, report["error"], score))
                advance(progress)
    base = Row("base", None, 0, 0.0, 1.0, before)
    tuned = Row("tuned", None, delta_params, 1.0, 0.0, after)
    return [base, *rows, tuned]


def heal(place: Workplace, budget: int, texts: list[str], *, steps: int) -> Row:
    """Let the factors of the smallest budget learn from the tuned model, and test them."""
    from finetune import accuracy

    file, healed = place.output / "texts.txt", place.output / f"svd-{budget}-healed"
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    with advancing(place.console, f"Heal, {steps} steps", 1) as progress:
        pair = (place.factors("svd", budget), place.base, place.tuned)
        how = ("--text", file, "--steps", str(steps), "--length", "64")
        place.run("heal", *pair, *how, "-o", healed, "--overwrite")
        applied = place.output / "applied"
        apply = ("apply", healed, place.base, "-o", applied, "--overwrite")
        place.run(*apply, "--dtype", "float32")
        report = json.loads((healed / "report.json").read_text(encoding="utf-8"))
        score = accuracy(place.logits(applied), place.test)
        advance(progress)
    n_params = report["n_params"]
    share = n_params / report["delta_params"]
    return Row("svd, healed", budget, n_params, share, report["error"], score)


def check_peft(place: Workplace, budget: int) -> list[Agreement]:
    """Compare each method's LoRA, loaded by PEFT, with the model that ``apply`` writes.

    Raises
    ------
    SystemExit
        The two disagree by more than ``LOGITS_TOLERANCE`` or ``SAME_CLASS`` allow.
    """
    agreements: list[Agreement] = []
    applied = place.output / "applied"
    with advancing(place.console, "Export, load in PEFT, compare", len(METHODS)) as progress:
        for method in METHODS:
            out = place.factors(method, budget)
            lora = place.output / f"lora-{method}"
            place.run("export", out, "--lora", lora, "--overwrite")
            ours = place.logits(place.base, lora=lora)

            apply = ("apply", out, place.base, "-o", applied, "--overwrite", "--dtype")
            place.run(*apply, "float32")
            exact = place.logits(applied)
            place.run(*apply, "bfloat16")
            rounded = place.logits(applied)

            difference = ((ours - exact).norm() / exact.norm()).item()
            same = _same_class(ours, exact, rounded)
            agreements.append(Agreement(method, budget, difference, same))
            advance(progress)
    for one in agreements:
        line = (
            f"{one.method}, PEFT against apply: logits differ by {one.logits_difference:.1e}; "
            f"in bfloat16 the class agrees on {one.same_class:.1%} of the items it can tell apart"
        )
        if one.logits_difference > LOGITS_TOLERANCE or one.same_class < SAME_CLASS:
            raise SystemExit(f"{line}; allowed: {LOGITS_TOLERANCE:.0e}, {SAME_CLASS:.0%}")
        place.console.print(line, highlight=False, soft_wrap=True)
    return agreements


def _same_class(ours: "torch.Tensor", exact: "torch.Tensor", rounded: "torch.Tensor") -> float:
    """Share of the items with the same class, among those that storing in bfloat16 can tell apart.

    Two best logits closer than four times what the rounding of the weights moves a logit are a tie.
    """
    best = exact.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 4 * (exact - rounded).square().mean().sqrt()
    same = ours.argmax(dim=1) == rounded.argmax(dim=1)
    return same[clear].double().mean().item() if bool(clear.any()) else 1.0


def main() -> None:
    """Run the whole demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write")
    parser.add_argument("--budgets", type=int, nargs="+", default=[60_000, 240_000, 960_000])
    parser.add_argument("--steps", type=int, default=80, help="fine-tuning steps, batches of 32")
    parser.add_argument("--heal-steps", type=int, default=60, help="steps of healing")
    parser.add_argument("--limit", type=int, help="use only so many test items")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    console = Console()
    with console.status("Reading docstrings, loading torch and transformers"):
        train, test = task(options.seed)
        quietly()
    place = Workplace(options.output, test[: options.limit], CommandLine(console), console)
    budgets = sorted(options.budgets)
    console.print(
        f"From which of {len(LABELS)} modules is a docstring? "
        f"{len(train)} to train, {len(place.test)} to test"
    )

    fine_tune(place, train, steps=options.steps, seed=options.seed)
    place.run("inspect", place.base)
    rows = compress(place, budgets)
    agreements = check_peft(place, budgets[len(budgets) // 2])
    beside = texts_beside(test, seed=options.seed)
    rows.insert(-1, heal(place, budgets[0], beside, steps=options.heal_steps))

    console.print()
    console.print(table(rows))
    console.print(winners(rows), highlight=False, soft_wrap=True)
    save_table(place.output / "table.txt", rows)
    save_picture(place.output / "error-accuracy.png", rows)
    settings = {"steps": options.steps, "seed": options.seed, "test_items": len(place.test)}
    save_results(place.output / "results.json", rows, agreements, **settings)
    for name in ("table.txt", "error-accuracy.png", "results.json"):
        console.print(f"wrote {place.output / name}", soft_wrap=True)


if __name__ == "__main__":
    main()
