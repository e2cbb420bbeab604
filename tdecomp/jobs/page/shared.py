"""What several parts of a page say in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from tdecomp.jobs.page.html import folded, heading, paragraph, plain_table
from tdecomp.jobs.reports import Unknown

__all__ = ["unknown_part"]


def unknown_part(rows: Sequence[Unknown]) -> str:
    """What could not be compared; nothing where everything was."""
    if not rows:
        return ""
    named = [(row.tensor, row.reason, "yes" if row.site else "no") for row in rows]
    table = plain_table(["tensor", "reason", "was to be covered"], named, names=3)
    many = f"{len(rows)} tensor{'' if len(rows) == 1 else 's'}"
    return (
        heading("Unknown", 3)
        + paragraph(f"What changed in {many} is in no figure here.")
        + folded(f"The {many}", table)
    )
