"""The command that keeps several adapters in bases that they have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp import jobs
from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import (
    DTYPE_NAMES,
    HOW_SMALL,
    NO_VALUE,
    OUTPUT,
    WHICH,
    Json,
    Overwrite,
    Quiet,
    as_budget,
    as_error,
    as_rank,
)
from tdecomp.cli.screen import Screen
from tdecomp.cli.shown.shared import basis_lines, basis_table
from tdecomp.cli.words import parse_budget, parse_names
from tdecomp.errors import ArgumentError

__all__ = ["BASIS"]


def basis(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER",
            help="Adapters to share bases, or one folder that 'basis' wrote.",
            show_default=False,
        ),
    ],
    *,
    rank: Annotated[int | None, as_rank("Rank of every basis.")] = None,
    error: Annotated[float | None, as_error("Relative error over all adapters, 0 to 1.")] = None,
    budget: Annotated[
        str | None, as_budget("Numbers in bases and cores, '5M', or bytes, '20MB'.")
    ] = None,
    over_layers: Annotated[
        bool,
        typer.Option(
            "--over-layers",
            metavar=NO_VALUE,
            help="Share the bases over layers, too.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = False,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Of the adapters, in order: 'fr,de'.", rich_help_panel=WHICH
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE",
            help="The base model, for tuned models and DoRA.",
            show_default=False,
            rich_help_panel=WHICH,
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
    add_to: Annotated[
        Path | None,
        typer.Option(
            metavar="BASIS",
            help="Add the adapter to this folder; what is there stays byte by byte.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Take a member out of the folder that is named.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"As the first adapter's by default: {DTYPE_NAMES}.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Folder to write.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Keep adapters in common bases, one small core each; or show such a folder."""
    screen = Screen(quiet, as_json)
    small = {"--rank": rank, "--error": error, "--budget": budget}
    with screen.steps() as progress:
        if out is not None:
            report = jobs.basis(
                adapters,
                out,
                rank=rank,
                error=error,
                budget=None if budget is None else parse_budget(budget, dtype or "float32"),
                over_layers=over_layers,
                names=parse_names(names),
                base=base,
                missing=missing,
                dtype=dtype,
                overwrite=overwrite,
                progress=progress,
            )
        elif add_to is not None:
            report = jobs.add_to_basis(
                _one(adapters), add_to, name=names, base=base, progress=progress
            )
        elif remove is not None:
            report = jobs.remove_from_basis(_one(adapters), remove)
        else:
            if any(value is not None for value in small.values()):
                raise ArgumentError("nothing says where to write", tip="add -o OUT")
            report = jobs.basis_info(_one(adapters))
    screen.out.print(basis_table(report))
    screen.lines(basis_lines(report))
    screen.report(report.to_json())


def _one(adapters: list[Path]) -> Path:
    if len(adapters) != 1:
        raise ArgumentError(f"{len(adapters)} adapters were named, one is taken", tip="add -o OUT")
    return adapters[0]


BASIS = Extension(basis, ("basis A B C -o OUT --error 0.1", "basis D --add-to OUT"))
