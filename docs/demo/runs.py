"""Runs of many methods at many rates: kept in a file, and the rate that each method chooses."""

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

GRID = (1e-3, 3e-3, 1e-2, 3e-2)
WIDER = (1e-4, 3e-4, 1e-1, 3e-1)
CHOOSING = (100,)
REPORTED = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Run:
    """One training: what was trained how, and how it went.

    Attributes
    ----------
    accuracy
        On the items held out: of the training items while a rate is chosen, else the test items.
    loss
        Of the last step.
    """

    method: str
    lr: float
    seed: int
    choosing: bool
    n_adapter: int
    n_head: int
    accuracy: float
    loss: float

    @property
    def key(self) -> tuple[str, float, int, bool]:
        """What makes it another run."""
        return self.method, self.lr, self.seed, self.choosing

    @property
    def score(self) -> float:
        """What a rate is chosen by: the more, the better."""
        return self.accuracy


R = TypeVar("R", bound=Run)


class Results(Generic[R]):
    """The runs so far, in a file.

    Parameters
    ----------
    path
        The file; it need not be there.
    about
        What holds for all runs, the command among it; stands in the file before them.
    kind
        Class of a run.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], kind: type[R]):
        self.path, self.about = path, about
        rows = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        self.runs = {run.key: run for run in (kind(**row) for row in rows)}

    def add(self, run: R) -> None:
        """Keep one run; the file is replaced whole."""
        self.runs[run.key] = run
        plain = {**self.about, "runs": [vars(r) for r in self.runs.values()]}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def scores(self, method: str, lr: float) -> list[float]:
        """Of a method at a rate, while one is chosen."""
        return [r.score for r in self.runs.values() if r.choosing and r.key[:2] == (method, lr)]

    def reported(self, method: str) -> dict[int, R]:
        """Runs of a method that count, by seed."""
        own = (r for r in self.runs.values() if r.method == method and not r.choosing)
        return {r.seed: r for r in own}

    def tried(self, method: str) -> list[float]:
        """Rates that were tried, in ascending order."""
        return sorted({r.lr for r in self.runs.values() if r.method == method and r.choosing})

    def best(self, method: str) -> float:
        """Rate with the best mean score while choosing."""
        return max(self.tried(method), key=lambda lr: statistics.mean(self.scores(method, lr)))


class Sweep(ABC, Generic[R]):
    """All trainings, in an order in which early ones already tell something."""

    results: Results[R]

    @abstractmethod
    def run(self, method: str, lr: float, seed: int, *, choosing: bool) -> None:
        """One training, unless it was done before."""

    def choose(self, method: str) -> None:
        """Try the grid, and beyond the edge where an edge is best."""
        self._try(method, GRID)
        while True:
            tried, best = self.results.tried(method), self.results.best(method)
            low = [lr for lr in WIDER if lr < tried[0]][-1:] if best == tried[0] else []
            high = [lr for lr in WIDER if lr > tried[-1]][:1] if best == tried[-1] else []
            if not low + high:
                return
            self._try(method, low + high)

    def rate(self, method: str) -> float:
        """The rate at which a method is reported."""
        return self.results.best(method)

    def report(self, methods: Iterable[str]) -> None:
        """Train with the seeds that count, at the rates that were chosen."""
        methods = list(methods)
        for seed in REPORTED:
            for method in methods:
                self.run(method, self.rate(method), seed, choosing=False)

    def _try(self, method: str, rates: Iterable[float]) -> None:
        for lr in rates:
            for seed in CHOOSING:
                self.run(method, lr, seed, choosing=True)


def deviation(values: list[float]) -> float:
    """Standard deviation over seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(headings: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table; the first `left` columns are words, the others numbers."""
    headings = tuple(headings)
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *rows))
