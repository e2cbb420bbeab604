"""What healing is worth: ``python docs/demo/healing.py --seeds 0 1 2 --output healing.json``.

For every seed MiniLM is fine-tuned as in the demo. At every budget the delta is decomposed by
independent SVDs, healed, and the same ranks are trained from a default start (B zero, A at random)
on the same texts for the same steps. Texts are the docstrings that are not tested on, without
labels. It needs no network; a seed takes some ten minutes on two cores.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import torch
from docstrings import Item, task, texts_beside
from quiet import quietly

from tdecomp import jobs
from tdecomp.files import Factors, load_factors
from tdecomp_torch import apply, heal

BATCH = 32


def batches_of(tokens: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Texts as padded batches, cut as in the demo."""
    items = [Item(text, 0) for text in texts]
    return [
        dict(finetune.encode(tokens, items[k : k + BATCH])) for k in range(0, len(items), BATCH)
    ]


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


def measure(folder: Path, seed: int, budgets: list[int], steps: int, rate: float) -> list[dict]:
    """All rows of one seed."""
    train, test = task(seed)
    finetune.cached_models(folder, train, finetune.Recipe(seed=seed))
    base, tuned = folder / "base", folder / "tuned"
    tokens = finetune.tokenizer(base)
    ours, theirs = finetune.load(base), finetune.load(tuned)
    need = round(steps * BATCH / 0.8) + BATCH
    batches = batches_of(tokens, texts_beside(test, seed=seed)[:need])
    rows: list[dict] = [{"seed": seed, "method": "tuned", **scores(theirs, tokens, test)}]
    print(rows[-1], flush=True)
    for budget in budgets:
        out = folder.parent / f"svd-{seed}-{budget}"
        jobs.decompose(base, tuned, out, budget=budget, overwrite=True)
        made = load_factors(out)
        starts = {"decomposed, healed": made, "default start, trained": default_start(made, seed)}
        found = {"decomposed": made}
        for name, start in starts.items():
            healed = heal(ours, theirs, start, batches, steps=steps, rate=rate, seed=seed)
            assert healed.factors is not None
            found[name] = healed.factors
        for name, factors in found.items():
            row = {"seed": seed, "budget": budget, "method": name, "n_params": factors.n_params}
            rows.append(row | scores(apply(finetune.load(base), factors), tokens, test))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write every number as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("demo-output/healing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=int, nargs="+", default=[15_000, 60_000, 240_000])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    quietly()
    rows = []
    for seed in options.seeds:
        models = options.models / f"models-{seed}"
        rows += measure(models, seed, options.budgets, options.steps, options.rate)
        settings = {"steps": options.steps, "rate": options.rate}
        text = json.dumps({**settings, "rows": rows}, indent=1) + "\n"
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
