"""What the demo leaves behind: a table, a picture and the numbers as JSON."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

_MARKERS = {"svd": "o", "tucker2": "s", "tucker": "^", "svd, healed": "D"}
_COLOURS = {  # colour-blind safe
    "svd": "#0072B2",
    "tucker2": "#D55E00",
    "tucker": "#009E73",
    "svd, healed": "#CC79A7",
}


class Row(NamedTuple):
    """One model of the table: base, tuned, or base + an approximated delta."""

    method: str
    budget: int | None
    n_params: int
    share: float  # of the numbers in the full delta
    error: float  # relative, over the covered delta
    accuracy: float


class Agreement(NamedTuple):
    """How one exported LoRA in PEFT compares with the model that `apply` wrote."""

    method: str
    budget: int
    logits_difference: float  # relative Frobenius, apply in float32
    same_class: float  # share of the items that are no ties, apply in bfloat16


def table(rows: list[Row]) -> Table:
    """Make the table of the demo, in the order of the rows."""
    made = Table("method", title="Base + approximated delta")
    for heading in ("stored parameters", "share of full delta", "relative error", "test accuracy"):
        made.add_column(heading, justify="right")
    for before, row in zip((None, *rows), rows, strict=False):
        if before and before.method != row.method:
            made.add_section()
        made.add_row(
            row.method,
            f"{row.n_params:,}",
            f"{row.share:.2%}",
            f"{row.error:.3f}",
            f"{row.accuracy:.3f}",
        )
    return made


def winners(rows: list[Row]) -> str:
    """Say which method has the lowest error within each budget."""
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    best = [min((r for r in rows if r.budget == b), key=lambda r: r.error) for b in budgets]
    return "Lowest error: " + ", ".join(
        f"{row.method} within {row.budget:,} ({row.error:.3f})" for row in best
    )


def save_table(path: Path, rows: list[Row]) -> None:
    """Write the table and the line under it as plain text."""
    with path.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=100)
        console.print(table(rows))
        console.print(winners(rows), soft_wrap=True)


def save_results(path: Path, rows: list[Row], agreements: list[Agreement], **settings: Any) -> None:
    """Write every number of the demo as JSON."""
    results = {
        **settings,
        "rows": [row._asdict() for row in rows],
        "peft": [agreement._asdict() for agreement in agreements],
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def save_picture(path: Path, rows: list[Row]) -> None:
    """Draw error and accuracy against stored parameters, one line per method, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = [row for row in rows if row.budget is not None]
    for method in dict.fromkeys(row.method for row in measured):
        own = [row for row in measured if row.method == method]
        style = {"color": _COLOURS[method], "marker": _MARKERS[method], "label": method}
        left.plot([row.n_params for row in own], [row.error for row in own], **style)
        right.plot([row.n_params for row in own], [row.accuracy for row in own], **style)
    for row in rows:
        if row.budget is None:
            right.axhline(row.accuracy, color="0.5", linestyle="--", linewidth=1)
            right.annotate(
                row.method,
                (1, row.accuracy),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                color="0.3",
            )
    for axes, quantity in ((left, "relative error of the delta"), (right, "test accuracy")):
        axes.set_xscale("log")
        axes.set_xlabel("stored parameters")
        axes.set_ylabel(quantity)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
