"""Factors as a LoRA adapter that PEFT and vLLM load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tdecomp._xp import to_numpy
from tdecomp.adapters import LoRAModule, lora_modules
from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_folder
from tdecomp.files.dtypes import code_of
from tdecomp.files.factors import Factors, load_factors
from tdecomp.files.loaded_names import are_known, loaded_names, warnings_about
from tdecomp.files.peft_config import cautions, facts, refused
from tdecomp.files.peft_lora import VLLM_RANKS, vllm_rank, write_lora
from tdecomp.files.unfused import unfused
from tdecomp.jobs.reports import IN_PYTHON_ONLY, Report, Unknown, relative_error, unknown_of

__all__ = ["ExportReport", "LoraOptions", "export", "write_factors_as_lora"]

_EXACT = 1e-6  # a relative departure that is only the rounding of float32


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """How a LoRA folder is written.

    Attributes
    ----------
    max_rank
        Widest pair; wider ones are truncated by SVD.
    rank_pattern
        Keep every module's own rank in ``rank_pattern`` (PEFT only), in the place of padding.
    """

    max_rank: int = VLLM_RANKS[-1]
    rank_pattern: bool = False


AS_USUAL = LoraOptions()


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What a LoRA folder holds, and how far it is from the factors.

    Attributes
    ----------
    rank, max_rank, modules
        Largest rank written, largest allowed, and number of modules with a pair.
    exact, departure
        ``‖factors − LoRA‖ / ‖factors‖``, and whether it is only rounding.
    truncated
        Modules that needed a wider pair than `max_rank`.
    left_out
        Tensors that are not the weight of a linear module.
    vllm_max_lora_rank
        For vLLM's ``--max-lora-rank``; None: wider than vLLM takes.
    refused
        Modules that PEFT does not adapt in such a model.
    names_known
        Whether the names that transformers gives the modules of this model are known here.
    notes
        Sentences on names and modules.
    unknown
        What no figure here contains.
    """

    rank: int
    max_rank: int
    modules: int
    exact: bool
    departure: float
    truncated: tuple[str, ...]
    left_out: tuple[str, ...]
    vllm_max_lora_rank: int | None
    refused: tuple[str, ...]
    names_known: bool
    notes: tuple[str, ...]
    unknown: tuple[Unknown, ...] = field(default=(), metadata=IN_PYTHON_ONLY)


def export(
    out: str | Path,
    folder: str | Path,
    *,
    lora: LoraOptions = AS_USUAL,
    dtype: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write factors as a PEFT LoRA folder.

    Parameters
    ----------
    out
        Folder that `decompose` wrote.
    folder
        To write.
    lora
        How it is written.
    dtype
        ``"float32"``, ``"bfloat16"`` or ``"float16"``; None: that of the factors.
    overwrite
        Replace an existing output of this tool.

    Raises
    ------
    FileError
        A file that cannot be read, a folder that may not be written, or factors of which no module
        can be a LoRA.
    """
    factors = load_factors(out)
    code = factors.dtype if dtype is None else code_of(dtype)
    with output_folder(folder, overwrite=overwrite, inputs=[out]) as temporary:
        return write_factors_as_lora(temporary, factors, lora, code)


def write_factors_as_lora(
    folder: Path, factors: Factors, lora: LoraOptions, code: str
) -> ExportReport:
    """Write into an existing empty folder."""
    source = factors.sources.get("base", {})
    model = facts(source.get("model"))
    groups, shapes = unfused(factors.groups, factors.shapes, model)
    modules, left_out = lora_modules(
        groups,
        factors.tensors,
        shapes,
        max_rank=lora.max_rank,
        rounding=lambda array: safetensors.rounded(to_numpy(array), code),
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
        dtype=code,
        rank_pattern=lora.rank_pattern,
        model=model,
    )
    energy, departure = sum(m.energy for m in kept), sum(m.departure for m in kept)
    return ExportReport(
        rank=rank,
        max_rank=lora.max_rank,
        modules=sum(m.rank > 0 for m in kept),
        exact=departure <= _EXACT**2 * energy,
        departure=relative_error([departure], [energy]),
        truncated=_truncated(kept),
        left_out=tuple(left_out),
        vllm_max_lora_rank=vllm_rank(rank),
        refused=tuple(sorted(lost)),
        names_known=are_known(model),
        notes=(*warnings_about(names, model), *cautions(names.values(), model)),
        unknown=unknown_of(factors.unknown),
    )


def _truncated(modules: Sequence[LoRAModule]) -> tuple[str, ...]:
    return tuple(
        m.module for m in modules if m.needed > m.rank and m.departure > _EXACT**2 * m.energy
    )
