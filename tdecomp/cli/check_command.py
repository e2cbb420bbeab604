"""The command that says whether an adapter will act where it is to be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp import jobs
from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import NO_VALUE, OUTPUT, ForLoader, Json, Quiet
from tdecomp.cli.screen import Screen, printable
from tdecomp.cli.shown.checked import check_lines, check_table

__all__ = ["CHECK", "not_all"]


def check(
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="A LoRA: PEFT folder or .safetensors file.",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The model it is for; its config.json and index are enough.",
            show_default=False,
        ),
    ],
    *,
    loader: Annotated[str, ForLoader],
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            metavar=NO_VALUE,
            help="Show the tensors that act, too.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say which tensors of a LoRA will act; exit code 1 if any would not."""
    screen = Screen(quiet, as_json)
    report = jobs.check(adapter, model, loader=loader)
    if every or not report.acts:
        screen.table(check_table(report, whole=every))
    screen.lines(check_lines(report))
    screen.report(report.to_json())
    if not report.acts:
        raise not_all(report)


def not_all(report: jobs.CheckReport) -> typer.Exit:
    """Say on standard error that something does not act, for an end with code 1."""
    lost = report.tensors - report.acting
    what = f"{lost} of {report.tensors} tensors" if lost else "settings of the configuration"
    line = f"tdecomp: {what} of {report.adapter} would not act in {report.loader}"
    typer.echo(printable(line), err=True)
    return typer.Exit(1)


CHECK = Extension(
    check, ("check ADAPTER MODEL --for vllm", "check ADAPTER MODEL --for peft --quiet && echo acts")
)
