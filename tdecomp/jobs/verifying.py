"""Whether the error that a factors file claims is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdecomp.decomposition import measure
from tdecomp.files.checkpoint import open_checkpoint, pair
from tdecomp.files.delta import stacks_of
from tdecomp.files.factors import Factors, GroupFactors, load_factors
from tdecomp.files.tally import Tally
from tdecomp.jobs.reports import Report, Unknown, relative_error, unknown_of
from tdecomp.jobs.sources import changed_files, check_shapes, sources_of, were_hashed
from tdecomp.jobs.steps import StepProgress, of_step, untold

__all__ = ["CheckedSite", "VerifyReport", "verify"]

AGREES = 1e-3
"""Relative difference between a claimed and a measured error that `verify` accepts."""
_FLOOR = 1e-6  # errors below this are rounding of float32, compared absolutely


@dataclass(frozen=True, kw_only=True)
class CheckedSite:
    """Claimed and measured relative error of one site."""

    site: str
    claimed: float
    measured: float
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """Claimed and measured relative errors side by side.

    Attributes
    ----------
    unknown
        What no figure here contains.
    claimed, measured
        Over everything covered.
    agrees
        Whether they do, to 1e-3, in total and for every site.
    changed_files
        ``"base/model.safetensors"``: files that are not those that the factors were made from.
    sites
        One row each.
    """

    unknown: tuple[Unknown, ...]
    claimed: float
    measured: float
    agrees: bool
    changed_files: tuple[str, ...]
    sites: tuple[CheckedSite, ...]


def verify(
    out: str | Path, base: str | Path, tuned: str | Path, *, progress: StepProgress = untold
) -> VerifyReport:
    """Measure the error of a factors file again, from the two models.

    A claim that is not true is no exception: look at `VerifyReport.agrees`.

    Parameters
    ----------
    out
        Folder that `decompose` wrote.
    base, tuned
        The models that it was made from.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    FileError
        A file that cannot be read, or a base that the factors were not made for.
    DataError
        A weight that is not finite.
    """
    factors = load_factors(out)
    both = pair(open_checkpoint(base), open_checkpoint(tuned))
    check_shapes(factors, both.base)
    tally = Tally(of_step(progress, "measuring"), factors.delta_params)
    now: list[GroupFactors] = []
    for stack, part in zip(stacks_of(both, factors.groups), factors.parts, strict=True):
        residual, energy = measure(stack, part.tensor)
        now.append(
            GroupFactors(group=part.group, tensor=part.tensor, residual=residual, energy=energy)
        )
        tally.add(int(np.prod(stack.shape)))
    hashed = were_hashed(factors.sources)
    now_there = sources_of(base, tuned, both, progress, hashed=hashed)
    changed = changed_files(factors.sources, now_there)
    return _report(factors, now, changed)


def _report(factors: Factors, now: Sequence[GroupFactors], changed: Sequence[str]) -> VerifyReport:
    rows = [
        row for part, again in zip(factors.parts, now, strict=True) for row in _rows(part, again)
    ]
    claimed, measured = _error(factors.parts), _error(now)
    return VerifyReport(
        unknown=unknown_of(factors.unknown),
        claimed=claimed,
        measured=measured,
        agrees=_agree(claimed, measured) and all(row.agrees for row in rows),
        changed_files=tuple(changed),
        sites=tuple(rows),
    )


def _error(parts: Sequence[GroupFactors]) -> float:
    return relative_error(
        [float(part.residual.sum()) for part in parts], [float(part.energy.sum()) for part in parts]
    )


def _rows(part: GroupFactors, again: GroupFactors) -> list[CheckedSite]:
    rows: list[CheckedSite] = []
    for i, site in enumerate(part.group.sites):
        claimed = relative_error([part.residual[i]], [part.energy[i]])
        measured = relative_error([again.residual[i]], [again.energy[i]])
        agrees = _agree(claimed, measured)
        rows.append(CheckedSite(site=site.path, claimed=claimed, measured=measured, agrees=agrees))
    return rows


def _agree(claimed: float, measured: float) -> bool:
    return abs(claimed - measured) <= AGREES * claimed + _FLOOR
