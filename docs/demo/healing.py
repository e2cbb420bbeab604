"""What healing is worth: ``python docs/demo/healing.py``.

For every seed MiniLM is fine-tuned as in the demo. At every budget the delta is decomposed by
independent SVDs, healed, and the same ranks are trained from a default start (B zero, A at random)
on the same texts for the same steps. Texts are the docstrings that are not tested on, without
labels; a batch has texts of about one length. It needs no network; a seed takes some ten minutes
on one core. Rows are kept in ``healing.json`` beside this file as soon as they are measured, and a
second start goes on from there.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import torch
from docstrings import Item, task, texts_beside
from quiet import quietly
from runs import deviation, markdown

from tdecomp import jobs
from tdecomp.files import Factors, load_factors
from tdecomp_torch import apply, heal

RESULTS = Path(__file__).parent / "healing.json"
SEEDS = (0, 1, 2)
BUDGETS = (15_000, 60_000, 240_000)
BATCH = 32
NEAR = 8
"""Batches whose texts are sorted by length: half of a batch would be padding otherwise."""
HEALED, DEFAULT = "decomposed, healed", "default start, trained"
METHODS = ("decomposed", HEALED, DEFAULT)


def batches_of(tokens: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Texts as padded batches, cut as in the demo, in a random order of lengths."""
    made, size = [], NEAR * BATCH
    for start in range(0, len(texts), size):
        near = sorted(texts[start : start + size], key=len)
        items = [Item(text, 0) for text in near]
        parts = [items[k : k + BATCH] for k in range(0, len(items), BATCH)]
        order = np.random.default_rng(start).permutation(len(parts))
        made += [dict(finetune.encode(tokens, parts[k])) for k in order]
    return made


def remembering(model: Any) -> Any:
    """The model, which computes what it gives for a batch once."""
    known: dict[bytes, Any] = {}
    forward = model.forward

    def once(**batch: torch.Tensor) -> Any:
        key = batch["input_ids"].numpy().tobytes()
        if key not in known:
            known[key] = forward(**batch)
        return known[key]

    model.forward = once
    return model


def default_start(factors: Factors, seed: int) -> Factors:
    """The same ranks, as LoRA starts: B zero, A at random."""
    rng = np.random.default_rng(seed)
    parts = []
    for part in factors.parts:
        arrays = dict(part.tensor.arrays)
        bound = 1 / np.sqrt(arrays["vh"].shape[1])
        arrays["u"] = np.zeros_like(arrays["u"])
        arrays["s"] = np.ones_like(arrays["s"])
        arrays["vh"] = rng.uniform(-bound, bound, arrays["vh"].shape).astype(np.float32)
        parts.append(replace(part, tensor=part.tensor.with_arrays(arrays)))
    return replace(factors, parts=tuple(parts))


def scores(model: Any, tokens: Any, test: list[Item]) -> dict[str, float]:
    """Accuracy and cross entropy on the test items."""
    logits = finetune.logits(model, tokens, test)
    labels = torch.tensor([item.label for item in test])
    entropy = torch.nn.functional.cross_entropy(logits, labels).item()
    return {"accuracy": finetune.accuracy(logits, test), "cross_entropy": entropy}


class Rows:
    """What was measured so far, in a file."""

    def __init__(self, path: Path, steps: int, rate: float):
        self.path, self.settings = path, {"steps": steps, "rate": rate, "batch": BATCH}
        plain = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.rows: list[dict[str, Any]] = plain.pop("rows", [])
        if plain and plain != self.settings:
            raise SystemExit(f"error: {path} was measured with {plain}: give another --output")

    def add(self, **row: Any) -> None:
        """Keep one row; the file is replaced whole."""
        self.rows.append(row)
        print(row, flush=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({**self.settings, "rows": self.rows}, indent=1) + "\n", encoding="utf-8"
        )
        temporary.replace(self.path)

    def known(self, seed: int, method: str, budget: int | None) -> bool:
        """Whether that was measured."""
        key = (seed, method, budget)
        return key in {(r["seed"], r["method"], r.get("budget")) for r in self.rows}

    def seeds(self, budget: int) -> list[int]:
        """Seeds of which all methods were measured at a budget."""
        asked = [("tuned", None), *((method, budget) for method in METHODS)]
        seeds = sorted({r["seed"] for r in self.rows})
        return [seed for seed in seeds if all(self.known(seed, *what) for what in asked)]

    def of(self, method: str, budget: int | None, seeds: list[int]) -> list[dict[str, Any]]:
        """One row for each of some seeds."""
        own = [r for r in self.rows if (r["method"], r.get("budget")) == (method, budget)]
        return [r for r in own if r["seed"] in seeds]


def measure(rows: Rows, folder: Path, seed: int, budgets: list[int]) -> None:
    """All rows of one seed."""
    train, test = task(seed)
    finetune.cached_models(folder, train, finetune.Recipe(seed=seed))
    base, tuned = folder / "base", folder / "tuned"
    tokens = finetune.tokenizer(base)
    ours, theirs = finetune.load(base), remembering(finetune.load(tuned))
    for name, model in (("base", ours), ("tuned", theirs)):
        if not rows.known(seed, name, None):
            rows.add(seed=seed, method=name, **scores(model, tokens, test))
    steps, rate = rows.settings["steps"], rows.settings["rate"]
    need = round(steps * BATCH / 0.8) + BATCH
    batches = batches_of(tokens, texts_beside(test, seed=seed)[:need])
    for budget in budgets:
        out = folder.parent / f"svd-{seed}-{budget}"
        jobs.decompose(base, tuned, out, budget=budget, overwrite=True)
        made = load_factors(out)
        starts = {"decomposed": made, HEALED: made, DEFAULT: default_start(made, seed)}
        for method, start in starts.items():
            if rows.known(seed, method, budget):
                continue
            found: Factors | None = start
            if method != "decomposed":
                found = heal(
                    ours, theirs, start, batches, steps=steps, rate=rate, seed=seed
                ).factors
            assert found is not None
            adapted = apply(finetune.load(base), found)
            size = {"budget": budget, "n_params": found.n_params}
            rows.add(seed=seed, method=method, **size, **scores(adapted, tokens, test))


HEADINGS = ("method", "numbers", "test accuracy", "minus tuned", "cross entropy", "seeds")


def table_text(rows: Rows) -> str:
    """Mean and standard deviation in markdown; at a budget all methods have the same seeds."""
    every = sorted({seed for budget in BUDGETS for seed in rows.seeds(budget)})
    tuned = {r["seed"]: r["accuracy"] for r in rows.of("tuned", None, every)}
    each = [(m, budget, rows.seeds(budget)) for budget in BUDGETS for m in METHODS]
    lines = []
    for method, budget, seeds in [("base", None, every), ("tuned", None, every), *each]:
        own = rows.of(method, budget, seeds)
        if not own:
            continue
        less = [r["accuracy"] - tuned[r["seed"]] for r in own]
        lines.append(
            (
                method,
                f"{round(statistics.mean(r['n_params'] for r in own)):,}" if budget else "",
                _spread([r["accuracy"] for r in own]),
                "" if method == "tuned" else _spread(less, sign="+"),
                _spread([r["cross_entropy"] for r in own], digits=2),
                str(len(own)),
            )
        )
    return markdown(HEADINGS, lines)


def _spread(values: list[float], *, digits: int = 3, sign: str = "") -> str:
    """Mean, and with more than one value their standard deviation."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {deviation(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    """Measure what was not measured, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("demo-output/healing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument("--show", action="store_true", help="only print the table")
    options = parser.parse_args()
    quietly()
    rows = Rows(options.output, options.steps, options.rate)
    for seed in () if options.show else options.seeds:
        measure(rows, options.models / f"models-{seed}", seed, options.budgets)
    print(table_text(rows))


if __name__ == "__main__":
    main()
