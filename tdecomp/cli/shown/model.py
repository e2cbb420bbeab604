"""What `inspect` found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.files.dtypes import NAMES
from tdecomp.jobs import InspectReport

__all__ = ["model_table"]

_MOST_LABELS = 6


def model_table(report: InspectReport) -> Table:
    """Groups of a model."""
    table = plain_table(_title(report), "group", "modes", "labels", "grid", "dtype")
    for g in report.groups:
        modes = " × ".join(f"{n} {m}" for n, m in zip(g.shape, g.modes, strict=True))
        labels = "; ".join(_labels(values) for values in g.labels)
        dtypes = " ".join(NAMES.get(code, code) for code in g.dtypes)
        table.add_row(name_cell(g.name), modes, labels, g.grid, dtypes)
    return table


def _title(report: InspectReport) -> str:
    share = report.covered_numbers / max(report.numbers, 1)
    covered = f"{share:.1%} of {report.numbers:,} numbers covered"
    return f"{report.model}: family {report.family}, {covered}"


def _labels(labels: Sequence[int | str]) -> str:
    if len(labels) > 2 and all(isinstance(n, int) for n in labels):
        first, last = labels[0], labels[-1]
        if all(int(b) - int(a) == 1 for a, b in pairwise(labels)):
            return f"{first}..{last}"
    shown = ", ".join(map(str, labels[:_MOST_LABELS]))
    return shown if len(labels) <= _MOST_LABELS else f"{shown}, ... ({len(labels)})"
