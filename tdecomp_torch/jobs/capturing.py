"""What a model sees of texts, into a file: what ``tdecomp capture`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tdecomp._memory import half_of_the_free_memory
from tdecomp.errors import ArgumentError
from tdecomp.files.statistics_file import statistics_output, write_statistics
from tdecomp.jobs.reports import Report
from tdecomp.jobs.steps import StepProgress, of_step, untold
from tdecomp.stack import Selection, Site
from tdecomp_torch.capture.capture import SPARE_COLUMNS, WIDEST, Wanted, capture_sites
from tdecomp_torch.loading.models import load_model, load_tokenizer
from tdecomp_torch.loading.texts import batches_of, read_texts
from tdecomp_torch.model.inventory import Inventory
from tdecomp_torch.model.targets import chosen_sites

__all__ = ["CaptureOptions", "CaptureReport", "CaptureSize", "capture_files"]

_DIRECTIONS = 256
"""Of inputs that are wider than `WIDEST`."""
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """What is looked at; attributes as the options of ``tdecomp capture``."""

    tokens: int = 200_000
    gradients: int | None = None
    inputs: int | None = None
    batch: int = 8
    length: int = 256
    seed: int = 0
    checkpoint: bool = False
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptureSize:
    """Memory in bytes: of the model, and of the statistics at most."""

    model: int
    statistics: int


@dataclass(frozen=True, kw_only=True)
class CaptureReport(Report):
    """What was captured.

    Attributes
    ----------
    weights, inputs, batches, tokens
        Numbers of them; inputs are shared by weights that read one tensor.
    memory
        What was said before it started.
    labels
        What the loss is of: ``"text"``, the next token; ``"model"``, drawn from its logits; empty
        without gradients.
    """

    weights: int
    inputs: int
    batches: int
    tokens: int
    memory: CaptureSize
    labels: str


def capture_files(
    folder: Path,
    stats: Path,
    *,
    text: Path,
    selection: Selection,
    options: CaptureOptions,
    overwrite: bool = False,
    before: Callable[[CaptureSize, int], None] = lambda size, weights: None,
    progress: StepProgress = untold,
) -> CaptureReport:
    """Run a model on texts and write what its weights saw.

    Parameters
    ----------
    folder
        Of a model that transformers loads.
    stats
        File to write.
    text
        One text a line; as many are taken at random as it takes for the tokens asked for.
    before
        Called before it starts with the memory that it will take and the number of weights.

    Raises
    ------
    FileError, SiteError, ArgumentError, DataError
        What cannot be read, written or found; a loss that is not finite.
    """
    texts = read_texts(text, options.tokens, seed=options.seed)
    with statistics_output(stats, overwrite=overwrite, inputs=[folder, text]) as temporary:
        tokens = load_tokenizer(folder)
        model = load_model(folder, device=options.device).model
        inventory = Inventory(model)
        sites = chosen_sites(
            inventory,
            targets=selection.targets,
            exclude=selection.exclude,
            layers=selection.layers,
            patterns=selection.patterns,
        ).sites
        size = _size(model, sites, options)
        _check_memory(size)
        before(size, len(sites))
        labels = _labels(model) if options.gradients is not None else ""
        batches, seen = _some(tokens, texts, options, labels)
        wanted = Wanted(
            inputs="auto" if options.inputs is None else options.inputs,
            gradients=options.gradients,
            labels="model" if labels == "model" else "given",
            checkpoint=options.checkpoint,
            seed=options.seed,
        )
        told = of_step(progress, "capturing")
        found = capture_sites(inventory, sites, batches, wanted, progress=told)
        write_statistics(temporary, found)
    return CaptureReport(
        weights=len(found.sites),
        inputs=len(found.inputs),
        batches=len(batches),
        tokens=seen,
        memory=size,
        labels=labels,
    )


def _check_memory(size: CaptureSize) -> None:
    """Refuse statistics that half of the free memory does not hold."""
    limit = half_of_the_free_memory()
    if limit is not None and size.statistics > limit:
        raise ArgumentError(
            f"the statistics may take {size.statistics / 1e9:.2g} GB, and half of the free memory"
            f" is {limit / 1e9:.2g} GB",
            tip="keep few directions of inputs (--inputs 64), or fewer weights (--targets)",
        )


def _labels(model: nn.Module) -> str:
    """What a loss can be made of without labels in the texts."""
    return "text" if type(model).__name__.endswith(_CAUSAL) else "model"


def _some(
    tokens: Any, texts: Sequence[str], options: CaptureOptions, labels: str
) -> tuple[list[dict[str, Any]], int]:
    """Batches until there are as many tokens as asked for, and how many there are."""
    found, seen = [], 0
    for batch in batches_of(
        tokens, texts, batch=options.batch, length=options.length, seed=options.seed
    ):
        mask = batch.get("attention_mask")
        if mask is None:
            raise ArgumentError("the tokenizer gives no attention_mask, which tells padding apart")
        if labels == "text":
            batch["labels"] = batch["input_ids"].masked_fill(mask == 0, -100)
        found.append(batch)
        seen += int(mask.sum())
        if seen >= options.tokens:
            break
    return found, seen


def _size(model: nn.Module, sites: Sequence[Site], options: CaptureOptions) -> CaptureSize:
    """Memory of a model, and of its statistics as if no two weights shared an input."""
    total = 0
    for site in sites:
        n_out, n_in = site.shape
        directions = options.inputs or (None if n_in <= WIDEST else _DIRECTIONS)
        total += 4 * n_in**2 if directions is None else 8 * 3 * min(directions, n_in) * n_in
        if options.gradients is not None:
            columns = min(options.gradients + SPARE_COLUMNS, n_out, n_in)
            total += 4 * columns * (n_out + n_in)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    return CaptureSize(model=own, statistics=total)
