"""Options of the commands that run models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp.cli.options import WHERE

__all__ = ["LEARNING", "TEXTS", "Length", "Seed", "Text", "TorchDevice"]

LEARNING, TEXTS = "How it learns", "Texts"
"""Panels of the help."""

Text = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="Texts, one a line; empty lines are left out.",
        show_default=False,
        rich_help_panel=TEXTS,
    ),
]
Length = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Tokens that a text is cut to.", rich_help_panel=TEXTS),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Of the choice and order of the texts.", rich_help_panel=TEXTS
    ),
]
TorchDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="Torch device to run on, 'cuda' or 'cuda:1'; by default the processor.",
        rich_help_panel=WHERE,
    ),
]
