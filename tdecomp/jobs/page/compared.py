"""The page on adapters that were compared: heat maps of who is like whom, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tdecomp.jobs.commands import typed
from tdecomp.jobs.likeness import ComparedPair, CompareReport
from tdecomp.jobs.page.html import heading, heat_table, paragraph, plain_table, whole_page

__all__ = ["compared_page"]

Heat = tuple[str, float]
"""What a cell says, and how hot it is."""


def compared_page(report: CompareReport) -> str:
    """The whole page as HTML."""
    parts = [
        _members(report),
        heading("Cosines"),
        paragraph("⟨ΔW₁, ΔW₂⟩ / ‖ΔW₁‖ ‖ΔW₂‖ over all sites; the colour is its size."),
        _square(report, lambda pair: (pair.cosine, pair.cosine), itself=1.0),
        heading("Energy of the row in the span of the column"),
        paragraph("Share of ‖ΔW‖² that lies in the columns and in the rows of the other adapter."),
        _square(report, lambda pair: (pair.one_in_two, pair.two_in_one), itself=1.0),
        heading("Site by site: cosines"),
        _by_site(report, lambda pair: pair.cosine),
        heading("Site by site: overlap of the out subspaces"),
        paragraph("Mean squared cosine of the principal angles."),
        _by_site(report, lambda pair: pair.out_overlap),
        heading("Site by site: overlap of the in subspaces"),
        _by_site(report, lambda pair: pair.in_overlap),
        *(paragraph(f"Note: {note}") for note in report.notes),
    ]
    command = typed("tdecomp", "compare", *(member.path for member in report.members))
    return whole_page("Adapters beside each other", parts, f"Made by: {command}")


def _members(report: CompareReport) -> str:
    counted = report.members[0].intruders is not None
    rows = [
        [
            member.name,
            *(str(n) for n in (member.sites, member.missing, member.rank)),
            f"{member.norm:.4g}",
            *([str(member.intruders)] if counted else []),
        ]
        for member in report.members
    ]
    more = ["intruder dimensions"] if counted else []
    return plain_table(["adapter", "sites", "missing", "rank", "‖ΔW‖", *more], rows)


def _square(
    report: CompareReport, values: Callable[[ComparedPair], tuple[float, float]], *, itself: float
) -> str:
    """Members against members; `values` are of (one, two) and of (two, one)."""
    names = [member.name for member in report.members]
    known = {(name, name): itself for name in names}
    for pair in report.pairs:
        known[pair.one, pair.two], known[pair.two, pair.one] = values(pair)
    return heat_table(
        "", names, ((row, [_cell(known[row, column]) for column in names]) for row in names)
    )


def _by_site(report: CompareReport, value: Callable[[ComparedPair], float]) -> str:
    columns = [f"{pair.one}, {pair.two}" for pair in report.pairs]
    rows: Iterable[tuple[str, list[Heat]]] = (
        (site.site, [_cell(value(pair)) for pair in site.pairs]) for site in report.sites
    )
    return heat_table("site", columns, rows)


def _cell(value: float) -> Heat:
    return f"{value:.3f}", abs(value)
