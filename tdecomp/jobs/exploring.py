"""Which format for which budget: errors of all of them, and the commands that make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tdecomp import decomposition
from tdecomp.decomposition import Exploration
from tdecomp.decomposition.exploration.explore import Cell, Row, Winner
from tdecomp.files.atomic import output_file
from tdecomp.files.checkpoint import check_unchanged
from tdecomp.files.delta import Delta, open_delta
from tdecomp.files.ours import is_json
from tdecomp.jobs.commands import decompose_command, explore_command
from tdecomp.jobs.machine import HERE, Machine
from tdecomp.jobs.methods import EXPLORED, METHODS, named
from tdecomp.jobs.reports import OPTIONAL, Report, Unknown
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.stack import Group, Selection
from tdecomp.stack.selection import EVERYTHING

__all__ = [
    "MADE_BY_EXPLORE",
    "BestWithin",
    "CandidateErrors",
    "ErrorWithin",
    "ExploreReport",
    "ExploredGroup",
    "explore",
]

MADE_BY_EXPLORE = "tdecomp explore"
"""By which its report is known again."""


@dataclass(frozen=True, kw_only=True)
class ExploredGroup:
    """A group of sites."""

    name: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ErrorWithin:
    """One candidate within one budget: numbers stored, relative error, rank of every group.

    `confirmed`: the error was measured on factors; else it is estimated from sketches.
    """

    n_params: int
    error: float
    ranks: tuple[str, ...]
    confirmed: bool


@dataclass(frozen=True, kw_only=True)
class CandidateErrors:
    """One candidate over all budgets.

    Attributes
    ----------
    name, method
        What it is called, and the decomposition that makes it.
    options
        Of ``tdecomp decompose``; None where no options make it.
    cells
        One per budget; None where the budget is below rank 1.
    """

    name: str
    method: str
    options: tuple[str, ...] | None
    cells: tuple[ErrorWithin | None, ...]


@dataclass(frozen=True, kw_only=True)
class BestWithin:
    """The least error within one budget, the next, and what makes the first.

    Attributes
    ----------
    budget, name, error, runner_up, runner_up_error
        As in `tdecomp.explore`.
    command
        Of the command line; None where no options make it.
    python
        The call.
    """

    budget: int
    name: str
    error: float
    runner_up: str | None
    runner_up_error: float | None
    command: str | None
    python: str


@dataclass(frozen=True, kw_only=True)
class ExploreReport(Report):
    """Every error, the winners, and the commands that make them.

    Attributes
    ----------
    made_by
        ``"tdecomp explore"``.
    unknown
        What no figure here contains.
    family, groups, numbers, notes
        Of the delta.
    zero_delta
        Whether the two models are equal in all that is covered.
    passes
        How often every matrix was read.
    budgets, rows, winners
        Numbers to store; a row per candidate; a winner per budget.
    command
        Of the command line, that finds the same; None in reports written before there was one.
    """

    made_by: str
    unknown: tuple[Unknown, ...]
    family: str
    groups: tuple[ExploredGroup, ...]
    numbers: int
    zero_delta: bool
    passes: int
    budgets: tuple[int, ...]
    rows: tuple[CandidateErrors, ...]
    winners: tuple[BestWithin, ...]
    notes: tuple[str, ...]
    command: str | None = field(default=None, metadata=OPTIONAL)


def explore(
    base: str | Path,
    tuned: str | Path,
    *,
    budgets: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    selection: Selection = EVERYTHING,
    out: str | Path | None = None,
    machine: Machine = HERE,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> ExploreReport:
    """Compare formats for ``tuned - base``: error against stored numbers, from a few reads.

    Parameters
    ----------
    base, tuned
        Models: folders, ``.safetensors`` files or indexes, here or on a server (``s3://...``).
    budgets
        Numbers to store; by default 1/256 to 1/16 of those in the delta.
    methods
        Some of `tdecomp.jobs.methods.EXPLORED`; by default all but ``"cp"``.
    selection
        Which weights are sites, and how they are stacked.
    out
        JSON file to write the report to.
    machine
        Where to compute, and in how much memory.
    allow_missing
        Go on when sites have no partner: what changed there stays unknown.
    overwrite
        Replace an existing report.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        A budget or method that cannot be honoured.
    FileError
        A model that cannot be read, or a file that may not be written.
    SiteError
        No site, or sites without a partner.
    DataError
        A weight that is not finite.
    """
    formats = None if methods is None else [named(EXPLORED, name).function for name in methods]
    with ExitStack() as stack:
        file = None
        if out is not None:
            ours = partial(is_json, made_by=MADE_BY_EXPLORE)
            file = stack.enter_context(
                output_file(out, ours=ours, overwrite=overwrite, inputs=[base, tuned])
            )
        delta = open_delta(base, tuned, selection, allow_missing=allow_missing, mmap=machine.mmap)
        found = decomposition.explore(
            machine.stacks(delta),
            budgets,
            formats=formats,
            progress=of_step(progress, "exploring"),
        )
        check_unchanged(delta.pair.base)
        check_unchanged(delta.pair.tuned)
        typed = partial(decompose_command, base, tuned, selection, allow_missing=allow_missing)
        again = explore_command(
            base,
            tuned,
            selection,
            budgets=found.budgets,
            methods=methods,
            allow_missing=allow_missing,
        )
        report = replace(_report(found, delta, typed), command=again)
        if file is not None:
            file.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def _report(
    found: Exploration, delta: Delta, typed: Callable[[Sequence[str]], str]
) -> ExploreReport:
    unknown = [row for row in delta.unpaired if row.energy is None]
    rows = tuple(_candidate(row, delta.groups) for row in found.rows)
    options = {row.name: row.options for row in rows}
    return ExploreReport(
        made_by=MADE_BY_EXPLORE,
        unknown=tuple(Unknown(tensor=r.tensor, reason=r.reason, site=r.site) for r in unknown),
        family=delta.survey.family,
        groups=tuple(
            ExploredGroup(name=g.name, modes=g.modes, shape=g.shape) for g in delta.groups
        ),
        numbers=found.n_numbers,
        zero_delta=found.energy == 0 and not unknown,
        passes=found.passes,
        budgets=tuple(found.budgets),
        rows=rows,
        winners=tuple(
            _best(winner, found, options[winner.name], typed) for winner in found.winners
        ),
        notes=tuple(delta.survey.notes),
    )


def _best(
    winner: Winner,
    found: Exploration,
    options: tuple[str, ...] | None,
    typed: Callable[[Sequence[str]], str],
) -> BestWithin:
    words = None if options is None else [*options, "--budget", str(winner.budget)]
    return BestWithin(
        budget=winner.budget,
        name=winner.name,
        error=winner.error,
        runner_up=winner.runner_up,
        runner_up_error=winner.runner_up_error,
        command=None if words is None else typed(words),
        python=found.row(winner.name).call(winner.budget),
    )


def _candidate(row: Row, groups: Sequence[Group]) -> CandidateErrors:
    return CandidateErrors(
        name=row.name,
        method=row.method,
        options=_options(row, groups),
        cells=tuple(None if cell is None else _within(cell) for cell in row.cells),
    )


def _within(cell: Cell) -> ErrorWithin:
    return ErrorWithin(
        n_params=cell.n_params, error=cell.error, ranks=cell.ranks, confirmed=cell.confirmed
    )


def _options(row: Row, groups: Sequence[Group]) -> tuple[str, ...] | None:
    """Options of ``tdecomp decompose`` that make a row; None where none do.

    Sites that stack along fewer modes are grouped anew. That gives the parts of the groups only
    where these are whole grids, and heads only where they are asked for.
    """
    if row.method not in METHODS:
        return None
    words = ["--method", row.method]
    if row.modes is not None:
        names = {g.modes[row.modes[0]] for g in groups}
        words += [f"--modes={names.pop() if len(names) == 1 else row.modes[0]}"]
    if row.share is not None:
        heads = any("head" in g.modes for g in groups) and "head" not in row.share
        if heads or any(g.grid != "full" for g in groups):
            return None
        words += ["--share", ",".join(row.share)]
    return tuple(words)
