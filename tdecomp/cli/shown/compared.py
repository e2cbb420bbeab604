"""Adapters beside each other."""

from __future__ import annotations

from rich.table import Table

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.jobs.likeness import CompareReport

__all__ = ["compare_lines", "members_table", "pairs_table"]


def members_table(report: CompareReport) -> Table:
    """One row for each adapter."""
    counted = report.members[0].intruders is not None
    right = ["sites", "missing", "rank", "‖ΔW‖", *(["intruders"] if counted else [])]
    table = plain_table("adapters", "name", right=right)
    for member in report.members:
        numbers = [str(n) for n in (member.sites, member.missing, member.rank)]
        intruders = [str(member.intruders)] if counted else []
        table.add_row(name_cell(member.name), *numbers, f"{member.norm:.4g}", *intruders)
    return table


def pairs_table(report: CompareReport) -> Table:
    """One row for every two adapters."""
    right = ["cosine", "1 in 2", "2 in 1", "out", "in", "least °out", "least °in"]
    table = plain_table("how alike", "1, 2", right=right)
    for pair in report.pairs:
        table.add_row(
            name_cell(f"{pair.one}, {pair.two}"),
            f"{pair.cosine:+.4f}",
            *(f"{share:.1%}" for share in (pair.one_in_two, pair.two_in_one)),
            *(f"{overlap:.3f}" for overlap in (pair.out_overlap, pair.in_overlap)),
            *(f"{angles[0]:.1f}" for angles in (pair.out_angles, pair.in_angles)),
        )
    return table


def compare_lines(report: CompareReport) -> list[str]:
    """What the columns are, and notes."""
    lines = [
        "1 in 2: energy of the first in the columns and rows of the second. out, in: mean squared"
        " cosine of the principal angles. least °: the smallest of them, on average over sites."
    ]
    lines += [f"Note: {note}" for note in report.notes]
    return [*lines, *([f"Written to {report.page}."] if report.page else [])]
