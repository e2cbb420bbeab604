"""What merges of adapters are worth: ``python docs/demo/merging.py``.

The labels of the docstring task are dealt out to three tasks. For every seed MiniLM gets a LoRA and
a classifier for each of them. Then every method of the merge table makes one LoRA of the three, of
the rank that each of them has, and every task is tried on it with its own classifier: as the merge
comes, and times the scale of ``SCALES`` that is best on training items that were held out. Methods
that ask for statistics get those of every adapted model on its own task. ``slerp`` takes two
adapters and is left out. The same three adapters are put into common bases, and beside them stand
the best LoRAs of each alone in as many numbers. (Bytes are those of the files: LoRA folders hold
the classifiers, too.)

It needs no network; a seed takes some ten minutes on one core. Rows are kept in ``merging.json``
beside this file as soon as they are measured, and a second start goes on from there.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import finetune
import torch
from adapter import fresh_model
from docstrings import LABELS, Item, task
from quiet import quietly
from runs import deviation, markdown
from safetensors.torch import load_file, save_file

from tdecomp import jobs
from tdecomp.collections.merging import MERGES
from tdecomp.files.loras import read_adapter
from tdecomp.files.statistics_file import save_statistics
from tdecomp_torch import attach, capture

RESULTS = Path(__file__).parent / "merging.json"
SEEDS = (0, 1, 2)
TASKS = tuple(tuple(range(first, len(LABELS), 3)) for first in range(3))
NAMES = tuple(f"task{number}" for number in range(1, len(TASKS) + 1))
TARGETS = ("query", "key", "value")
SCALES = (0.4, 1.0, 2.5)
METHODS = tuple(name for name in MERGES if name != "slerp")
BASE, OWN = "no adapter", "own adapter"
SHARED, ALONE = "common bases", "resized alone"
BUDGETS = (0.5, 0.25)
"""Numbers of common bases, as a share of those of all adapters."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a run takes: a smaller one says less, and is over sooner.

    Attributes
    ----------
    steps, batch, rate, rank
        Of the training, and of every LoRA.
    held, tried
        Items of every task that a scale is chosen by, and that are tested on.
    seen
        Training items of every task that statistics are made of.
    """

    steps: int = 60
    batch: int = 16
    rate: float = 3e-3
    rank: int = 8
    held: int = 24
    tried: int = 48
    seen: int = 32


@dataclass(frozen=True)
class Single:
    """One task: its items, and the folder with its LoRA, its classifier and its statistics."""

    labels: tuple[int, ...]
    train: list[Item]
    held: list[Item]
    test: list[Item]
    folder: Path

    @property
    def lora(self) -> Path:
        """The adapter, a PEFT folder."""
        return self.folder / "lora"

    @property
    def seen(self) -> Path:
        """Moments of its inputs and the Fisher information of its weights."""
        return self.folder / "stats.safetensors"

    @cached_property
    def head(self) -> dict[str, torch.Tensor]:
        """The classifier."""
        return load_file(self.folder / "head.safetensors")


def single(number: int, seed: int, sizes: Sizes, models: Path) -> Single:
    """One of the tasks; what `models` does not hold of it yet is trained."""
    data, labels = task(seed), TASKS[number]
    train = [item for item in data.train if item.label in labels]
    test = [item for item in data.test if item.label in labels]
    held, train = train[: sizes.held], train[sizes.held :]
    one = Single(labels, train, held, test[: sizes.tried], models / f"{seed}-{NAMES[number]}")
    recipe = finetune.Recipe(steps=sizes.steps, batch=sizes.batch, lr=sizes.rate, seed=seed)
    key = {**recipe.key(train), "rank": sizes.rank, "seen": sizes.seen}
    finetune.cached(one.folder, key, lambda new: _train(new, one.train, recipe, sizes))
    return one


def _train(folder: Path, train: list[Item], recipe: finetune.Recipe, sizes: Sizes) -> None:
    """A LoRA and a classifier, and what the adapted model sees of its items."""
    model, tokens = fresh_model(recipe.seed), finetune.tokenizer(finetune.minilm())
    adapter = attach(
        model,
        "lora",
        targets=TARGETS,
        rank=sizes.rank,
        seed=recipe.seed,
        also_train=["classifier"],
    )
    groups = adapter.param_groups(recipe.lr, also_train=recipe.head_lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        finetune.train_steps(model, tokens, train, recipe, groups)
    adapter.save_lora(folder / "lora", base="all-MiniLM-L6-v2")
    adapter.merge(keep=None)
    adapter.detach()
    save_file(model.classifier.state_dict(), folder / "head.safetensors")
    items = train[: sizes.seen]
    batches = [_labelled(tokens, items[k : k + 8]) for k in range(0, len(items), 8)]
    seen = capture(model, batches, targets=TARGETS, inputs="whole", fisher=True)
    save_statistics(seen, folder / "stats.safetensors")


def _labelled(tokens: Any, items: list[Item]) -> dict[str, Any]:
    labels = torch.tensor([item.label for item in items])
    return {**finetune.encode(tokens, items), "labels": labels}


Deltas = Mapping[str, torch.Tensor]
"""What is added to the weights of modules."""


def deltas(lora: Path) -> Deltas:
    """ΔW of every module that an adapter changes."""
    pairs = read_adapter(lora).pairs
    return {site: torch.tensor(pair.dense(), dtype=torch.float32) for site, pair in pairs.items()}


class Judge:
    """MiniLM with anything added to its weights, tried on every task with its own classifier."""

    def __init__(self, seed: int, singles: Sequence[Single]):
        self.seed, self.singles = seed, singles
        self.model = fresh_model(seed)
        self.tokens = finetune.tokenizer(finetune.minilm())
        self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def put(self, added: Deltas, scale: float = 1.0) -> None:
        """Let the model be the base and what is added, times a scale."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(self.before[name])
            for site, delta in added.items():
                self.model.get_submodule(site).weight += scale * delta

    def accuracy(self, one: Single, items: list[Item]) -> float:
        """Share of a task's items that get their label, among the labels of the task."""
        self.model.classifier.load_state_dict(one.head)
        scores = finetune.logits(self.model, self.tokens, items)
        own = torch.full_like(scores, -torch.inf)
        own[:, one.labels] = scores[:, one.labels]
        return finetune.accuracy(own, items)

    def tested(self) -> list[float]:
        """Accuracy on the test items of every task."""
        return [self.accuracy(one, one.test) for one in self.singles]

    def held(self) -> float:
        """Mean accuracy on the items that were held out."""
        return statistics.mean(self.accuracy(one, one.held) for one in self.singles)

    def scaled(self, added: Deltas) -> dict[str, Any]:
        """Test accuracies as it comes, and times the best scale, of equal ones that next to 1."""
        heights: dict[float, float] = {}
        for scale in SCALES:
            self.put(added, scale)
            heights[scale] = self.held()
        best = max(SCALES, key=lambda scale: (heights[scale], -abs(scale - 1)))
        found = {}
        for scale in {1.0, best}:
            self.put(added, scale)
            found[scale] = self.tested()
        return {"accuracy": found[1.0], "scale": best, "scaled": found[best]}

    def of_each(self, loras: Sequence[Path]) -> list[float]:
        """Test accuracy of every task with an adapter of its own."""
        found = []
        for one, lora in zip(self.singles, loras, strict=True):
            self.put(deltas(lora))
            found.append(self.accuracy(one, one.test))
        return found


class Rows:
    """What was measured so far, in a file."""

    def __init__(self, path: Path, sizes: Sizes):
        self.path = path
        tasks = [[LABELS[label] for label in labels] for labels in TASKS]
        self.about = {"tasks": tasks, "scales": list(SCALES), **vars(sizes)}
        plain = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.rows: list[dict[str, Any]] = plain.pop("rows", [])
        if plain and plain != self.about:
            raise SystemExit(f"error: {path} was measured with {plain}: give another --output")

    def add(self, **row: Any) -> None:
        """Keep one row; the file is replaced whole."""
        self.rows.append(row)
        print(row, flush=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({**self.about, "rows": self.rows}, indent=1) + "\n", encoding="utf-8"
        )
        temporary.replace(self.path)

    def known(self, seed: int, method: str, share: float | None = None) -> bool:
        """Whether that was measured."""
        return any(row["seed"] == seed for row in self.of(method, share))

    def of(self, method: str, share: float | None = None) -> list[dict[str, Any]]:
        """One row for every seed."""
        return [r for r in self.rows if (r["method"], r.get("share")) == (method, share)]

    def complete(self, methods: Iterable[str]) -> list[int]:
        """Seeds of which all was measured: the others are in no table."""
        asked = [(name, None) for name in (BASE, OWN, *methods)]
        asked += [(name, share) for name in (SHARED, ALONE) for share in BUDGETS]
        seeds = sorted({row["seed"] for row in self.rows})
        return [seed for seed in seeds if all(self.known(seed, *what) for what in asked)]

    def over(
        self, seeds: Iterable[int], method: str, share: float | None = None
    ) -> list[dict[str, Any]]:
        """One row for each of some seeds."""
        return [row for row in self.of(method, share) if row["seed"] in seeds]


def measure(
    rows: Rows, seed: int, sizes: Sizes, models: Path, methods: Sequence[str] = METHODS
) -> None:
    """All rows of one seed that are not there."""
    singles = [single(number, seed, sizes, models) for number in range(len(TASKS))]
    judge = Judge(seed, singles)
    if not rows.known(seed, BASE):
        judge.put({})
        rows.add(seed=seed, method=BASE, accuracy=judge.tested())
    if not rows.known(seed, OWN):
        numbers = read_adapter(singles[0].lora).shapes.values()
        each = sizes.rank * sum(out + in_ for out, in_ in numbers)
        found = judge.of_each([one.lora for one in singles])
        rows.add(seed=seed, method=OWN, accuracy=found, numbers=each)
    for name in methods:
        if not rows.known(seed, name):
            rows.add(seed=seed, method=name, **merged(name, judge, sizes))
    for share in BUDGETS:
        if not rows.known(seed, SHARED, share):
            for method, row in in_common_bases(share, judge).items():
                rows.add(seed=seed, method=method, share=share, **row)


def merged(name: str, judge: Judge, sizes: Sizes) -> dict[str, Any]:
    """Accuracies of one method, and how far its LoRA is from what was merged."""
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "merged", time.perf_counter()
        report = jobs.merge(
            [one.lora for one in judge.singles],
            out,
            method=name,
            names=NAMES,
            rank=sizes.rank,
            statistics=[one.seen for one in judge.singles] if MERGES[name].needs else (),
            seed=judge.seed,
        )
        seconds = time.perf_counter() - start
        found = judge.scaled(deltas(out))
    return {
        **found,
        "numbers": report.numbers,
        "cut": report.error,
        "seconds": round(seconds, 2),
    }


def in_common_bases(share: float, judge: Judge) -> dict[str, dict[str, Any]]:
    """The adapters in common bases, and each resized alone, in as many numbers."""
    loras = [one.lora for one in judge.singles]
    pairs = [pair for lora in loras for pair in read_adapter(lora).pairs.values()]
    budget = int(share * sum(pair.rank * sum(pair.shape) for pair in pairs))
    with tempfile.TemporaryDirectory() as folder:
        place, start = Path(folder), time.perf_counter()
        made = jobs.basis(loras, place / "basis", budget=budget, names=NAMES)
        seconds = time.perf_counter() - start
        again = [place / f"again-{name}" for name in NAMES]
        for name, out in zip(NAMES, again, strict=True):
            jobs.export_task(place / "basis", name, out)
        shared = {
            "accuracy": judge.of_each(again),
            "numbers": made.numbers,
            "error": made.error,
            "lost": [one.lost for one in made.members],
            "bytes": _bytes(place / "basis"),
            "separate_bytes": sum(map(_bytes, loras)),
            "seconds": round(seconds, 2),
        }
        (place / "all").mkdir()
        for name, lora in zip(NAMES, loras, strict=True):
            (place / "all" / name).symlink_to(lora.resolve(), target_is_directory=True)
        start = time.perf_counter()
        less = jobs.resize(place / "all", place / "less", budget=made.numbers)
        seconds = time.perf_counter() - start
        alone = [place / "less" / name for name in NAMES]
        resized = {
            "accuracy": judge.of_each(alone),
            "numbers": less.numbers,
            "error": less.error,
            "lost": [one.error for one in less.adapters],
            "bytes": sum(map(_bytes, alone)),
            "seconds": round(seconds, 2),
        }
    return {SHARED: shared, ALONE: resized}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------- tables

HEADINGS = (*("method", *NAMES, "mean", "scale", "mean, scaled", "cut to rank"),)


def table_text(rows: Rows, methods: Iterable[str] = METHODS) -> str:
    """Means over seeds in markdown, the best first; of means the deviation over seeds."""
    seeds = rows.complete(methods)
    found = {name: rows.over(seeds, name) for name in (BASE, OWN, *methods)} if seeds else {}
    lines = sorted((-_height(own), _line(name, own)) for name, own in found.items())
    return markdown(HEADINGS, [line for _, line in lines])


def _height(own: list[dict[str, Any]]) -> float:
    return statistics.mean(statistics.mean(row.get("scaled", row["accuracy"])) for row in own)


def _line(name: str, own: list[dict[str, Any]]) -> tuple[str, ...]:
    each = [statistics.mean(values) for values in zip(*(r["accuracy"] for r in own), strict=True)]
    scales = sorted({f"{row['scale']:.2g}" for row in own if "scale" in row}, key=float)
    best = _spread([statistics.mean(row["scaled"]) for row in own]) if scales else ""
    return (
        f"`{name}`" if name in MERGES else name,
        *(f"{value:.3f}" for value in each),
        _spread([statistics.mean(row["accuracy"]) for row in own]),
        ", ".join(scales),
        best,
        f"{statistics.mean(row['cut'] for row in own):.2f}" if scales else "",
    )


OF_BASES = (
    *("adapters", "numbers", *(f"lost, {name}" for name in NAMES)),
    *("lost, all", "accuracy", "seconds"),
)


def bases_text(rows: Rows, methods: Iterable[str] = METHODS) -> str:
    """The adapters in common bases and alone, means over seeds in markdown."""
    lines, seeds = [], rows.complete(methods)
    if not seeds:
        return markdown(OF_BASES, lines)
    own = rows.over(seeds, OWN)
    lines.append(
        (
            "each in its file",
            f"{len(TASKS) * statistics.mean(row['numbers'] for row in own):,.0f}",
            *["0.000"] * (len(TASKS) + 1),
            _spread([statistics.mean(row["accuracy"]) for row in own]),
            "",
        )
    )
    for share in BUDGETS:
        for method in (SHARED, ALONE):
            own = rows.over(seeds, method, share)
            lost = zip(*(row["lost"] for row in own), strict=True)
            lines.append(
                (
                    f"{method}, {share:.0%}",
                    f"{statistics.mean(row['numbers'] for row in own):,.0f}",
                    *(f"{statistics.mean(values):.3f}" for values in lost),
                    _spread([row["error"] for row in own]),
                    _spread([statistics.mean(row["accuracy"]) for row in own]),
                    f"{statistics.median(row['seconds'] for row in own):.1f}",
                )
            )
    return markdown(OF_BASES, lines)


def _spread(values: list[float]) -> str:
    """Mean, and with more than one value their standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {deviation(values):.3f}" if len(values) > 1 else mean


def main() -> None:
    """Measure what was not measured, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("demo-output/merging"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument("--show", action="store_true", help="only print the tables")
    options = parser.parse_args()
    quietly()
    sizes = Sizes()
    rows = Rows(options.output, sizes)
    for seed in () if options.show else options.seeds:
        measure(rows, seed, sizes, options.models, options.methods)
    print(table_text(rows), bases_text(rows), sep="\n\n")


if __name__ == "__main__":
    main()
