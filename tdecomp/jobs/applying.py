"""Base + decoded delta, as a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tdecomp.files.atomic import output_folder
from tdecomp.files.checkpoint import check_unchanged, open_checkpoint, write_model
from tdecomp.files.delta import updates
from tdecomp.files.dtypes import code_of
from tdecomp.files.factors import load_factors
from tdecomp.files.storage import shown
from tdecomp.jobs.reports import Report, Unknown, unknown_of
from tdecomp.jobs.sources import check_shapes
from tdecomp.jobs.steps import StepProgress, of_step, untold

__all__ = ["ApplyReport", "apply"]


@dataclass(frozen=True, kw_only=True)
class ApplyReport(Report):
    """What `apply` wrote.

    Attributes
    ----------
    model
        The folder.
    changed
        Names of the tensors that differ from the base.
    unknown
        What may have changed by fine-tuning and is not in the factors.
    notes
        Sentences on what the folder of the base holds beside the model.
    """

    model: str
    changed: tuple[str, ...]
    unknown: tuple[Unknown, ...]
    notes: tuple[str, ...]


def apply(
    out: str | Path,
    base: str | Path,
    model: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> ApplyReport:
    """Write base + decoded delta as a model folder: same shards, names, dtypes and extra files.

    Parameters
    ----------
    out
        Folder that `decompose` wrote.
    base
        The model that the factors were made from.
    model
        Folder to write.
    dtype
        Cast all floating tensors: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Packed weights
        need it: they are decoded.
    overwrite
        Replace an existing output of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    FileError
        A file that cannot be read, a base that the factors were not made for, or a folder that may
        not be written.
    DataError
        A new weight that is not finite, or does not fit its dtype.
    """
    code = None if dtype is None else code_of(dtype)
    factors = load_factors(out)
    checkpoint = open_checkpoint(base)
    check_shapes(factors, checkpoint)
    with output_folder(model, overwrite=overwrite, inputs=[base, out]) as folder:
        told = of_step(progress, "writing")
        write_model(checkpoint, folder, updates(factors), dtype=code, progress=told)
        check_unchanged(checkpoint)
    return ApplyReport(
        model=shown(model),
        changed=tuple(factors.shapes),
        unknown=unknown_of(factors.unknown),
        notes=checkpoint.notes,
    )
