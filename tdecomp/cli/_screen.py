"""What a person sees while waiting: progress with rate and remaining time, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Screen", "short"]


@dataclass(frozen=True)
class Screen:
    """Where output goes: tables to standard output, progress and notes to standard error."""

    quiet: bool = False
    json: bool = False

    @property
    def out(self) -> Console:
        """Console for results."""
        return _console(self.quiet or self.json)

    def note(self, text: str) -> None:
        """One line that is not part of the result."""
        _console(self.quiet or self.json, stderr=True).print(text, highlight=False)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar that is removed when done; gives a function that adds to what is done."""
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
        )
        silent = self.quiet or self.json or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=silent) as bar:
            task = bar.add_task(what, total=max(total, 1))
            yield lambda done: bar.advance(task, done)


def _console(quiet: bool, *, stderr: bool = False) -> Console:
    """Print paths and tensor names as they are: ``[/b]`` and ``:smile:`` are no markup here."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)


class _Rate(ProgressColumn):
    """Share done and units per second."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """One cell."""
        rate = "" if not task.speed else f"  {short(task.speed)} {self.unit}/s"
        return Text(f"{task.percentage:3.0f} %{rate}")


def short(number: float) -> str:
    """A number with a unit prefix.

    >>> short(1234567), short(950)
    ('1.23M', '950')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"
