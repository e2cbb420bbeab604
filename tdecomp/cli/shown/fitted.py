"""What was written for a loader."""

from __future__ import annotations

from tdecomp.cli.shown.checked import check_lines
from tdecomp.jobs import FitReport
from tdecomp.jobs.reports import without_numbers

__all__ = ["fit_lines"]

_MOST = 12  # kinds of names, or of what is left out, that are shown


def fit_lines(report: FitReport) -> list[str]:
    """Where it is, what is called otherwise, what is not in it, and that it acts."""
    rank = f", rank {report.rank}" if report.rank else ""
    lines = [
        f"{report.modules} pairs in {report.out}{rank}, named as {report.scheme!r} for"
        f" {report.loader}."
    ]
    renamed = [(without_numbers(r.was), without_numbers(r.now)) for r in report.renamed]
    lines += _few([f"{old} is called {new} now." for old, new in renamed])
    left = [f"{without_numbers(row.tensor)}: {row.reason}" for row in report.left_out]
    lines += _few([f"Not written: {line}." for line in left])
    return [*lines, *check_lines(report.check)]


def _few(lines: list[str]) -> list[str]:
    kinds = list(dict.fromkeys(lines))
    more = [f"And {len(kinds) - _MOST} more kinds (--json)."] if kinds[_MOST:] else []
    return kinds[:_MOST] + more
