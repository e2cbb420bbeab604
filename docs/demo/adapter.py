"""Train any adapter of the catalogue: ``python docs/demo/adapter.py --method lotr --rank 8``.

MiniLM learns to tell docstrings apart by their module, as in the demo; here only the factors of
an adapter on query, key and value are trained, and the classifier. It needs no network.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetune
import torch
from docstrings import LABELS, Item, task
from quiet import quietly
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tdecomp import ArgumentError, TdecompError
from tdecomp_torch import Adapter, attach

TARGETS = ("query", "key", "value")


@dataclass(frozen=True)
class Trained:
    """A trained model and what it took.

    Attributes
    ----------
    model, adapter
        The adapted model, and the handle to its adapter (None for PEFT's).
    n_adapter, n_head
        Numbers trained in the adapter and in the classifier.
    seconds
        Median time of a step.
    loss
        Of the last step.
    """

    model: Any
    adapter: Adapter | None
    n_adapter: int
    n_head: int
    seconds: float
    loss: float


def fresh_model(seed: int) -> Any:
    """MiniLM with a classifier that starts from `seed`."""
    names = dict(enumerate(LABELS))
    model = finetune.load(
        finetune.minilm(), id2label=names, label2id={name: label for label, name in names.items()}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        finetune.fresh_head(model)
    return model


def train_adapter(
    put: Callable[[Any], Adapter],
    items: list[Item],
    recipe: finetune.Recipe,
    *,
    on_step: Callable[[float], None] = lambda loss: None,
) -> Trained:
    """Put an adapter on a fresh model and train it with the classifier.

    Parameters
    ----------
    put
        Attaches it, with the classifier as ``also_train``.
    items
        Training items.
    recipe
        `lr` is that of the factors, `head_lr` that of the classifier.
    on_step
        Called with the loss after every step.
    """
    model = fresh_model(recipe.seed)
    adapter = put(model)
    groups = adapter.param_groups(recipe.lr, also_train=recipe.head_lr)
    seconds, losses = timed_steps(
        model, items, recipe, groups, on_step=on_step, after=lambda n: adapter.step(n)
    )
    head = sum(p.numel() for p in adapter.trained_besides().values())
    return Trained(model, adapter, adapter.n_trainable, head, seconds, losses)


def cached_lora(folder: Path, items: list[Item], recipe: finetune.Recipe, *, rank: int = 8) -> bool:
    """Make `folder` hold MiniLM with a trained LoRA of query, key and value in its weights.

    The weights are float32; whether the folder was there already, as `finetune.cached_models`.
    """

    def put(model: Any) -> Adapter:
        return attach(model, "lora", rank=rank, targets=TARGETS, also_train=["classifier"])

    def save(new: Path) -> None:
        done = train_adapter(put, items, recipe)
        assert done.adapter is not None
        done.adapter.merge(keep=None)
        done.adapter.detach()
        done.model.save_pretrained(new)
        finetune.tokenizer(finetune.minilm()).save_pretrained(new)

    return finetune.cached(folder, {**recipe.key(items), "rank": rank}, save)


def timed_steps(
    model: Any,
    items: list[Item],
    recipe: finetune.Recipe,
    groups: list[dict[str, Any]],
    *,
    on_step: Callable[[float], None],
    after: Callable[[int], None],
) -> tuple[float, float]:
    """Train; the median time of a step and the last loss."""
    times, last, before = [], 0.0, time.perf_counter()

    def told(loss: float) -> None:
        nonlocal last, before
        last, now = loss, time.perf_counter()
        times.append(now - before)
        before = now
        after(len(times))
        on_step(loss)

    tokens = finetune.tokenizer(finetune.minilm())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        finetune.train_steps(model, tokens, items, recipe, groups, on_step=told)
    return statistics.median(times), last


def test_accuracy(model: Any, items: list[Item]) -> float:
    """Share of items that get their label."""
    tokens = finetune.tokenizer(finetune.minilm())
    return finetune.accuracy(finetune.logits(model, tokens, items), items)


def peak_memory() -> float:
    """Most main memory this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def parse_rank(text: str) -> int | Mapping[str, int] | None:
    """``"8"``, or ``"r=8,s=4"`` for ranks by letter; empty for a method without a rank."""
    try:
        if "=" in text:
            pairs = (pair.split("=") for pair in text.split(","))
            return {letter.strip(): int(size) for letter, size in pairs}
        return int(text) if text else None
    except ValueError:
        raise ArgumentError(f"cannot read the rank {text!r}: write 8, or r=8,s=4") from None


def main() -> None:
    """Train one adapter and say how it went."""
    parser = argparse.ArgumentParser(description="Train an adapter on MiniLM.")
    parser.add_argument("--method", default="lotr", help="row of the catalogue")
    parser.add_argument("--rank", default="8", help="8, or r=8,s=4")
    parser.add_argument("--alpha", type=float, help="default: that of the method's paper")
    parser.add_argument("--targets", default=",".join(TARGETS), help="names of modules")
    parser.add_argument("--steps", type=int, default=80, help="of 32 docstrings")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of the factors")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="folder for the trained adapter")
    options = parser.parse_args()
    quietly()
    console, data = Console(), task(0)
    recipe = finetune.Recipe(steps=options.steps, lr=options.lr, seed=options.seed)

    def put(model: Any) -> Adapter:
        adapter = attach(
            model,
            options.method,
            targets=options.targets.split(","),
            rank=parse_rank(options.rank),
            alpha=options.alpha,
            dropout=options.dropout,
            seed=options.seed,
            also_train=["classifier"],
            tokens=recipe.batch * finetune.MAX_LENGTH,
        )
        console.print(str(adapter), highlight=False, markup=False)
        return adapter

    try:
        with Progress(console=console) as progress:
            bar = progress.add_task("training", total=options.steps)
            advance = lambda loss: progress.update(
                bar, advance=1, description=f"training, loss {loss:.2f}"
            )
            done = train_adapter(put, data.train, recipe, on_step=advance)
            if options.save is not None:
                assert done.adapter is not None
                done.adapter.save(options.save)
    except TdecompError as error:
        raise SystemExit(f"error: {error}") from None
    report(console, done, data.test)


def report(console: Console, done: Trained, test: list[Item]) -> None:
    """Print accuracy, size, time and memory; the merged model must agree."""
    accuracy = test_accuracy(done.model, test)
    assert done.adapter is not None
    done.adapter.merge(keep=None)
    table = Table("", "")
    table.add_row("test accuracy", f"{accuracy:.3f}")
    table.add_row("the same, merged into the weights", f"{test_accuracy(done.model, test):.3f}")
    table.add_row("trainable parameters, adapter", f"{done.n_adapter:,}")
    table.add_row("trainable parameters, classifier", f"{done.n_head:,}")
    table.add_row("time per step", f"{1e3 * done.seconds:.0f} ms")
    table.add_row("peak memory of the process", f"{peak_memory():.2f} GB")
    console.print(table)


if __name__ == "__main__":
    main()
