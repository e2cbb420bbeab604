"""Whether an adapter will act where it is to be loaded, by names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdecomp.files.loaders import (
    AdapterNames,
    CheckedKey,
    Loader,
    ModelNames,
    check_names,
    loader_of,
    read_adapter_names,
    read_model_names,
)
from tdecomp.files.loaders.loader import ERROR
from tdecomp.jobs.reports import Report

__all__ = ["CheckReport", "check", "report_on"]


@dataclass(frozen=True, kw_only=True)
class CheckReport(Report):
    """What a loader does with an adapter.

    Attributes
    ----------
    adapter, model, loader
        What was checked against what, and for which loader.
    model_type
        What the model's configuration says.
    acts
        Every tensor changes the model as it was trained to.
    loads
        The loader refuses nothing; else it raises an error and takes no tensor at all.
    acting, tensors
        How many tensors act, and how many there are.
    keys
        Every tensor, and settings that are refused; what does not act first.
    max_rank
        What the loader must be started with to admit the ranks (vLLM's ``--max-lora-rank``); None
        where any goes, or none is enough.
    notes
        Sentences on what is unusual.
    """

    adapter: str
    model: str
    loader: str
    model_type: str
    acts: bool
    loads: bool
    acting: int
    tensors: int
    keys: tuple[CheckedKey, ...]
    max_rank: int | None
    notes: tuple[str, ...]


def check(adapter: str | Path, model: str | Path, *, loader: str) -> CheckReport:
    """Match every tensor of an adapter with the names of a model; no weight is read.

    Parameters
    ----------
    adapter
        A LoRA: PEFT folder, or ``.safetensors`` file of any naming scheme.
    model
        The model it is to act in: a folder, of which ``config.json`` and an index are enough.
    loader
        A key of `tdecomp.files.loaders.LOADERS`: ``"vllm"``.

    Raises
    ------
    FileError
        An adapter or a model that cannot be read.
    ArgumentError
        A loader that nobody knows.
    """
    row = loader_of(loader)
    names = read_adapter_names(adapter)
    found = read_model_names(model)
    return report_on(names, found, row)


def report_on(adapter: AdapterNames, model: ModelNames, loader: Loader) -> CheckReport:
    """The report on names that were read."""
    view = loader.view(model)
    lines = check_names(adapter, view, loader)
    ordered = sorted(lines, key=lambda line: line.acts)
    tensors = [line for line in lines if not line.key.startswith("adapter_config.json: ")]
    return CheckReport(
        adapter=str(adapter.path),
        model=str(model.path),
        loader=loader.name,
        model_type=model.kind,
        acts=all(line.acts for line in lines),
        loads=all(line.told != ERROR for line in lines),
        acting=sum(line.acts for line in tensors),
        tensors=len(tensors),
        keys=tuple(ordered),
        max_rank=_max_rank(adapter, loader),
        notes=(*([view.note] if view.note else []), *_notes(lines, loader)),
    )


def _max_rank(adapter: AdapterNames, loader: Loader) -> int | None:
    ranks = [adapter.scales.rank] if adapter.scales else []
    ranks += [p.rank for p in adapter.pairs.values() if not p.stem.endswith(_FUSED)]
    return next((r for r in loader.ranks if r >= max(ranks, default=0)), None)


_FUSED = (".experts", ".experts.base_layer")


def _notes(lines: Sequence[CheckedKey], loader: Loader) -> list[str]:
    known = sum(line.instead != "" for line in lines)
    if not known:
        return []
    return [
        f"{known} tensors would act under another name:"
        f" tdecomp export ADAPTER --lora DIR --for {loader.name} --base MODEL writes it."
    ]
