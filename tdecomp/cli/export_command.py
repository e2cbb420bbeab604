"""The command that writes factors, or a LoRA, as a LoRA that a program loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp import jobs
from tdecomp.cli.check_command import not_all
from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import (
    DTYPE_NAMES,
    OUTPUT,
    ForLoader,
    Json,
    LoraRank,
    Overwrite,
    Quiet,
    RankPattern,
    Task,
)
from tdecomp.cli.screen import Screen
from tdecomp.cli.shown.fitted import fit_lines
from tdecomp.cli.shown.lora import lora_lines
from tdecomp.cli.shown.shared import task_line
from tdecomp.cli.shown.tables import unknown_lines
from tdecomp.errors import ArgumentError
from tdecomp.files.peft_lora import VLLM_RANKS
from tdecomp.files.storage import shown

__all__ = ["EXPORT"]


def export(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder that 'decompose' wrote; with --for also a LoRA.",
            show_default=False,
        ),
    ],
    lora: Annotated[
        Path,
        typer.Option(
            "--lora",
            metavar="DIR",
            help="PEFT LoRA folder to write; a .safetensors file for diffusers and comfyui.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ],
    loader: Annotated[str | None, ForLoader] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="With --for: the model it is for, by default the one that OUT names.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    lora_rank: LoraRank = VLLM_RANKS[-1],
    rank_pattern: RankPattern = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"Of the LoRA, as the factors by default: {DTYPE_NAMES}.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    task: Task = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write factors as a LoRA that PEFT and vLLM load; with --for, as one program takes it."""
    screen = Screen(quiet, as_json)
    resized = rank_pattern or lora_rank != VLLM_RANKS[-1]
    if loader is not None:
        _check_alone(resized or task is not None)
        made = jobs.export_for(
            out, lora, loader=loader, base=base, dtype=dtype, overwrite=overwrite
        )
        screen.lines(fit_lines(made))
        screen.report(made.to_json())
        if not made.check.acts:
            raise not_all(made.check)
        return
    if base is not None:
        raise ArgumentError("--base names the model that --for is for", tip="add --for vllm")
    if task is not None:
        if dtype is not None or resized:
            raise ArgumentError("a member of a basis is written as it is: --task stands alone")
        told = jobs.export_task(out, task, lora, overwrite=overwrite)
        screen.lines([task_line(told)])
        screen.report(told.to_json())
        return
    options = jobs.LoraOptions(max_rank=lora_rank, rank_pattern=rank_pattern)
    report = jobs.export(out, lora, lora=options, dtype=dtype, overwrite=overwrite)
    for line in unknown_lines(report.unknown):
        screen.note(line)
    screen.lines(lora_lines(report, shown(lora)))
    screen.report(report.to_json())


def _check_alone(others: bool) -> None:
    if others:
        raise ArgumentError(
            "--for decides ranks itself, and takes neither --lora-rank, --rank-pattern nor --task",
            tip="export without --for first, then tdecomp export DIR --lora OTHER --for LOADER",
        )


EXPORT = Extension(
    export, ("export OUT --lora DIR", "export LORA --lora DIR --for vllm --base MODEL")
)
