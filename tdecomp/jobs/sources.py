"""The models that factors are made from: what is kept of them, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.checkpoint import Checkpoint, fingerprint
from tdecomp.files.factors import Factors
from tdecomp.files.peft_config import facts
from tdecomp.jobs.steps import StepProgress, of_step

__all__ = ["changed_files", "check_shapes", "source_of"]


def source_of(path: str | Path, checkpoint: Checkpoint, progress: StepProgress) -> dict[str, Any]:
    """A model's path as given, its files with their hashes, and what the names of a LoRA need."""
    files = fingerprint(checkpoint, of_step(progress, f"hashing {path}"))
    return {"path": str(path), "files": files, "model": facts(checkpoint.config)}


def changed_files(
    source: Mapping[str, Any], checkpoint: Checkpoint, progress: StepProgress
) -> list[str]:
    """Files of a source that are not there any more or have another hash."""
    now = source_of(source.get("path", ""), checkpoint, progress)["files"]
    return [row["file"] for row in source.get("files", ()) if row not in now]


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
