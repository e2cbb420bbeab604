"""Adapters that were made smaller."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.jobs.reports import relative_error, without_numbers
from tdecomp.jobs.resizing import ResizedSite, ResizeReport

__all__ = ["resize_lines", "resize_table"]

_SHOWN = 6


def resize_table(report: ResizeReport) -> Table:
    """Kinds of sites, those that differ in numbers only in one row; a section for each adapter."""
    right = ["shape", "sites", "was", "rank", "of ‖ΔW‖²", "error"]
    table = plain_table("resized", "site", right=right)
    energy = sum(site.energy for one in report.adapters for site in one.sites)
    for one in report.adapters:
        table.add_section()
        if len(report.adapters) > 1:
            table.add_row(name_cell(one.name), "", "", "", "", "", f"{one.error:.4f}")
        kinds: dict[tuple[str, tuple[int, int]], list[ResizedSite]] = {}
        for site in one.sites:
            kinds.setdefault((_kind(site.site), site.shape), []).append(site)
        for (kind, shape), sites in kinds.items():
            table.add_row(name_cell(kind), "×".join(map(str, shape)), *_numbers(sites, energy))
    table.add_section()
    table.add_row("total", "", *_numbers([s for a in report.adapters for s in a.sites], energy))
    return table


def _kind(site: str) -> str:
    """The name with a star for every number; names without dots have underscores around them."""
    return without_numbers(f".{site}.".replace("_", "._.")).replace("._.", "_").strip(".")


def _numbers(sites: Sequence[ResizedSite], energy: float) -> tuple[str, ...]:
    own = sum(site.energy for site in sites)
    lost = (site.error**2 * site.energy for site in sites)
    return (
        str(len(sites)),
        _range([site.rank_before for site in sites]),
        _range([site.rank for site in sites]),
        f"{own / energy if energy else 0:.1%}",
        f"{relative_error(lost, [own]):.4f}",
    )


def _range(ranks: Sequence[int]) -> str:
    least, most = min(ranks), max(ranks)
    return str(least) if least == most else f"{least}..{most}"


def resize_lines(report: ResizeReport) -> list[str]:
    """How much is stored, how true it is, and what is not in it."""
    share = report.numbers / report.numbers_before if report.numbers_before else 0.0
    lines = [
        f"{report.numbers:,} numbers for {report.numbers_before:,} ({share:.1%}), relative error of"
        f" ΔW {report.error:.4f}."
    ]
    for one in report.adapters:
        where = f" of {one.name}" if len(report.adapters) > 1 else ""
        empty = [site.site for site in one.sites if site.rank == 0]
        if empty:
            lines.append(f"Left out{where}, as rank 0: {_few(empty)}.")
        if one.copied:
            lines.append(f"Copied{where} as they are: {_few(one.copied)}.")
        if one.not_covered:
            lines.append(f"Not in the new adapter{where}, as no part of a pair:")
            rows = one.not_covered
            lines += [f"  {row.tensor}: {row.reason}" for row in rows[:_SHOWN]]
            lines += [f"  and {len(rows) - _SHOWN} more (all with --json)"] if rows[_SHOWN:] else []
        lines += [f"Note: {note}" for note in one.notes]
    return [*lines, f"Written to {report.out}."]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more
