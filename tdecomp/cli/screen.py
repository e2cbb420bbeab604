"""The edge to the terminal: what is printed, and what a person sees while waiting."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Screen", "Speed", "StepBar", "printable", "short"]

_WIDE = 1000  # characters of a line in a pipe
_RECENT = 10.0  # seconds over which a speed is told
_MANY = 1000  # slices by which it is
_LONGEST = 10_000  # characters of one text: longer than any command that can be typed


def printable(text: str) -> str:
    r"""The text as a terminal may have it: what acts on a terminal or hides is written out.

    Names, dtypes and paths come from files that anyone may have made. Control characters, line
    breaks, marks that turn the direction of writing, invisible ones and halves of surrogate pairs
    become the escapes that Python's `repr` shows. Of a very long text the ends are kept.

    >>> print(printable("x\x1b[2J\u202e.weight"), printable("Δ"))
    x\x1b[2J\u202e.weight Δ
    """
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}...({len(text) - 2 * half:,} more characters)...{text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Screen:
    """Where output goes: tables to standard output, progress and notes to standard error."""

    quiet: bool = False
    json: bool = False

    @property
    def out(self) -> Console:
        """Console for results."""
        return _console(self.quiet or self.json)

    def lines(self, lines: Iterable[str]) -> None:
        """Sentences of the result, each on one line."""
        for line in lines:
            self.out.print(line, highlight=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        """A table that is as wide as it wants where nobody looks, for `grep` and the like."""
        out = self.out
        out.print(table, width=None if out.is_terminal else _WIDE, crop=False)

    def note(self, text: str) -> None:
        """One line that is not part of the result."""
        console = _console(self.quiet or self.json, stderr=True)
        console.print(text, highlight=False, soft_wrap=True)

    def report(self, report: dict[str, Any]) -> None:
        """A report as JSON, if that was asked for."""
        if self.json:
            print(json.dumps(_finite(report), indent=2, allow_nan=False))

    @contextmanager
    def steps(self) -> Iterator[StepBar]:
        """A bar for the step that is going on, removed when done; gives the function to call."""
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        silent = self.quiet or self.json or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=silent) as bar:
            yield StepBar(bar)


class StepBar:
    """Shows the last step that was told, and how fast files are gone over."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._step = bar, ""
        self._task = bar.add_task("", visible=False, rate="")
        self._speed = Speed(_RECENT)

    def __call__(self, fraction: float, step: str) -> None:
        """Take the fraction of a step that is done, and its name."""
        if step != self._step:
            self._step, self._speed = step, Speed(_RECENT)
            self._bar.reset(self._task, description=printable(step), total=1.0, visible=True)
        self._bar.update(self._task, completed=fraction, rate=self._speed.told)

    def passed(self, count: float) -> None:
        """Take bytes that a pass has gone over, from any thread."""
        self._speed.add(count, time.monotonic())


class Speed:
    """How many bytes a second there were of late.

    >>> speed = Speed(10.0)
    >>> for second in range(100):
    ...     speed.add(2e9, second)
    >>> speed.told
    '2 GB/s'
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._seen = seconds, deque[tuple[float, float]](maxlen=_MANY)
        self._lock = Lock()

    def add(self, count: float, now: float) -> None:
        """Take bytes, and the second at which they were done."""
        with self._lock:
            self._seen.append((now, count))
            while self._seen[0][0] < now - self._seconds:
                self._seen.popleft()

    @property
    def told(self) -> str:
        """In words; empty where nothing can be said yet."""
        with self._lock:
            if not self._seen:
                return ""
            (first, before), (last, _) = self._seen[0], self._seen[-1]
            total = sum(count for _, count in self._seen) - before
        return f"{short(total / (last - first), ' ')}B/s" if last > first else ""


class _Console(Console):
    """A console on which texts from files are only read: they neither act nor are markup.

    The one place where rich turns a string into something to draw, be it a line, a cell or a
    title, is overridden: so no table and no message can forget to ask.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it may stand on the terminal."""
        return super().render_str(printable(text), **options)


def _console(quiet: bool, *, stderr: bool = False) -> Console:
    """Print paths and tensor names as they are: ``[/b]`` and ``:smile:`` are not markup here."""
    return _Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)


def _finite(value: Any) -> Any:
    """The same JSON value with null for what is not a number: NaN and Infinity are not JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(number: float, gap: str = "") -> str:
    """A number with a unit prefix.

    >>> short(1234567), short(950)
    ('1.23M', '950')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{gap}{letter}"
    return f"{number:.3g}{gap}"
