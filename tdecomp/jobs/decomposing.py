"""Tuned - base as a small set of factors, with all that they leave out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp import decomposition
from tdecomp._xp import namespace, to_numpy
from tdecomp.decomposition import Fit, Fits
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_folder
from tdecomp.files.delta import Delta, Remainder, Uncovered, open_delta
from tdecomp.files.dtypes import code_of
from tdecomp.files.factors import FACTORS, Factors, GroupFactors, save_factors
from tdecomp.formats import Format
from tdecomp.jobs.exporting import ExportReport, LoraOptions, write_factors_as_lora
from tdecomp.jobs.machine import HERE, Machine
from tdecomp.jobs.methods import METHODS, checked_modes, named
from tdecomp.jobs.reports import OPTIONAL, relative_error
from tdecomp.jobs.sources import sources_of
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.jobs.stored_factors import OfFactors, energy_of, of_factors
from tdecomp.stack import Group, Selection
from tdecomp.stack.selection import EVERYTHING
from tdecomp.tasks import sendable

__all__ = ["DecomposeReport", "NotCovered", "decompose"]

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class NotCovered:
    """A tensor that the factors do not hold, and its share of all that was measured.

    The share is None where it is unknown.
    """

    tensor: str
    reason: str
    energy_share: float | None


@dataclass(frozen=True, kw_only=True)
class DecomposeReport(OfFactors):
    """What `decompose` found: the factors, what they leave out, and the rounding floor.

    Attributes
    ----------
    family, notes
        The naming scheme of the base, and sentences on what is unusual.
    zero_delta
        Whether the two models are equal in everything that both hold.
    uncovered_share, uncovered_share_of_measured
        Share of ``‖Δ‖²`` that the factors do not hold: of all (None where a part is unknown), and
        of what could be measured.
    uncovered
        One row per tensor.
    rounding_floor
        Relative error that is only the rounding of half-precision storage.
    lora
        Where a LoRA was written too.
    """

    family: str
    notes: tuple[str, ...]
    zero_delta: bool
    uncovered_share: float | None
    uncovered_share_of_measured: float
    uncovered: tuple[NotCovered, ...]
    rounding_floor: float
    lora: ExportReport | None = field(default=None, metadata=OPTIONAL)


def decompose(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    method: str = "svd",
    modes: tuple[str | int, ...] | None = None,
    rank: int | tuple[int, ...] | Mapping[str, int] | None = None,
    error: float | None = None,
    budget: int | None = None,
    rank_max: int | None = None,
    selection: Selection = EVERYTHING,
    dtype: str = "float32",
    lora: LoraOptions | None = None,
    machine: Machine = HERE,
    allow_missing: bool = False,
    hashes: bool = True,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> DecomposeReport:
    """Decompose ``tuned - base`` into the folder `out`.

    Two equal models are no error: the factors are then zero, and the report says `zero_delta`.

    Parameters
    ----------
    base, tuned
        Models: folders, ``.safetensors`` files or indexes, here or on a server (``s3://...``).
    out
        Folder to write: ``factors.safetensors``, ``report.json`` and, with `lora`, ``lora``.
    method
        One of `tdecomp.jobs.methods.METHODS`: ``"svd"``, ``"tucker2"``, ``"tucker"``,
        ``"tensor_train"``.
    modes
        Modes that ``"tucker"`` (any) or ``"tucker2"`` (two) compresses.
    rank, error, budget
        Exactly one: a rank for every compressed mode, a relative error over everything covered, or
        numbers to store in all.
    rank_max
        The largest rank that an error or a budget may give.
    selection
        Which weights are sites, and how they are stacked.
    dtype
        Of the factors: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    lora
        Write a PEFT LoRA folder, too.
    machine
        Where to compute, and in how much memory.
    allow_missing
        Go on when sites have no partner: what changed there stays unknown.
    hashes
        Keep SHA-256 of the models' files, by which `verify` knows them again; False: names and
        sizes only, which spares another read of everything.
    overwrite
        Replace an existing output of this tool.
    progress
        Called with the fraction of a step and its name.

    Raises
    ------
    ArgumentError
        A target, method or mode that cannot be honoured.
    FileError
        A model that cannot be read, or a folder that may not be written.
    SiteError
        No site, or sites without a partner.
    DataError
        A weight that is not finite.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> name, old = "layers.0.mlp.weight", np.ones((6, 4), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = Path(folder, "base.safetensors"), Path(folder, "tuned.safetensors")
    ...     save_file({name: old}, base)
    ...     save_file({name: old + np.outer(range(6), range(4)).astype("f")}, tuned)
    ...     report = decompose(base, tuned, Path(folder, "out"), error=0.01)
    >>> report.error < 1e-6, report.groups[0].rank, report.n_params
    (True, (1,), 11)
    """
    row, code, options = named(METHODS, method), code_of(dtype), checked_modes(method, modes)
    asked: dict[str, Any] = {"rank": rank, "error": error, "budget": budget, **options}
    if rank_max is not None:
        asked["rank_max"] = rank_max
    with output_folder(out, overwrite=overwrite, inputs=[base, tuned]) as folder:
        delta = open_delta(base, tuned, selection, allow_missing=allow_missing, mmap=machine.mmap)
        fits = decomposition.decompose(
            machine.stacks(delta),
            row.function,
            **asked,
            rounding=_StoredAs(code),
            progress=of_step(progress, "decomposing"),
        )
        told = of_step(progress, "measuring what is not covered")
        remainder = delta.remainder(told, machine.executor)
        factors = Factors(
            method=method,
            dtype=code,
            parts=_parts(delta.groups, fits),
            shapes=delta.shapes,
            sources=sources_of(base, tuned, delta.pair, progress, machine.executor, hashed=hashes),
            options={**asked, **selection.to_json()},
            unknown=_unknown(remainder),
        )
        save_factors(folder / FACTORS, factors)
        written = None
        if lora is not None:
            (folder / "lora").mkdir()
            written = write_factors_as_lora(folder / "lora", factors, lora, code)
        report = _report(factors, delta, remainder, written)
        text = json.dumps(report.to_json(), indent=2) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
    return report


@sendable
@dataclass(frozen=True)
class _StoredAs:
    """Rounds an array to a stored dtype and back, where it is."""

    code: str

    def __call__(self, array: Any) -> Any:
        stored = safetensors.rounded(to_numpy(array), self.code)
        if isinstance(array, np.ndarray):
            return stored
        return namespace(array).asarray(stored, device=array.device)


def _parts(groups: tuple[Group, ...], fits: Fits) -> tuple[GroupFactors, ...]:
    return tuple(_part(group, fit) for group, fit in zip(groups, fits, strict=True))


def _part(group: Group, fit: Fit) -> GroupFactors:
    tensor = _on_host(fit.tensor)
    return GroupFactors(group=group, tensor=tensor, residual=fit.residual, energy=fit.energy)


def _on_host(tensor: Format) -> Format:
    return tensor.with_arrays({name: to_numpy(a) for name, a in tensor.arrays.items()})


def _unknown(remainder: Remainder) -> tuple[tuple[str, str, bool], ...]:
    rows = [row for row in remainder.uncovered if row.energy is None]
    return tuple((row.tensor, row.reason, row.site) for row in rows)


def _report(
    factors: Factors, delta: Delta, remainder: Remainder, lora: ExportReport | None
) -> DecomposeReport:
    covered = energy_of(factors)
    left_out = sum(row.energy for row in remainder.uncovered if row.energy is not None)
    measured = covered + left_out
    share = left_out / measured if measured else 0.0
    return DecomposeReport(
        **of_factors(factors),
        family=delta.survey.family,
        notes=tuple(delta.survey.notes),
        zero_delta=measured == 0 and not factors.unknown,
        uncovered_share=None if factors.unknown else share,
        uncovered_share_of_measured=share,
        uncovered=tuple(_not_covered(row, measured) for row in remainder.uncovered),
        rounding_floor=relative_error([remainder.rounding], [covered]),
        lora=lora,
    )


def _not_covered(row: Uncovered, measured: float) -> NotCovered:
    share = row.energy
    if share is not None:
        share = share / measured if measured else 0.0
    return NotCovered(tensor=row.tensor, reason=row.reason, energy_share=share)
