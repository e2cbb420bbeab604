"""The models that factors are made from: what is kept of them, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.checkpoint import Checkpoint, Pair, fingerprints
from tdecomp.files.factors import Factors
from tdecomp.files.peft_config import facts
from tdecomp.files.storage import shown
from tdecomp.jobs.steps import StepProgress, of_step
from tdecomp.tasks import Executor

__all__ = ["changed_files", "check_shapes", "sources_of", "were_hashed"]


def sources_of(
    base: str | Path,
    tuned: str | Path,
    both: Pair,
    progress: StepProgress,
    executor: Executor | None = None,
    *,
    hashed: bool = True,
) -> dict[str, dict[str, Any]]:
    """Of each model: its path as given, its files with their hashes, what names of a LoRA need."""
    told = of_step(progress, f"hashing {shown(base)} and {shown(tuned)}")
    files = fingerprints([both.base, both.tuned], told, executor, hashed=hashed)
    sides = {"base": (base, both.base, files[0]), "tuned": (tuned, both.tuned, files[1])}
    return {
        side: {"path": shown(path), "files": rows, "model": facts(checkpoint.config)}
        for side, (path, checkpoint, rows) in sides.items()
    }


def changed_files(
    then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Files of sources that are not there any more, or have another size or hash; ``base/NAME``."""
    return [
        f"{side}/{row['file']}"
        for side in now
        for row in then.get(side, {}).get("files", ())
        if not any(_is_like(row, one) for one in now[side]["files"])
    ]


def were_hashed(sources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether hashes of files were kept."""
    return any("sha256" in row for source in sources.values() for row in source.get("files", ()))


def _is_like(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a file is as it was, as far as that was kept."""
    return all(now.get(key) == value for key, value in then.items())


def check_shapes(factors: Factors, checkpoint: Checkpoint) -> None:
    """Refuse a base model that the factors were not made for."""
    for name, shape in factors.shapes.items():
        if name not in checkpoint.entries:
            raise FileError(f"{checkpoint.path} has no tensor {name!r}, which the factors change")
        if name in checkpoint.refused:
            raise FileError(checkpoint.refused[name])
        if checkpoint.shape(name) != shape:
            raise FileError(
                f"{name} is {checkpoint.shape(name)} in {checkpoint.path}, "
                f"the factors were made for {shape}"
            )
