"""The command that makes one adapter or model of several."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tdecomp import jobs
from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import (
    DTYPE_NAMES,
    NO_VALUE,
    OUTPUT,
    WHICH,
    Json,
    Overwrite,
    Quiet,
    as_budget,
    as_error,
    as_rank,
    to_write,
)
from tdecomp.cli.screen import Screen
from tdecomp.cli.shown.merged import merge_lines, merge_table
from tdecomp.cli.words import parse_budget, parse_names
from tdecomp.collections.merging import MERGES
from tdecomp.errors import ArgumentError

__all__ = ["MERGE"]

HOW_MERGED = "How they are merged"


def _table() -> str:
    """Help with a line for every row, those of one place together."""
    lines = ["One of"]
    for place, words in (
        ("factors", "exact in the factors"),
        ("cores", "on small cores in common bases"),
        ("dense", "entry by entry, dense"),
    ):
        rows = (row for row in MERGES.values() if row.where == place)
        names = ", ".join(f"[bold]{row.name}[/bold]" for row in rows)
        lines.append(f"{words}: {names}.")
    return "\n\n".join(lines)


def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER",
            help="LoRAs: PEFT folders or .safetensors files; factors; with --base tuned models.",
            show_default=False,
        ),
    ],
    *,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help=_table(), rich_help_panel=HOW_MERGED)
    ] = "mean",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="One for each, '0.5,0.5'; 1 by default.",
            rich_help_panel=HOW_MERGED,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Of the method, 'density=0.3', 'scale=0.5'; can be repeated.",
            rich_help_panel=HOW_MERGED,
        ),
    ] = None,
    stats: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="For fisher and regmean: what 'capture' wrote, once for each adapter.",
            rich_help_panel=HOW_MERGED,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Of what is drawn.", rich_help_panel=HOW_MERGED),
    ] = 0,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE",
            help="The base model: for --model, tuned models and DoRA.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Of the adapters, in order: 'fr,de'.", rich_help_panel=WHICH
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="A pair that one of them lacks: 'zero' or 'refuse'.",
            rich_help_panel=WHICH,
        ),
    ] = "zero",
    rank: Annotated[int | None, as_rank("Largest rank of a site.")] = None,
    error: Annotated[float | None, as_error("Relative error over all sites, 0 to 1.")] = None,
    budget: Annotated[
        str | None, as_budget("Numbers in all pairs, '5M', or bytes, '20MB'.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"As the first adapter's, or the base's, by default: {DTYPE_NAMES}.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            metavar=NO_VALUE,
            help="Write BASE with the merged delta, not an adapter.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    out: Annotated[Path, to_write("OUT", "Adapter or model to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge several adapters or tuned models into one."""
    screen = Screen(quiet, as_json)
    with screen.steps() as progress:
        report = jobs.merge(
            adapters,
            out,
            method=method,
            options=dict(map(_option, option or ())),
            weights=None if weights is None else _numbers(weights),
            names=parse_names(names),
            base=base,
            model=model,
            rank=rank,
            error=error,
            budget=None if budget is None else parse_budget(budget, dtype or "float32"),
            missing=missing,
            statistics=stats or (),
            seed=seed,
            dtype=dtype,
            overwrite=overwrite,
            progress=progress,
        )
    screen.out.print(merge_table(report))
    screen.lines(merge_lines(report))
    screen.report(report.to_json())


def _option(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ArgumentError(f"--option {shlex.quote(text)}: write density=0.3") from None


def _numbers(text: str) -> Sequence[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--weights {shlex.quote(text)}: write 0.5,0.5") from None


MERGE = Extension(
    merge, ("merge A B -o AB", "merge A B C -o ABC --method ties --option density=0.3 --rank 32")
)
