"""Factors: the table of their groups, and what they leave out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tdecomp.cli.screen import short
from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.files.dtypes import NAMES
from tdecomp.jobs import DecomposeReport, FactorsReport

__all__ = ["factors_table", "left_out_lines", "size_line"]


def factors_table(report: DecomposeReport | FactorsReport) -> Table:
    """Groups of a decomposed delta."""
    title = f"{report.method}, {NAMES.get(report.dtype, report.dtype)}"
    table = plain_table(title, "group", "shape", "rank", right=["numbers", "of ‖Δ‖²", "error"])
    for g in report.groups:
        shape, rank = "×".join(map(str, g.shape)), _rank(g.format, g.rank)
        share = f"{g.energy_share:.1%}"
        table.add_row(name_cell(g.name), shape, rank, f"{g.n_params:,}", share, f"{g.error:.4f}")
    table.add_section()
    table.add_row("total", "", "", f"{report.n_params:,}", "100.0%", f"{report.error:.4f}")
    return table


def size_line(report: DecomposeReport | FactorsReport) -> str:
    """How much is stored, and how true it is."""
    share = report.n_params / report.delta_params
    return (
        f"{report.n_params:,} numbers ({short(report.bytes)}B) for {report.delta_params:,}: "
        f"{share:.2%} of the full delta, relative error {report.error:.4f}."
    )


def left_out_lines(report: DecomposeReport) -> list[str]:
    """What the factors do not hold, and what in them is noise."""
    of = "what is known of ‖Δ‖²" if report.unknown else "‖Δ‖²"
    lines = [f"Not covered: {report.uncovered_share_of_measured:.2%} of {of}."]
    if report.rounding_floor:
        lines.append(
            f"About {report.rounding_floor:.4f} of the delta is the rounding of half-precision "
            "storage: an error below it fits noise."
        )
    return lines + [f"Note: {note}" for note in report.notes]


def _rank(kind: str, rank: Sequence[int]) -> str:
    if kind == "LowRank" and len(rank) > 1:
        return f"{min(rank)}..{max(rank)} (mean {sum(rank) / len(rank):.1f})"
    return "×".join(map(str, rank))
