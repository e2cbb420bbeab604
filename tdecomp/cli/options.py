"""Options and arguments that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tdecomp.files.dtypes import STORED
from tdecomp.files.loaders import LOADERS
from tdecomp.jobs.methods import EXPLORED, METHODS

__all__ = [
    "DTYPE_NAMES",
    "HOW_SMALL",
    "NO_VALUE",
    "OUTPUT",
    "WHERE",
    "WHICH",
    "AllowMissing",
    "Base",
    "Dask",
    "Device",
    "ExploredMethods",
    "ForLoader",
    "Exclude",
    "Json",
    "Layers",
    "LoraRank",
    "MaxMemory",
    "Method",
    "Modes",
    "NoHash",
    "NoMmap",
    "Out",
    "Overwrite",
    "PartOf",
    "Pattern",
    "Quiet",
    "RankPattern",
    "Scratch",
    "Share",
    "Targets",
    "Task",
    "Timeout",
    "Torchrun",
    "Tuned",
    "examples",
    "as_budget",
    "as_error",
    "as_rank",
    "to_draw",
    "to_write",
]

HOW_SMALL, WHICH, WHERE, OUTPUT = "How small", "Which weights", "Where it runs", "Output"
"""The panels of the help."""

NO_VALUE = " "
"""In the place of Typer's `<bool>`, for an option that takes no value."""

DTYPE_NAMES = ", ".join(STORED)


def examples(*commands: str) -> str:
    """The end of a command's help: ready to be pasted."""
    return "\n".join(["Examples:", *(f"  tdecomp {command}" for command in commands)])


def to_write(metavar: str, text: str) -> Any:
    """The option that says where a command writes, for one that cannot do without."""
    return typer.Option(
        "--out", "-o", metavar=metavar, help=text, show_default=False, rich_help_panel=OUTPUT
    )


def as_rank(text: str) -> Any:
    """The option that says how small by a rank."""
    return typer.Option("--rank", metavar="N", min=1, help=text, rich_help_panel=HOW_SMALL)


def as_error(text: str) -> Any:
    """The option that says how small by a relative error."""
    return typer.Option("--error", metavar="SHARE", help=text, rich_help_panel=HOW_SMALL)


def as_budget(text: str) -> Any:
    """The option that says how small by numbers or bytes."""
    return typer.Option("--budget", metavar="SIZE", help=text, rich_help_panel=HOW_SMALL)


def to_draw(what: str) -> Any:
    """The option that names a file for a picture."""
    return typer.Option(
        "--picture",
        metavar="FILE",
        help=f"SVG file to draw {what} to.",
        show_default=False,
        rich_help_panel=OUTPUT,
    )


def _choices(first: str, rows: dict[str, str]) -> str:
    """Help with a line for every value."""
    return "\n\n".join([first, *(f"[bold]{name}[/bold]: {text}." for name, text in rows.items())])


Base = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="The base model: a path, or s3://, gs://, hf://, https://.",
        show_default=False,
    ),
]
Tuned = Annotated[
    str, typer.Argument(metavar="TUNED", help="The fine-tuned model.", show_default=False)
]
Out = Annotated[
    str,
    typer.Argument(metavar="OUT", help="Folder that 'decompose' wrote.", show_default=False),
]

Method = Annotated[
    str,
    typer.Option(
        metavar="METHOD",
        help=_choices("One of", {name: row.sentence for name, row in METHODS.items()}),
        rich_help_panel=HOW_SMALL,
    ),
]
ExploredMethods = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help=_choices(
            "Some of, as in 'svd,tucker'; by default all but cp:",
            {name: row.sentence for name, row in EXPLORED.items()},
        ),
        rich_help_panel=HOW_SMALL,
    ),
]
Modes = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Modes that are compressed, 'in' for one basis of the inputs alone: any of tucker "
        "and hosvd (default: all), two of tucker2 ('out,in'), one of interpolative ('in').",
        rich_help_panel=HOW_SMALL,
    ),
]

Targets = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="As in PEFT: names or suffixes 'q_proj,v_proj', a regex, or 'all-linear'.",
        rich_help_panel=WHICH,
    ),
]
Exclude = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Names or a regex to leave out.", rich_help_panel=WHICH),
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Layers to keep: '0-5,8'.", rich_help_panel=WHICH),
]
Pattern = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Where the sites are, in the place of a known family: 'blocks.{layer}.att.{proj}'; "
        "can be repeated.",
        rich_help_panel=WHICH,
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        metavar="MODES",
        help="Site modes stacked together: 'layer,proj' (default: all of them), 'head' for one "
        "slice per head, 'site' for one flat mode, 'none' for every matrix alone.",
        rich_help_panel=WHICH,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        metavar=NO_VALUE,
        help="Go on when weights to be covered have no partner: what changed there stays unknown.",
        rich_help_panel=WHICH,
    ),
]

Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="Torch device to compute on, 'cuda' or 'cuda:1'; by default numpy.",
        rich_help_panel=WHERE,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Refuse what would take more, '2GB'; by default half of what is free.",
        rich_help_panel=WHERE,
    ),
]

NoMmap = Annotated[
    bool,
    typer.Option(
        "--no-mmap",
        metavar=NO_VALUE,
        help="Read local files in large pieces, several at once: for network mounts.",
        rich_help_panel=WHERE,
    ),
]

NoHash = Annotated[
    bool,
    typer.Option(
        "--no-hash",
        metavar=NO_VALUE,
        help="Keep sizes of the models' files, not their SHA-256: spares a read of everything.",
        rich_help_panel=WHERE,
    ),
]

Dask = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEDULER",
        help="Work on a Dask cluster, 'tcp://host:8786', or on one made here, 'local'.",
        rich_help_panel=WHERE,
    ),
]
PartOf = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="PART",
        help="'3/8': be one of eight such commands that share the work out through --scratch; "
        "the first writes the output.",
        rich_help_panel=WHERE,
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the parts meet: all of them see it. It may be in a bucket, s3://...",
        rich_help_panel=WHERE,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="How long parts wait for one another before its work is taken over.",
        rich_help_panel=WHERE,
    ),
]
Torchrun = Annotated[
    bool,
    typer.Option(
        "--torchrun",
        metavar=NO_VALUE,
        help="Be one of the processes that torchrun started.",
        rich_help_panel=WHERE,
    ),
]

LoraRank = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Widest LoRA pair; wider ones are truncated by SVD.",
        rich_help_panel=OUTPUT,
    ),
]
RankPattern = Annotated[
    bool,
    typer.Option(
        "--rank-pattern",
        metavar=NO_VALUE,
        help="Keep every module's own rank in 'rank_pattern' (PEFT only), in the place of padding.",
        rich_help_panel=OUTPUT,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which adapter of a folder that 'basis' wrote.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
ForLoader = typer.Option(
    "--for",
    metavar="LOADER",
    help=f"What will load it: {', '.join(LOADERS)}.",
    show_default=False,
    rich_help_panel=OUTPUT,
)
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", metavar=NO_VALUE, help="Replace an existing output.", rich_help_panel=OUTPUT
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", metavar=NO_VALUE, help="Print nothing but errors.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar=NO_VALUE, help="Print the report as JSON.", rich_help_panel=OUTPUT
    ),
]
