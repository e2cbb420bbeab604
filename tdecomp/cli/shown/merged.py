"""What `merge` wrote, and what it has of every adapter."""

from __future__ import annotations

from rich.table import Table

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.jobs import MergeReport

__all__ = ["merge_lines", "merge_table"]


def merge_table(report: MergeReport) -> Table:
    """A row for every adapter."""
    parts = any(row.lost is not None for row in report.members)
    right = ["weight", "‖ΔW‖", "cosine", "away", *(["lost"] if parts else [])]
    table = plain_table(f"merged by {report.method}", "adapter", right=right)
    for row in report.members:
        cells = [f"{row.weight:g}", f"{row.norm:.4g}", f"{row.cosine:.3f}", f"{row.departure:.3f}"]
        cells += [] if row.lost is None else [f"{row.lost:.3f}"]
        table.add_row(name_cell(row.name), *cells)
    return table


def merge_lines(report: MergeReport) -> list[str]:
    """Size and error, and what is not in it."""
    lines = [f"Note: {note}" for note in report.notes]
    if report.missing:
        first = report.missing[0]
        lines.append(
            f"{len(report.missing)} pairs are not there and count as zero, among them "
            f"{first.site} of {first.member}."
        )
    if report.not_covered:
        first = report.not_covered[0]
        lines.append(
            f"{len(report.not_covered)} tensors are in no pair and left out, among them "
            f"{first.tensor} of {first.member}: {first.reason}."
        )
    if report.error is None:
        lines.append(f"{report.sites} weights changed, model in {report.out}.")
    else:
        lines.append(
            f"{report.sites} sites, rank {report.rank}, {report.numbers:,} numbers, "
            f"error {report.error:.2g}, written to {report.out}."
        )
    return lines
