"""A page of figures from what other jobs wrote: one file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdecomp.errors import ArgumentError, FileError
from tdecomp.files.atomic import output_file
from tdecomp.files.factors import FACTORS, load_factors
from tdecomp.files.ours import is_json
from tdecomp.files.storage import local
from tdecomp.jobs.commands import report_command
from tdecomp.jobs.decomposing import REPORT
from tdecomp.jobs.exploring import MADE_BY_EXPLORE, ExploreReport
from tdecomp.jobs.page import MADE_BY, ToldBeside, explored_part, factored_part, whole_page
from tdecomp.jobs.reports import Report
from tdecomp.jobs.rereading import read_report
from tdecomp.jobs.steps import StepProgress, of_step, untold

__all__ = ["PageReport", "PageSource", "is_page", "report"]

_HEAD = 512  # bytes, in which a page says what made it


@dataclass(frozen=True, kw_only=True)
class PageSource:
    """What a page shows: a path, and ``"factors"`` or ``"exploration"``."""

    path: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class PageReport(Report):
    """A page that was written.

    Attributes
    ----------
    page
        Where it is.
    bytes
        Its size.
    sources
        What it shows, in order.
    """

    page: str
    bytes: int
    sources: tuple[PageSource, ...]


def report(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> PageReport:
    """Write one HTML page on factors and explorations: figures, tables and commands.

    The page loads nothing and runs no script. Of an exploration it shows the errors of all formats
    against the numbers they store and the commands that make the best; of factors energy, error and
    rank for every layer and projection, spectra, what is not covered, and the rounding floor. The
    models are not read.

    Parameters
    ----------
    sources
        One or several: folders that `decompose` wrote, and files that `explore` wrote.
    out
        HTML file to write.
    overwrite
        Replace an existing page of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        No source is given.
    FileError
        A source that is neither, or a file that may not be written.
    """
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise ArgumentError("a page needs something to show: name a folder or file to report on")
    with output_file(out, ours=is_page, overwrite=overwrite, inputs=paths) as file:
        parts: list[str] = []
        told: list[PageSource] = []
        step = of_step(progress, "drawing")
        for k, path in enumerate(paths):
            part, kind = _part(local(path, "sources of a page"))
            parts.append(part)
            told.append(PageSource(path=str(path), kind=kind))
            step((k + 1) / len(paths))
        footer = f"Made by: {report_command(paths, out)}"
        page = whole_page("What fine-tuning changed", parts, footer)
        size = file.write_bytes(page.encode("utf-8", "replace"))
    return PageReport(page=str(out), bytes=size, sources=tuple(told))


def _part(path: Path) -> tuple[str, str]:
    """What a page says of one source, and of which kind that is."""
    if path.is_dir() or path.name == FACTORS or path.suffix == ".safetensors":
        return _of_factors(path), "factors"
    if not path.exists():
        raise FileError(f"{path} does not exist: name a folder or file to report on")
    if not is_json(path, MADE_BY_EXPLORE):
        raise FileError(
            f"{path} is neither a folder that 'tdecomp decompose' wrote nor a file that"
            " 'tdecomp explore -o' wrote"
        )
    found = read_report(path, ExploreReport)
    if any(len(row.cells) != len(found.budgets) for row in found.rows):
        raise FileError(f"{path} is damaged: a row has not one cell for each of the budgets")
    return explored_part(found, f"Formats and budgets: {path}"), "exploration"


def _of_factors(path: Path) -> str:
    factors = load_factors(path)
    beside = (path if path.is_dir() else path.parent) / REPORT
    told = read_report(beside, ToldBeside) if beside.is_file() else ToldBeside()
    return factored_part(factors, told, f"Factors: {path}", str(path))


def is_page(path: Path) -> bool:
    """Whether a file is a page of this tool."""
    with path.open("rb") as file:
        return f'content="{MADE_BY}"'.encode() in file.read(_HEAD)
