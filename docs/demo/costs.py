"""What every method costs, in the columns of PEFT's comparison: ``python docs/demo/costs.py``.

Each row is trained for a few steps on the docstring task in a process of its own, on one thread:
the processor's seconds of a step (the median), the most memory, the file of the adapter alone, the
numbers that are trained. Accuracies are those of ``comparison.json``, where a row was trained at a
sweep of rates. All is kept in ``costs.json``; ``--show`` prints the table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compare import METHODS, RESULTS, STEPS, THEIRS, results_in
from runs import deviation, markdown

COSTS = Path(__file__).parent / "costs.json"
FEW = 4
ROWS = tuple(dict.fromkeys((*METHODS, *THEIRS)))
HEADINGS = ("test accuracy", "train time", "peak memory", "file size", "trainable numbers")


def measured(row: str) -> dict[str, float]:
    """Train a row here, and say what that took."""
    import finetune
    import torch
    from adapter import TARGETS, fresh_model
    from docstrings import task

    torch.set_num_threads(1)
    model = fresh_model(0)
    if row in THEIRS:
        import peft

        adapted: Any = peft.get_peft_model(model, THEIRS[row](peft))
        trained, save = adapted, adapted.save_pretrained
    else:
        from tdecomp_torch import attach

        tokens = finetune.Recipe.batch * finetune.MAX_LENGTH
        adapter = attach(model, row, targets=list(TARGETS), rank=METHODS[row], tokens=tokens)
        trained, save = model, adapter.save
    factors = [p for p in trained.parameters() if p.requires_grad]
    seconds, before = [], time.process_time()

    def told(loss: float) -> None:
        nonlocal before
        del loss
        now = time.process_time()
        seconds.append(now - before)
        before = now

    recipe = finetune.Recipe(steps=FEW)
    texts, groups = task(0).train, [{"params": factors, "lr": recipe.lr}]
    finetune.train_steps(
        trained, finetune.tokenizer(finetune.minilm()), texts, recipe, groups, on_step=told
    )
    peak = _peak()
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/adapter")
        files = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    numbers = sum(p.numel() for p in factors)
    return {"step": statistics.median(seconds), "memory": peak, "file": files, "trained": numbers}


def _peak() -> int:
    """Most bytes that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _run(row: str) -> dict[str, float]:
    found = subprocess.run(
        [sys.executable, __file__, "--row", row], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def rows(costs: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """A line for every row that was measured."""
    results, found = results_in(RESULTS), []
    for row in ROWS:
        own = costs.get(row)
        if own is None:
            continue
        accuracies = [run.accuracy for run in results.reported(row).values()]
        accuracy = "not run"
        if accuracies:
            accuracy = f"{statistics.mean(accuracies):.3f} ± {deviation(accuracies):.3f}"
        found.append(
            (
                row,
                accuracy,
                f"{own['step'] * STEPS:.0f} s",
                f"{own['memory'] / 1e6:.0f} MB",
                f"{own['file'] / 1e3:,.0f} kB",
                f"{own['trained']:,.0f}",
            )
        )
    return found


def table_text(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The table in markdown."""
    return markdown(("method", *HEADINGS), rows(costs))


def kept() -> dict[str, dict[str, float]]:
    """What was measured so far."""
    return json.loads(COSTS.read_text(encoding="utf-8"))["rows"] if COSTS.exists() else {}


def main() -> None:
    """Measure what was not measured, then print the table."""
    parser = argparse.ArgumentParser(description="Measure what every method costs.")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--row", help="measure this one here and print it")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measured(options.row)))
        return
    costs = kept()
    for row in ROWS if not options.show else ():
        if row not in costs:
            costs[row] = _run(row)
            plain = {"command": "python docs/demo/costs.py", "steps": STEPS, "rows": costs}
            COSTS.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    print(table_text(costs))


if __name__ == "__main__":
    main()
