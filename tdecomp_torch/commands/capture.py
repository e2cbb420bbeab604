"""``tdecomp capture``: what the weights of a model see of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import (
    Exclude,
    Json,
    Layers,
    Overwrite,
    Pattern,
    Quiet,
    Targets,
    to_write,
)
from tdecomp.cli.screen import Screen, short
from tdecomp.cli.words import parse_count, parse_selection
from tdecomp_torch.commands.needed import check_installed
from tdecomp_torch.commands.options import TEXTS, Length, Seed, Text, TorchDevice

__all__ = ["CAPTURE", "capture"]

WHAT = "What is captured"


def capture(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model folder.", show_default=False)
    ],
    *,
    text: Text,
    tokens: Annotated[
        str,
        typer.Option(metavar="N", help="Tokens to see, '50000', '200k'.", rich_help_panel=TEXTS),
    ] = "200k",
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Texts of a batch.", rich_help_panel=TEXTS)
    ] = 8,
    length: Length = 256,
    seed: Seed = 0,
    gradients: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            min=1,
            help="Sketch the gradients of the loss, too: of the next token where the model is "
            "causal, else of labels drawn from its logits.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    inputs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Frequent directions of inputs to keep; by default the whole second moment up "
            "to a width of 4096.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint",
            help="With --gradients: hold the activations of one layer at a time, in a third more "
            "time.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    device: TorchDevice = None,
    stats: Annotated[Path, to_write("STATS", "File to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run MODEL on texts and keep what its weights see: for starts of adapters from data."""
    check_installed("capture")
    from tdecomp_torch.jobs.capturing import CaptureOptions, CaptureSize, capture_files

    screen = Screen(quiet, as_json)

    def say(size: CaptureSize, weights: int) -> None:
        screen.note(
            f"{weights} weights: {short(size.statistics)}B of statistics at most, beside a model"
            f" of {short(size.model)}B."
        )

    options = CaptureOptions(
        tokens=parse_count("--tokens", tokens),
        gradients=gradients,
        inputs=inputs,
        batch=batch,
        length=length,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
    )
    with screen.steps() as progress:
        report = capture_files(
            model,
            stats,
            text=text,
            selection=parse_selection(targets, exclude, layers, pattern, None),
            options=options,
            overwrite=overwrite,
            before=say,
            progress=progress,
        )
    said = {"": "", "text": ", loss of the next token", "model": ", labels drawn from the model"}
    screen.lines(
        [
            f"{report.weights} weights, {report.inputs} inputs: {report.tokens:,} tokens in"
            f" {report.batches} batches{said[report.labels]}.",
            f"Written to {stats}.",
        ]
    )
    screen.report(report.to_json())


CAPTURE = Extension(
    capture,
    (
        "capture MODEL --text FILE -o STATS",
        "capture MODEL --text FILE -o STATS --tokens 50k --gradients 16",
    ),
)
