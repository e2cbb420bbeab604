"""The jobs behind the commands: files in, core functions in the middle, files out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tdecomp as td
from tdecomp._xp import namespace, to_numpy
from tdecomp.adapters import lora_modules
from tdecomp.cli._explored import explore_report
from tdecomp.cli._report import fit_report, lora_report, verify_report
from tdecomp.cli._screen import Screen
from tdecomp.decomposition import measure
from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.checkpoint import (
    Checkpoint,
    check_unchanged,
    fingerprint,
    open_checkpoint,
    pair,
    write_model,
)
from tdecomp.files.delta import Delta, open_delta, stacks_of, survey_model, updates
from tdecomp.files.factors import (
    FACTORS,
    Factors,
    load_factors,
    save_factors,
)
from tdecomp.files.loaded_names import are_known, loaded_names, warnings_about
from tdecomp.files.ours import is_json
from tdecomp.files.peft_config import cautions, facts, refused
from tdecomp.files.peft_lora import VLLM_RANKS, write_lora
from tdecomp.files.unfused import unfused
from tdecomp.formats import Format
from tdecomp.stack import Stack, Survey, Targets, group_sites

__all__ = [
    "FORMATS",
    "METHODS",
    "LoraOptions",
    "Machine",
    "Selection",
    "apply",
    "decompose",
    "explore",
    "export",
    "inspect",
    "verify",
]

METHODS: dict[str, Callable[..., td.Fit]] = {
    "svd": td.svd,
    "tucker2": td.tucker2,
    "tucker": td.tucker,
    "tensor_train": td.tensor_train,
}
FORMATS = METHODS | {"cp": td.cp}
"""What `explore` compares; a factors file is made by `METHODS` only."""

_EXPLORED = "tdecomp explore"  # by which its report is known again


@dataclass(frozen=True)
class Selection:
    """Which sites, and how they are stacked."""

    targets: Targets | None = None
    exclude: Targets | None = None
    layers: Collection[int] | None = None
    patterns: Sequence[str] = ()
    share: Sequence[str] | None = None

    @property
    def find(self) -> dict[str, Any]:
        """Keywords of the site search."""
        return {
            "targets": self.targets,
            "exclude": self.exclude,
            "layers": self.layers,
            "patterns": tuple(self.patterns),
        }


@dataclass(frozen=True)
class Machine:
    """Where to compute, and in how much memory.

    Attributes
    ----------
    device
        Torch device; None: the processor, with numpy.
    max_memory
        Bytes: half for matrices kept from one pass to the next, half for work. None: no limit,
        nothing kept.
    """

    device: str | None = None
    max_memory: int | None = None

    def stacks(self, delta: Delta) -> tuple[Stack, ...]:
        """The stacks of a delta, there."""
        if self.max_memory is None:
            return delta.stacks_on(self.device)
        half = self.max_memory // 2
        stacks = delta.stacks_on(self.device, keep=half)
        return tuple(replace(stack, max_memory=half) for stack in stacks)


@dataclass(frozen=True)
class LoraOptions:
    """How LoRA folders are written."""

    max_rank: int = VLLM_RANKS[-1]
    rank_pattern: bool = False
    dtype: str = "F32"


def inspect(model: Path, selection: Selection) -> tuple[Checkpoint, Survey, Sequence[td.Group]]:
    """Open a model and find its groups."""
    checkpoint = open_checkpoint(model)
    survey = survey_model(checkpoint, **selection.find)
    return checkpoint, survey, group_sites(survey.sites, share=selection.share)


def decompose(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    method: str,
    modes: tuple[str | int, ...] | None = None,
    target: Mapping[str, Any],
    selection: Selection,
    dtype: str,
    lora: LoraOptions | None,
    machine: Machine,
    allow_missing: bool,
    overwrite: bool,
    screen: Screen,
) -> dict[str, Any]:
    """Decompose tuned - base into the folder `out`; returns the report written there."""
    with output_folder(out, overwrite=overwrite, inputs=[base, tuned]) as folder:
        delta = open_delta(
            base, tuned, **selection.find, share=selection.share, allow_missing=allow_missing
        )
        options = {} if modes is None else {"modes": modes}
        fits = _fit(delta, METHODS[method], {**target, **options}, dtype, machine, screen)
        with screen.progress("what is not covered", _numbers(delta), "numbers") as tick:
            uncovered, rounding = delta.uncovered(tick), delta.rounding_floor(tick)
        sources = {
            "base": _source(base, delta.pair.base, screen),
            "tuned": _source(tuned, delta.pair.tuned, screen),
        }
        factors = Factors(
            method,
            dtype,
            delta.groups,
            tuple(_on_host(fit.tensor) for fit in fits),
            tuple(fit.residual for fit in fits),
            tuple(fit.energy for fit in fits),
            delta.shapes,
            sources,
            {**target, **options, **selection.find, "share": selection.share},
            tuple((row.tensor, row.reason, row.site) for row in uncovered if row.energy is None),
        )
        save_factors(folder / FACTORS, factors)
        report = fit_report(factors, delta.survey, uncovered, rounding)
        if lora is not None:
            (folder / "lora").mkdir()
            report["lora"] = _write_lora(folder / "lora", factors, lora)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def explore(
    base: Path,
    tuned: Path,
    *,
    budgets: Sequence[int] | None,
    formats: Sequence[str] | None,
    selection: Selection,
    out: Path | None,
    machine: Machine,
    allow_missing: bool,
    overwrite: bool,
    screen: Screen,
    command: Callable[[Sequence[str]], str],
) -> dict[str, Any]:
    """Compare formats for tuned - base; returns the report, written to `out` too if given.

    `command` makes the whole command of the options of one candidate.
    """
    with ExitStack() as stack:
        file = None
        if out is not None:
            places = [base, tuned]
            ours = partial(is_json, made_by=_EXPLORED)
            file = stack.enter_context(
                output_file(out, ours=ours, overwrite=overwrite, inputs=places)
            )
        delta = open_delta(
            base, tuned, **selection.find, share=selection.share, allow_missing=allow_missing
        )
        with _progress(delta, "exploring", screen) as progress:
            found = td.explore(
                machine.stacks(delta),
                budgets,
                formats=None if formats is None else [FORMATS[name] for name in formats],
                progress=progress,
            )
        check_unchanged(delta.pair.base)
        check_unchanged(delta.pair.tuned)
        report = {"made_by": _EXPLORED} | explore_report(found, delta, tuple(METHODS), command)
        if file is not None:
            file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def verify(out: Path, base: Path, tuned: Path, *, screen: Screen) -> dict[str, Any]:
    """Measure the error of a factors file again from the checkpoints."""
    factors = load_factors(out)
    both = pair(open_checkpoint(base), open_checkpoint(tuned))
    _check_shapes(factors, both.base)
    residuals, energies = [], []
    with screen.progress("measuring", factors.delta_params, "numbers") as tick:
        for stack, tensor in zip(stacks_of(both, factors.groups), factors.tensors, strict=True):
            residual, energy = measure(stack, tensor)
            residuals.append(residual)
            energies.append(energy)
            tick(int(np.prod(stack.shape)))
    changed = [
        f"{name}/{was['file']}"
        for name, checkpoint in (("base", both.base), ("tuned", both.tuned))
        for was in _changed(factors.sources.get(name, {}), checkpoint, screen)
    ]
    return verify_report(factors, residuals, energies, changed)


def apply(
    out: Path, base: Path, model: Path, *, dtype: str | None, overwrite: bool, screen: Screen
) -> Factors:
    """Write base + decoded delta as a model folder."""
    factors = load_factors(out)
    checkpoint = open_checkpoint(base)
    _check_shapes(factors, checkpoint)
    with (
        output_folder(model, overwrite=overwrite, inputs=[base, out]) as folder,
        screen.progress("writing", len(checkpoint.names), "tensors") as tick,
    ):
        write_model(
            checkpoint, folder, updates(factors), dtype=dtype, progress=lambda name: tick(1)
        )
        check_unchanged(checkpoint)
    for note in checkpoint.notes:
        screen.note(f"Note: {note}")
    return factors


def export(out: Path, folder: Path, options: LoraOptions, *, overwrite: bool) -> dict[str, Any]:
    """Write the factors as a PEFT LoRA folder."""
    factors = load_factors(out)
    with output_folder(folder, overwrite=overwrite, inputs=[out]) as temporary:
        return _write_lora(temporary, factors, options)


def _fit(
    delta: Delta,
    method: Callable[..., td.Fit],
    target: Mapping[str, Any],
    dtype: str,
    machine: Machine,
    screen: Screen,
) -> td.Fits:
    def rounding(array: Any) -> Any:
        stored = safetensors.rounded(to_numpy(array), dtype)
        if isinstance(array, np.ndarray):
            return stored
        return namespace(array).asarray(stored, device=array.device)

    with _progress(delta, "decomposing", screen) as progress:
        stacks = machine.stacks(delta)
        return td.decompose(stacks, method, **target, rounding=rounding, progress=progress)


def _on_host(tensor: Format) -> Format:
    return tensor.with_arrays({name: to_numpy(a) for name, a in tensor.arrays.items()})


@contextmanager
def _progress(delta: Delta, what: str, screen: Screen) -> Iterator[Callable[[float], None]]:
    """A bar over the numbers of the delta, moved by the fraction that is done."""
    numbers = sum(int(np.prod(group.shape)) for group in delta.groups)
    with screen.progress(what, numbers, "numbers") as tick:
        done = 0

        def progress(fraction: float) -> None:
            nonlocal done
            tick(int(fraction * numbers) - done)
            done = int(fraction * numbers)

        yield progress


def _write_lora(folder: Path, factors: Factors, options: LoraOptions) -> dict[str, Any]:
    source = factors.sources.get("base", {})
    model = facts(source.get("model"))
    groups, shapes = unfused(factors.groups, factors.shapes, model)
    modules, left_out = lora_modules(
        groups,
        factors.tensors,
        shapes,
        max_rank=options.max_rank,
        rounding=lambda array: safetensors.rounded(array, options.dtype),
    )
    if not modules:
        raise FileError(
            f"no LoRA module can express {left_out[0]}: it is not the weight of a linear module"
        )
    names = loaded_names([m.module for m in modules], model)
    lost = set(refused(names, model))
    kept = [m for m in modules if m.module not in lost]
    if not kept:
        raise FileError(f"PEFT adapts none of the modules in such models, as {modules[0].module}")
    rank = write_lora(
        folder,
        kept,
        base=str(source.get("path", "")),
        dtype=options.dtype,
        rank_pattern=options.rank_pattern,
        model=model,
    )
    told = [*warnings_about(names, model), *cautions(names.values(), model)]
    report = lora_report(kept, left_out, rank, options.max_rank)
    return report | {"refused": sorted(lost), "names_known": are_known(model), "notes": told}


def _numbers(delta: Delta) -> int:
    """Numbers that `uncovered` and `rounding_floor` visit."""
    return delta.left_out_numbers + sum(int(np.prod(group.shape)) for group in delta.groups)


def _source(path: Path, checkpoint: Checkpoint, screen: Screen) -> dict[str, Any]:
    total = sum(source.size for source in checkpoint.sources.values())
    with screen.progress(f"hashing {path}", total, "bytes") as tick:
        files = fingerprint(checkpoint, tick)
        return {"path": str(path), "files": files, "model": facts(checkpoint.config)}


def _changed(
    source: Mapping[str, Any], checkpoint: Checkpoint, screen: Screen
) -> list[dict[str, Any]]:
    """Rows of `source` whose file is not there any more or has another hash."""
    now = _source(Path(source.get("path", "")), checkpoint, screen)["files"]
    return [row for row in source.get("files", ()) if row not in now]


def _check_shapes(factors: Factors, checkpoint: Checkpoint) -> None:
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
