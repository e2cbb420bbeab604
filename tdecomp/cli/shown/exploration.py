"""What `explore` found: the table, the winners, and commands that make them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from tdecomp.jobs import ExploreReport
from tdecomp.jobs.exploring import BestWithin, ErrorWithin

__all__ = ["explore_lines", "explore_table"]

_BUDGET = re.compile(r"(?<=--budget )\d+$|(?<=budget=)\d+(?=\)  \(Python\)$)")


def explore_table(report: ExploreReport) -> Table:
    """Relative errors: a row per candidate, a column per budget, the least of each marked."""
    table = Table(title="relative error within a budget of stored numbers")
    table.add_column("format", overflow="fold")
    for budget in report.budgets:
        heading = Text(f"{budget:,}\n{budget / report.numbers:.2%}")
        table.add_column(heading, justify="right")
    best = [w.name for w in report.winners]
    for row in report.rows:
        pairs = zip(row.cells, best, strict=True)
        cells = [_cell(cell, row.name == name) for cell, name in pairs]
        table.add_row(Text(row.name), *cells)
    return table


def _cell(cell: ErrorWithin | None, wins: bool) -> Text:
    if cell is None:
        return Text("–")
    return Text(f"{'*' if wins else ''}{cell.error:.4f}", style="bold" if wins else "")


def explore_lines(report: ExploreReport) -> list[str]:
    """The sentences under the table: the best of every budget, and what makes it."""
    lines = list(map(_best_line, report.winners))
    lines += _commands(report.winners)
    many = "once" if report.passes == 1 else f"{report.passes} times"
    lines.append(
        f"Every matrix was read {many}. * marks the least error; that and the runner-up's were "
        "measured on the factors, the others estimated from the sketches."
    )
    return lines + [f"Note: {note}" for note in report.notes]


def _best_line(best: BestWithin) -> str:
    second = ""
    if best.runner_up is not None:
        second = f", then {best.runner_up} with {best.runner_up_error:.4f}"
    return f"{best.budget:,} numbers: {best.name}, error {best.error:.4f}{second}."


def _commands(winners: Sequence[BestWithin]) -> list[str]:
    """One for every winner; BUDGET stands for the numbers where it wins more than once."""
    lines: list[str] = []
    for name, rows in groupby(sorted(winners, key=_name), key=_name):
        best, *others = rows
        made = best.command or f"{best.python}  (Python)"
        if others:
            made = _BUDGET.sub("BUDGET", made)
        lines += [f"{name}:", f"  {made}"]
    return lines


def _name(best: BestWithin) -> str:
    return best.name
