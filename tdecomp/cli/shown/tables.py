"""What the tables have in common, and the sentences over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tdecomp.cli.screen import printable
from tdecomp.jobs.decomposing import NotCovered
from tdecomp.jobs.inspecting import LeftOut
from tdecomp.jobs.reports import Unknown, without_numbers

__all__ = ["left_out_table", "name_cell", "not_covered_table", "plain_table", "unknown_lines"]

_Kind = tuple[str, str]
"""A name without its numbers, and the reason."""


def plain_table(title: str, names: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """A table whose first column holds names, of `name_cell`; `right` are columns of numbers.

    Where the screen is narrow the other words give way, and beside numbers only the names do.
    """
    table = Table(title=title)
    table.add_column(names, no_wrap=bool(columns))
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def name_cell(name: str) -> Text:
    """A name that stays on one line while the other columns can give way, and is never cut."""
    return Text(printable(name), overflow="fold", no_wrap=False)


def left_out_table(rows: Sequence[LeftOut]) -> Table:
    """Tensors that are not sites, by reason; names that differ in numbers only are one row."""
    table = plain_table("not covered", "tensors", "reason", right=["count"])
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        names = reasons.setdefault(row.reason, {})
        name = without_numbers(row.tensor)
        names[name] = names.get(name, 0) + 1
    for reason, names in reasons.items():
        table.add_section()
        for i, (name, count) in enumerate(names.items()):
            table.add_row(name_cell(name), "" if i else reason, str(count))
    return table


def not_covered_table(rows: Sequence[NotCovered], *, limit: int) -> Table:
    """Tensors that factors do not hold, unknown ones first, then those of the largest shares."""
    known = all(row.energy_share is not None for row in rows)
    of = "share of ‖Δ‖²" if known else "share of what is known of ‖Δ‖²"
    table = plain_table("not covered", "tensors", "reason", right=["count", of])
    alike: dict[_Kind, list[float | None]] = {}
    for row in rows:
        kind = without_numbers(row.tensor), row.reason
        alike.setdefault(kind, []).append(row.energy_share)
    ordered = sorted(alike.items(), key=lambda item: _order(item[1]))
    for (name, reason), shares in ordered[:limit]:
        table.add_row(name_cell(name), reason, str(len(shares)), _sum(shares))
    if rest := [share for _, shares in ordered[limit:] for share in shares]:
        table.add_row("all others", "(each with --json)", str(len(rest)), _sum(rest))
    return table


def unknown_lines(rows: Sequence[Unknown]) -> list[str]:
    """What nobody knows, in a sentence; nothing where everything is known."""
    if not rows:
        return []
    sites, first = sum(row.site for row in rows), rows[0]
    kind = "targeted tensor" if sites == len(rows) else "tensor"
    many = f"{len(rows)} {kind}{'s' if len(rows) > 1 else ''}"
    among = f", {sites} of them targeted," if 0 < sites < len(rows) else ""
    return [
        f"Unknown: what changed in {many}{among} is in no figure here, "
        f"e.g. {first.tensor} ({first.reason})."
    ]


def _order(shares: Sequence[float | None]) -> float:
    return -math.inf if None in shares else -sum(share or 0.0 for share in shares)


def _sum(shares: Sequence[float | None]) -> str:
    return "unknown" if None in shares else f"{sum(share or 0.0 for share in shares):.2%}"
