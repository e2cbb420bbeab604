"""What a model holds: its family, groups of sites, and what would not be covered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tdecomp.files.checkpoint import Checkpoint, open_checkpoint
from tdecomp.files.delta import survey_model
from tdecomp.jobs.reports import Report
from tdecomp.stack import Group, Selection, group_sites
from tdecomp.stack.selection import EVERYTHING

__all__ = ["GroupOfModel", "InspectReport", "LeftOut", "inspect"]


@dataclass(frozen=True, kw_only=True)
class GroupOfModel:
    """A group of sites: its modes and sizes, labels, grid, stored dtypes and module paths."""

    name: str
    modes: tuple[str, ...]
    shape: tuple[int, ...]
    labels: tuple[tuple[int | str, ...], ...]
    grid: str
    dtypes: tuple[str, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A tensor that is not a site, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """What `inspect` says of a model.

    Attributes
    ----------
    model, family, model_type
        Its path, the naming scheme that was found, and what its configuration says.
    tensors, numbers, covered_numbers
        How many there are, and how many numbers the groups hold.
    groups, uncovered
        Every tensor is in the one or in the other.
    notes
        Sentences on what is unusual.
    """

    model: str
    family: str
    model_type: str | None
    tensors: int
    numbers: int
    covered_numbers: int
    groups: tuple[GroupOfModel, ...]
    uncovered: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def inspect(model: str | Path, *, selection: Selection = EVERYTHING) -> InspectReport:
    """Find the sites of a model and group them, from the headers of its files alone.

    Parameters
    ----------
    model
        Folder, ``.safetensors`` file or ``*.safetensors.index.json``.
    selection
        Which weights are sites, and how they are stacked.

    Raises
    ------
    FileError
        A model that cannot be read.
    SiteError
        No weight is a site, or a pattern cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> names = [f"layers.{i}.mlp.{proj}.weight" for i in range(2) for proj in ("up", "gate")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({n: np.ones((6, 4)) for n in names}, Path(folder, "model.safetensors"))
    ...     report = inspect(folder)
    >>> report.family, [(g.modes, g.shape) for g in report.groups]
    ('generic', [(('layer', 'proj', 'out', 'in'), (2, 2, 6, 4))])
    """
    checkpoint = open_checkpoint(model)
    survey = survey_model(checkpoint, selection)
    groups = group_sites(survey.sites, share=selection.share)
    return InspectReport(
        model=str(checkpoint.path),
        family=survey.family,
        model_type=checkpoint.config.get("model_type"),
        tensors=len(checkpoint.names),
        numbers=sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names),
        covered_numbers=sum(math.prod(group.shape) for group in groups),
        groups=tuple(_group(group, checkpoint) for group in groups),
        uncovered=tuple(LeftOut(tensor=name, reason=why) for name, why in survey.uncovered),
        notes=tuple(survey.notes),
    )


def _group(group: Group, checkpoint: Checkpoint) -> GroupOfModel:
    return GroupOfModel(
        name=group.name,
        modes=group.modes,
        shape=group.shape,
        labels=group.labels,
        grid=group.grid,
        dtypes=tuple(sorted({checkpoint.dtype(site.tensor) for site in group.sites})),
        sites=tuple(site.path for site in group.sites),
    )
