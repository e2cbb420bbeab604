"""The commands on adapters that people have: one made smaller, several compared."""

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
    to_write,
)
from tdecomp.cli.screen import Screen
from tdecomp.cli.shown.compared import compare_lines, members_table, pairs_table
from tdecomp.cli.shown.resized import resize_lines, resize_table
from tdecomp.cli.words import check_one_of, parse_budget
from tdecomp.files.loras import SCHEMES
from tdecomp.jobs.resizing import dtype_of

__all__ = ["COLLECTION_COMMANDS"]

AdapterBase = Annotated[
    Path | None,
    typer.Option(
        metavar="BASE",
        help="The base model, which DoRA is read against.",
        show_default=False,
        rich_help_panel=WHICH,
    ),
]


def resize(
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="A LoRA: PEFT folder, .safetensors file, factors; or a folder of several.",
            show_default=False,
        ),
    ],
    *,
    rank: Annotated[int | None, as_rank("Rank of every site.")] = None,
    error: Annotated[float | None, as_error("Relative error of ΔW over all sites, 0 to 1.")] = None,
    budget: Annotated[
        str | None, as_budget("Numbers in all pairs, '5M', or bytes at the file's dtype, '20MB'.")
    ] = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            metavar=NO_VALUE,
            help="Singular values that stand out of the noise of their site; for wide pairs.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = False,
    rank_max: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The largest rank that --error, --budget or --noise may give.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = None,
    same_rank: Annotated[
        bool,
        typer.Option(
            "--same-rank",
            metavar=NO_VALUE,
            help="One rank for all sites, and all adapters of a folder, as servers like it.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"Of the pairs, as stored by default: {DTYPE_NAMES}.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = None,
    base: AdapterBase = None,
    out: Annotated[Path, to_write("OUT", "Folder (PEFT) or .safetensors file to write.")],
    scheme: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Naming scheme to write, as read by default: "
            + ", ".join(row.name for row in SCHEMES)
            + ".",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="With --scheme: the network of all sites, 'unet' or 'transformer', where LORA "
            "names none.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA smaller: the best pairs of a lower rank, without forming ΔW."""
    check_one_of({"--rank": rank, "--error": error, "--budget": budget, "--noise": noise or None})
    screen = Screen(quiet, as_json)
    numbers = None
    if budget is not None:
        numbers = parse_budget(budget, dtype or dtype_of(adapter))
    with screen.steps() as progress:
        report = jobs.resize(
            adapter,
            out,
            rank=rank,
            error=error,
            budget=numbers,
            noise=noise,
            rank_max=rank_max,
            same_rank=same_rank,
            scheme=scheme,
            network=network,
            dtype=dtype,
            base=base,
            overwrite=overwrite,
            progress=progress,
        )
    screen.out.print(resize_table(report))
    screen.lines(resize_lines(report))
    screen.report(report.to_json())


def compare(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER", help="Two or more LoRAs, or folders of them.", show_default=False
        ),
    ],
    *,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE",
            help="The base model: DoRA is read against it, and intruder dimensions are counted.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="A site that not all have: 'zero', or 'refuse'.",
            rich_help_panel=WHICH,
        ),
    ] = "zero",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file with heat maps to write.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show how alike LoRAs are: cosines, principal angles, and who is in whose span."""
    screen = Screen(quiet, as_json)
    with screen.steps() as progress:
        report = jobs.compare(
            adapters,
            base=base,
            out=out,
            missing=missing,
            overwrite=overwrite,
            progress=progress,
        )
    screen.out.print(members_table(report))
    screen.out.print(pairs_table(report))
    screen.lines(compare_lines(report))
    screen.report(report.to_json())


COLLECTION_COMMANDS = {
    "compare": Extension(
        compare, ("compare LORA OTHER", "compare LORAS -o alike.html --base BASE")
    ),
    "resize": Extension(
        resize, ("resize LORA -o SMALL --rank 32", "resize LORA -o SMALL --error 0.1 --rank-max 64")
    ),
}
"""Command by name."""
