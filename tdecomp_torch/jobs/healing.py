"""Healing from files to files: what ``tdecomp heal`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tdecomp.errors import ArgumentError
from tdecomp.files import load_factors
from tdecomp.files.atomic import output_folder
from tdecomp.jobs.remeasuring import check_pair, write_remeasured
from tdecomp.jobs.reports import Report
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.jobs.stored_factors import of_factors
from tdecomp_torch.healing.heal import heal
from tdecomp_torch.healing.report import HealReport
from tdecomp_torch.loading.models import load_pair, load_tokenizer
from tdecomp_torch.loading.texts import batches_of, read_texts

__all__ = ["HealFilesReport", "HealOptions", "heal_files"]

_VALIDATION = 0.2


@dataclass(frozen=True, kw_only=True)
class HealOptions:
    """How factors are healed; attributes as the options of ``tdecomp heal``."""

    steps: int = 60
    rate: float = 3e-3
    batch: int = 32
    length: int = 128
    seed: int = 0
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class HealFilesReport(Report):
    """What was healed and written.

    Attributes
    ----------
    healing
        What it won.
    error_before, error
        Relative error of the factors against the delta, as they were and as they were written.
    texts
        How many were read.
    notes
        What is not as one would expect.
    """

    healing: HealReport
    error_before: float
    error: float
    texts: int
    notes: tuple[str, ...]


def heal_files(
    out: Path,
    base: Path,
    tuned: Path,
    healed: Path,
    *,
    text: Path,
    options: HealOptions,
    overwrite: bool = False,
    progress: StepProgress = untold,
) -> HealFilesReport:
    """Heal the factors in a folder into another.

    Parameters
    ----------
    out
        Folder that ``tdecomp decompose`` wrote.
    base, tuned
        Folders of models that transformers loads.
    healed
        To write; factors that were not won are written as they were.
    text
        One text a line; as many are taken at random as the steps can see.

    Raises
    ------
    FileError
        What cannot be read or written, or factors of other models.
    """
    factors = load_factors(out)
    check_pair(factors, base, tuned)
    most = round(options.steps * options.batch / (1 - _VALIDATION)) + options.batch
    texts = read_texts(text, most, seed=options.seed)
    with output_folder(healed, overwrite=overwrite, inputs=[out, base, tuned, text]) as folder:
        tokens = load_tokenizer(tuned, base)
        batch = min(options.batch, max(1, len(texts) // 2))
        batches = batches_of(tokens, texts, batch=batch, length=options.length, seed=options.seed)
        if len(batches) < 2:
            raise ArgumentError(f"{text} has one text: some are trained on, some are looked at")
        ours, theirs, note = load_pair(base, tuned, device=options.device)
        report = heal(
            ours,
            theirs,
            factors,
            batches,
            steps=options.steps,
            rate=options.rate,
            validation=_VALIDATION,
            seed=options.seed,
            progress=of_step(progress, "healing"),
        )
        assert report.factors is not None
        written = write_remeasured(
            folder,
            report.factors,
            base,
            tuned,
            more={"healing": report.to_json()},
            progress=progress,
        )
    return HealFilesReport(
        healing=report,
        error_before=of_factors(factors)["error"],
        error=written.error,
        texts=len(texts),
        notes=(note,) if note else (),
    )
