"""What `explore` found: the report, the table, the drawing, and commands that make a row."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tdecomp.decomposition import Exploration
from tdecomp.files.delta import Delta
from tdecomp.stack import Group

__all__ = ["command", "drawing", "explore_lines", "explore_report", "explore_table"]

_BAR = 40  # characters for a relative error of 1
_EIGHTHS = " ▏▎▍▌▋▊▉"


def explore_report(
    found: Exploration,
    delta: Delta,
    methods: Sequence[str],
    command: Callable[[Sequence[str]], str],
) -> dict[str, Any]:
    """Every error, the winners, and the commands that make them."""
    options = {row.name: _options(row, delta.groups, methods) for row in found.rows}

    def how(name: str, budget: int) -> dict[str, Any]:
        words = options[name]
        typed = None if words is None else command([*words, "--budget", str(budget)])
        return {"command": typed, "python": found.row(name).call(budget)}

    unknown = [row for row in delta.unpaired if row.energy is None]
    return {
        "unknown": [{"tensor": r.tensor, "reason": r.reason, "site": r.site} for r in unknown],
        "family": delta.survey.family,
        "groups": [
            {"name": g.name, "modes": list(g.modes), "shape": list(g.shape)} for g in delta.groups
        ],
        "numbers": found.n_numbers,
        "zero_delta": found.energy == 0 and not unknown,
        "passes": found.passes,
        "budgets": list(found.budgets),
        "rows": [
            {
                "name": row.name,
                "method": row.method,
                "options": options[row.name],
                "cells": [
                    cell
                    and {
                        "n_params": cell.n_params,
                        "error": cell.error,
                        "ranks": list(cell.ranks),
                        "confirmed": cell.confirmed,
                    }
                    for cell in row.cells
                ],
            }
            for row in found.rows
        ],
        "winners": [
            {
                "budget": w.budget,
                "name": w.name,
                "error": w.error,
                "runner_up": w.runner_up,
                "runner_up_error": w.runner_up_error,
                **how(w.name, w.budget),
            }
            for w in found.winners
        ],
        "notes": list(delta.survey.notes),
    }


def _options(row: Any, groups: Sequence[Group], methods: Sequence[str]) -> list[str] | None:
    """Options of `decompose` that make a row; None where none do.

    Sites that stack along fewer modes are grouped anew: that gives the parts of the groups only
    where these are whole grids, and heads only where they are asked for.
    """
    if row.method not in methods:
        return None
    words = ["--method", row.method]
    if row.modes is not None:
        names = {g.modes[row.modes[0]] for g in groups}
        words += [f"--modes={names.pop() if len(names) == 1 else row.modes[0]}"]
    if row.share is not None:
        heads = any("head" in g.modes for g in groups) and "head" not in row.share
        if heads or any(g.grid != "full" for g in groups):
            return None
        words += ["--share", ",".join(row.share)]
    return words


def command(base: str, tuned: str, chosen: Mapping[str, Any], words: Sequence[str]) -> str:
    """The `decompose` command with the same sites."""
    line = ["tdecomp", "decompose", _as_path(base), _as_path(tuned), "-o", "OUT"]
    for name, value in chosen.items():
        if name == "share" and "--share" in words:
            continue
        if value is True:
            line.append(f"--{name}")
            continue
        for text in value if isinstance(value, list) else [value]:
            line += [] if text in (None, False) else [f"--{name}={text}"]
    return " ".join(map(_quoted, [*line, *words]))


def _as_path(text: str) -> str:
    """A path that does not look like an option."""
    return f"./{text}" if text.startswith("-") else text


def _quoted(word: str) -> str:
    r"""A word for the shell; bytes that a terminal would not show are spelled, as bash reads them.

    >>> print(_quoted("a b"), _quoted("a\x1b'b"))
    'a b' $'a\x1b\x27b'
    """
    if word.isprintable():
        return shlex.quote(word)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    spelled = (chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(spelled)}'"


def explore_table(report: dict[str, Any]) -> Table:
    """Relative errors: a row per candidate, a column per budget, the least of each marked."""
    table = Table(title="relative error within a budget of stored numbers")
    table.add_column("format", overflow="fold")
    for budget in report["budgets"]:
        heading = Text(f"{budget:,}\n{budget / report['numbers']:.2%}")
        table.add_column(heading, justify="right")
    best = [w["name"] for w in report["winners"]]
    for row in report["rows"]:
        pairs = zip(row["cells"], best, strict=True)
        cells = [_cell(cell, row["name"] == name) for cell, name in pairs]
        table.add_row(Text(row["name"]), *cells)
    return table


def _cell(cell: dict[str, Any] | None, wins: bool) -> Text:
    if cell is None:
        return Text("–")
    return Text(f"{'*' if wins else ''}{cell['error']:.4f}", style="bold" if wins else "")


def drawing(report: dict[str, Any]) -> list[str]:
    """Bars as long as the error: the winner and the runner-up of every budget."""
    lines = []
    width = max(len(f"{b:,}") for b in report["budgets"])
    for w in report["winners"]:
        lines.append(_bar(f"{w['budget']:,}".rjust(width), w["error"], f"{w['name']} *"))
        if w["runner_up"] is not None:
            lines.append(_bar(" " * width, w["runner_up_error"], w["runner_up"]))
    return lines


def _bar(label: str, error: float, name: str) -> str:
    eighths = round(8 * _BAR * min(error, 1.0))
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return f"{label} ▕{bar:<{_BAR}} {error:.4f} {name}"


def explore_lines(report: dict[str, Any]) -> list[str]:
    """The sentences under the table."""
    lines = []
    if report["zero_delta"]:
        lines.append("The two checkpoints are identical: the delta is zero.")
    for w in report["winners"]:
        second = ""
        if w["runner_up"] is not None:
            second = f", then {w['runner_up']} with {w['runner_up_error']:.4f}"
        lines.append(f"{w['budget']:,} numbers: {w['name']}, error {w['error']:.4f}{second}.")
        lines.append(f"  {w['command'] or w['python'] + '  (Python)'}")
    many = "once" if report["passes"] == 1 else f"{report['passes']} times"
    lines.append(
        f"Every matrix was read {many}. * marks the least error; that and the runner-up's were "
        "measured on the factors, the others estimated from the sketches."
    )
    return lines + [f"Note: {note}" for note in report["notes"]]
