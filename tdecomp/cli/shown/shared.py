"""What a folder of adapters in common bases holds."""

from __future__ import annotations

from rich.table import Table

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.jobs import BasisReport, TaskReport

__all__ = ["basis_lines", "basis_table", "task_line"]


def basis_table(report: BasisReport) -> Table:
    """A row for every member."""
    right = ["‖ΔW‖", "lost", "own numbers", "in cores"]
    table = plain_table("adapters in common bases", "member", right=right)
    for row in report.members:
        numbers = f"{row.numbers:,}", f"{row.core_numbers:,}"
        table.add_row(name_cell(row.name), f"{row.norm:.4g}", f"{row.lost:.4f}", *numbers)
    return table


def basis_lines(report: BasisReport) -> list[str]:
    """Sizes side by side, and whether sharing pays."""
    lines = [f"Note: {note}" for note in report.notes]
    if report.missing:
        first = report.missing[0]
        lines.append(
            f"{len(report.missing)} pairs are not there, among them {first.site} of {first.member}."
        )
    if report.not_covered:
        first = report.not_covered[0]
        lines.append(
            f"{len(report.not_covered)} tensors are in no pair and left out, among them "
            f"{first.tensor} of {first.member}: {first.reason}."
        )
    lines.append(
        f"{report.numbers:,} numbers, {report.basis_numbers:,} of them in bases (rank "
        f"{report.rank} at most); the separate pairs have {report.separate_numbers:,}. "
        f"Error {report.error:.4f}."
    )
    if report.resized_error is not None:
        verdict = "sharing wins" if report.sharing_wins else "sharing loses: resize them instead"
        lines.append(
            f"The best pairs of each alone, in as many numbers: error {report.resized_error:.4f}; "
            f"{verdict}."
        )
    return lines


def task_line(report: TaskReport) -> str:
    """What was written of a member."""
    return f"{report.task}: {report.sites} weights, error {report.lost:.2g}, in {report.out}."
