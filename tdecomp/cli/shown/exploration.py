"""What `explore` found: the table, the drawing, and commands that make a row."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tdecomp.jobs import ExploreReport
from tdecomp.jobs.exploring import ErrorWithin

__all__ = ["drawing", "explore_lines", "explore_table"]

_BAR = 40  # characters for a relative error of 1
_EIGHTHS = " ▏▎▍▌▋▊▉"


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


def drawing(report: ExploreReport) -> list[str]:
    """Bars as long as the error: the winner and the runner-up of every budget."""
    lines = []
    width = max(len(f"{b:,}") for b in report.budgets)
    for w in report.winners:
        lines.append(_bar(f"{w.budget:,}".rjust(width), w.error, f"{w.name} *"))
        if w.runner_up is not None:
            lines.append(_bar(" " * width, w.runner_up_error or 0.0, w.runner_up))
    return lines


def _bar(label: str, error: float, name: str) -> str:
    eighths = round(8 * _BAR * min(error, 1.0))
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return f"{label} ▕{bar:<{_BAR}} {error:.4f} {name}"


def explore_lines(report: ExploreReport) -> list[str]:
    """The sentences under the table."""
    lines = []
    if report.zero_delta:
        lines.append("The two checkpoints are identical: the delta is zero.")
    for w in report.winners:
        second = ""
        if w.runner_up is not None:
            second = f", then {w.runner_up} with {w.runner_up_error:.4f}"
        lines.append(f"{w.budget:,} numbers: {w.name}, error {w.error:.4f}{second}.")
        lines.append(f"  {w.command or w.python + '  (Python)'}")
    many = "once" if report.passes == 1 else f"{report.passes} times"
    lines.append(
        f"Every matrix was read {many}. * marks the least error; that and the runner-up's were "
        "measured on the factors, the others estimated from the sketches."
    )
    return lines + [f"Note: {note}" for note in report.notes]
