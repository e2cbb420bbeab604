"""The part of a page on formats and budgets: errors against numbers, and what makes them."""

from __future__ import annotations

from collections.abc import Iterable

from tdecomp.drawing import Curve, draw_chart
from tdecomp.jobs.exploring import BestWithin, ErrorWithin, ExploreReport
from tdecomp.jobs.page.html import code, heading, paragraph, plain_table
from tdecomp.jobs.page.shared import unknown_part

__all__ = ["explored_part"]


def explored_part(report: ExploreReport, title: str) -> str:
    """Chart, table and commands of an exploration."""
    if report.zero_delta:
        parts = [paragraph("The two models are equal in all that is covered: nothing to compare.")]
    else:
        parts = [
            paragraph(
                "Relative error of every format within every budget of stored numbers; "
                f"the whole delta has {report.numbers:,}. Large markers have the least error of "
                "their budget."
            ),
            _chart(report),
            _table(report),
            paragraph(
                f"Every matrix was read {report.passes} times. Errors without ~ were measured on "
                "factors that were built, the others are estimated from sketches of the data; * "
                "has the least error. A – is a budget below rank 1."
            ),
            heading("What makes this table, and the best of every budget", 3),
            code([*filter(None, [report.command]), *_commands(report.winners)]),
        ]
    groups = [(g.name, " × ".join(g.modes), " × ".join(map(str, g.shape))) for g in report.groups]
    parts += [
        unknown_part(report.unknown),
        heading("What was covered", 3),
        paragraph(f"Family {report.family}."),
        plain_table(["group", "modes", "sizes"], groups, names=3),
        *(paragraph(f"Note: {note}") for note in report.notes),
    ]
    return "".join([heading(title), *parts])


def _chart(report: ExploreReport) -> str:
    best = [winner.name for winner in report.winners]
    curves = [
        Curve(
            row.name,
            tuple(None if cell is None else (cell.n_params, cell.error) for cell in row.cells),
            frozenset(k for k, name in enumerate(best) if name == row.name),
        )
        for row in report.rows
    ]
    return draw_chart(
        curves,
        title="Relative error of every format against the numbers it stores",
        across="stored numbers",
        up="relative error",
        log_across=True,
    )


def _table(report: ExploreReport) -> str:
    best = [winner.name for winner in report.winners]
    rows = [
        [row.name, *(_cell(c, row.name == n) for c, n in zip(row.cells, best, strict=True))]
        for row in report.rows
    ]
    shares = [f"{b:,} ({b / max(report.numbers, 1):.2%})" for b in report.budgets]
    return plain_table(["format", *shares], rows)


def _cell(cell: ErrorWithin | None, wins: bool) -> str:
    if cell is None:
        return "–"
    return f"{'*' if wins else ''}{'' if cell.confirmed else '~'}{cell.error:.4f}"


def _commands(winners: Iterable[BestWithin]) -> list[str]:
    return [winner.command or f"{winner.python}  # Python" for winner in winners]
