"""``tdecomp heal``: truncated factors learn from the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp.cli.extensions import Extension
from tdecomp.cli.options import (
    Base,
    Json,
    Out,
    Overwrite,
    Quiet,
    Tuned,
    to_write,
)
from tdecomp.cli.screen import Screen
from tdecomp.files.storage import local
from tdecomp_torch.commands.needed import check_installed
from tdecomp_torch.commands.options import LEARNING, Length, Seed, Text, TorchDevice

__all__ = ["HEAL", "heal"]


def heal(
    out: Out,
    base: Base,
    tuned: Tuned,
    *,
    text: Text,
    steps: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Steps, a batch each.", rich_help_panel=LEARNING),
    ] = 60,
    rate: Annotated[
        float,
        typer.Option(metavar="RATE", help="Highest learning rate.", rich_help_panel=LEARNING),
    ] = 3e-3,
    batch: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Texts of a batch.", rich_help_panel=LEARNING),
    ] = 32,
    length: Length = 128,
    seed: Seed = 0,
    device: TorchDevice = None,
    healed: Annotated[
        Path, to_write("FOLDER", "Folder to write: factors of the same formats and ranks.")
    ],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the factors in OUT for a few steps to give what TUNED gives; no labels are needed."""
    check_installed("heal")
    from tdecomp_torch.jobs.healing import HealOptions, heal_files

    screen = Screen(quiet, as_json)
    options = HealOptions(
        steps=steps, rate=rate, batch=batch, length=length, seed=seed, device=device
    )
    with screen.steps() as progress:
        report = heal_files(
            *_on_disk(out, base, tuned),
            healed,
            text=text,
            options=options,
            overwrite=overwrite,
            progress=progress,
        )
    for note in report.notes:
        screen.note(f"Note: {note}")
    errors = (
        f"Relative error of the delta: {report.error_before:.4f} before, {report.error:.4f} now:"
        " what was fitted are the outputs."
    )
    screen.lines([str(report.healing), errors, f"Written to {healed}."])
    screen.report(report.to_json())


def _on_disk(out: str, base: str, tuned: str) -> tuple[Path, Path, Path]:
    what = "models to heal"
    return local(out, what), local(base, what), local(tuned, what)


HEAL = Extension(
    heal,
    (
        "heal OUT BASE TUNED --text FILE -o HEALED",
        "heal OUT BASE TUNED --text FILE -o HEALED --steps 200 --rate 1e-3",
    ),
)
