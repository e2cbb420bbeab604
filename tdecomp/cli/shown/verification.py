"""What `verify` found."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.jobs import VerifyReport
from tdecomp.jobs.verifying import CheckedSite

__all__ = ["agreement_line", "verify_table"]

_MOST = 12  # rows of sites that differ


def agreement_line(report: VerifyReport) -> str:
    """How many sites agree, and the error of all."""
    sites, agree = len(report.sites), sum(row.agrees for row in report.sites)
    many = f"All {sites} sites agree" if agree == sites else f"{agree} of {sites} sites agree"
    figures = f"{report.measured:.6f} measured, {report.claimed:.6f} claimed"
    return f"{many}: relative error {figures}."


def verify_table(report: VerifyReport, *, whole: bool) -> Table:
    """Sites whose error differs from what the file claims, or all; the worst first."""
    table = plain_table("relative error per site", "site", right=["claimed", "measured", ""])
    shown = [row for row in report.sites if whole or not row.agrees]
    worst = sorted(shown, key=_difference)
    limit = len(worst) if whole else _MOST
    for row in worst[:limit]:
        verdict = _verdict(row.agrees)
        cells = f"{row.claimed:.6f}", f"{row.measured:.6f}"
        table.add_row(name_cell(row.site), *cells, verdict)
    if more := len(worst[limit:]):
        table.add_row(f"and {more} more (--all)", "", "", _verdict(False))
    table.add_section()
    total = f"{report.claimed:.6f}", f"{report.measured:.6f}"
    table.add_row("total", *total, _verdict(report.agrees))
    return table


def _difference(row: CheckedSite) -> float:
    return -abs(row.claimed - row.measured)


def _verdict(agrees: bool) -> Text:
    return Text("agrees") if agrees else Text("differs", style="red")
