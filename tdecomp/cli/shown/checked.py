"""What a loader does with an adapter: a table of tensors, and below it every reason once."""

from __future__ import annotations

import re

from rich.table import Table
from rich.text import Text

from tdecomp.cli.shown.tables import name_cell, plain_table
from tdecomp.files.loaders import CheckedKey
from tdecomp.jobs import CheckReport
from tdecomp.jobs.reports import without_numbers

__all__ = ["check_lines", "check_table"]

_Reason = tuple[str, str, str, str]
"""Why not, what the loader says of it, the name that would act, and the rule."""
_HALF = re.compile(r"(?<=[._])(?:lora_(?:A|B|down|up))(?=\.)")


def check_table(report: CheckReport, *, whole: bool) -> Table:
    """Tensors that do not act, or all; those that differ in numbers only are one row."""
    table = plain_table(f"in {report.loader}", "tensors", right=["acts", "count"])
    reasons = _reasons(report)
    alike: dict[tuple[str, _Reason], int] = {}
    for line in report.keys:
        if whole or not line.acts:
            kind = _HALF.sub("lora_*", without_numbers(line.key)), _reason(line)
            alike[kind] = alike.get(kind, 0) + 1
    for (name, reason), count in alike.items():
        number = reasons.get(reason)
        verdict = Text("yes") if number is None else Text(f"no ({number})", style="red")
        table.add_row(name_cell(name), verdict, str(count))
    return table


def check_lines(report: CheckReport) -> list[str]:
    """Every reason with the rule that it is from, how many tensors act, and what to do."""
    lines = [_sentence(n, *reason) for reason, n in _reasons(report).items()]
    many = f"{report.acting} of {report.tensors} tensors act in {report.loader}"
    lines.append(f"{many}{'.' if report.loads else ', which refuses the adapter as a whole.'}")
    if report.max_rank is not None:
        lines.append(f"For {report.loader}: --max-lora-rank {report.max_rank}.")
    return [*lines, *report.notes]


def _reasons(report: CheckReport) -> dict[_Reason, int]:
    """Reasons, numbered from 1 on."""
    found = dict.fromkeys(_reason(line) for line in report.keys if not line.acts)
    return {reason: n for n, reason in enumerate(found, 1)}


def _reason(line: CheckedKey) -> _Reason:
    return without_numbers(line.why), line.told, without_numbers(line.instead), line.rule


def _sentence(number: int, why: str, told: str, instead: str, rule: str) -> str:
    said = "and nothing is said" if told == "nothing" else f"told by {told}"
    acts = f" What acts is called {instead}." if instead else ""
    return f"({number}) {why}, {said} [{rule}].{acts}"
