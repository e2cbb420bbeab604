"""What `verify` found."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tdecomp.cli.shown.tables import plain_table
from tdecomp.jobs import VerifyReport

__all__ = ["verify_table"]


def verify_table(report: VerifyReport, limit: int = 12) -> Table:
    """Sites whose error differs most from what the file claims."""
    table = plain_table("relative error per site", "site", "claimed", "measured", "")
    worst = sorted(report.sites, key=lambda row: -abs(row.claimed - row.measured))
    for row in worst[:limit]:
        verdict = _verdict(row.agrees)
        table.add_row(row.site, f"{row.claimed:.6f}", f"{row.measured:.6f}", verdict)
    table.add_section()
    verdict = _verdict(report.agrees)
    table.add_row("total", f"{report.claimed:.6f}", f"{report.measured:.6f}", verdict)
    return table


def _verdict(agrees: bool) -> Text:
    return Text("agrees") if agrees else Text("differs", style="red")
