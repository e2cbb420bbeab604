"""Factors that were changed after they were made, in a folder with their true errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdecomp.decomposition import measure
from tdecomp.files.checkpoint import open_checkpoint, pair
from tdecomp.files.delta import stacks_of
from tdecomp.files.factors import FACTORS, Factors, save_factors
from tdecomp.files.tally import Tally
from tdecomp.jobs.decomposing import REPORT
from tdecomp.jobs.sources import check_shapes, sources_of
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.jobs.stored_factors import FactorsReport, of_factors

__all__ = ["check_pair", "write_remeasured"]


def check_pair(factors: Factors, base: str | Path, tuned: str | Path) -> None:
    """Refuse models that factors are not of, before work begins.

    Raises
    ------
    FileError
        A model that cannot be read, or a base that the factors were not made for.
    """
    check_shapes(factors, pair(open_checkpoint(base), open_checkpoint(tuned)).base)


def write_remeasured(
    folder: Path,
    factors: Factors,
    base: str | Path,
    tuned: str | Path,
    *,
    more: Mapping[str, Any],
    progress: StepProgress = untold,
) -> FactorsReport:
    """Measure factors against two models, and write them and a report into an existing folder.

    Parameters
    ----------
    folder
        Of `tdecomp.files.atomic.output_folder`.
    factors
        Their errors are not looked at.
    base, tuned
        Models whose difference they stand for.
    more
        For the report, beside what it says of factors; plain JSON values.
    """
    both = pair(open_checkpoint(base), open_checkpoint(tuned))
    tally = Tally(of_step(progress, "measuring"), factors.delta_params)
    parts = list(factors.parts)
    for k, (stack, part) in enumerate(
        zip(stacks_of(both, factors.groups), factors.parts, strict=True)
    ):
        residual, energy = measure(stack, part.tensor)
        parts[k] = replace(part, residual=residual, energy=energy)
        tally.add(math.prod(stack.shape))
    sources = sources_of(base, tuned, both, progress)
    true = replace(factors, parts=tuple(parts), sources=sources)
    save_factors(folder / FACTORS, true)
    report = FactorsReport(**of_factors(true))
    text = json.dumps({**report.to_json(), **more}, indent=2) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")
    return report
