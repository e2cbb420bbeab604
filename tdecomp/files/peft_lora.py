"""PEFT LoRA folders: what PEFT and vLLM load as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.adapters import LoRAModule
from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.loaded_names import loaded_names
from tdecomp.files.peft_config import Aims, Expert, aims, expert_of, n_experts

__all__ = ["VLLM_RANKS", "vllm_rank", "write_lora"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values vLLM accepts for ``--max-lora-rank``; its default is 16."""


def vllm_rank(rank: int) -> int | None:
    """Smallest ``--max-lora-rank`` that admits a rank; None above the largest."""
    return next((r for r in VLLM_RANKS if r >= rank), None)


def write_lora(
    folder: Path,
    modules: Sequence[LoRAModule],
    *,
    base: str,
    dtype: str = "F32",
    rank_pattern: bool = False,
    model: Mapping[str, Any] | None = None,
    saved: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    loaded: bool = False,
) -> int:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into an existing folder.

    The global ``r = lora_alpha`` is the largest rank, so that the scale is 1 for PEFT and for vLLM
    (which ignores ``rank_pattern``); narrower pairs are padded with zeros. Modules are named as
    transformers 5 loads them.

    Parameters
    ----------
    folder
        Existing, empty.
    modules
        Pairs; those of rank 0 are left out. When all are, the first is kept as a zero of rank 1,
        because an adapter without modules cannot be loaded. Of experts that are fused on loading
        all that are fused together are written, with zeros where there is no pair.
    base
        ``base_model_name_or_path`` of the configuration.
    dtype
        Storage code.
    rank_pattern
        Keep every module's own rank and list it in ``rank_pattern`` instead of padding: smaller
        files, for PEFT only. Experts are padded all the same.
    model
        The model's configuration, as far as `peft_config.facts` keeps it.
    saved
        Module -> its parameters by name, for modules that were trained whole (a head):
        ``modules_to_save``.
    loaded
        The modules have the names of a model in memory, whose configuration may still speak of the
        checkpoint: they stay as they are.

    Returns
    -------
    int
        The global rank.
    """
    model, saved = model or {}, saved or {}
    kept = [m for m in modules if m.rank] or [_widened(m, 1) for m in modules[:1]]
    if not kept:
        raise FileError(f"no module can be written as LoRA to {folder}")
    rank = max(m.rank for m in kept)
    kept = _with_partners(kept, model)
    if not loaded:
        names = loaded_names([m.module for m in kept], model)
        kept = [replace(m, module=names[m.module]) for m in kept]
    shared = [not rank_pattern or expert_of(m.module, model) is not None for m in kept]
    stored = [_widened(m, rank) if wide else m for m, wide in zip(kept, shared, strict=True)]
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    for m in stored:
        arrays[f"base_model.model.{m.module}.lora_A.weight"] = dtype, np.asarray(m.a)
        arrays[f"base_model.model.{m.module}.lora_B.weight"] = dtype, np.asarray(m.b)
    for module, parameters in saved.items():
        for name, array in parameters.items():
            code = "F64" if array.dtype == np.float64 else "F32"
            arrays[f"base_model.model.{module}.{name}"] = code, array
    safetensors.write(
        folder / "adapter_model.safetensors",
        [(name, code, a.shape) for name, (code, a) in sorted(arrays.items())],
        lambda name: safetensors.encode(arrays[name][1], arrays[name][0]),
        {"format": "pt"},
    )
    aimed = aims([m.module for m in stored], model)
    ranks = {aimed.key.get(m.module, m.module): m.rank for m in stored if m.rank != rank}
    if aimed.doubled:
        ranks[r".*\.gate_up_proj"] = 2 * rank
    config = _config(rank, ranks, aimed, any(m.transpose for m in kept), base)
    config |= {"modules_to_save": sorted(saved) or None}
    (folder / "adapter_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    return rank


def _with_partners(modules: Sequence[LoRAModule], model: Mapping[str, Any]) -> list[LoRAModule]:
    """The modules, and zeros for the experts that are fused with some of them on loading.

    PEFT finds ``gate_up_proj`` beside a ``down_proj`` only, which is then written, too. Where the
    configuration does not say how many there are, those that the modules name.
    """
    known = {m.module for m in modules}
    fused: dict[tuple[str, str], list[tuple[Expert, LoRAModule]]] = {}
    for m in modules:
        if expert := expert_of(m.module, model):
            fused.setdefault((expert.container, expert.fused), []).append((expert, m))
    added: list[LoRAModule] = []
    for members in fused.values():
        expert, m = members[0]
        numbers = range(n_experts(model)) or sorted({e.number for e, _ in members})
        paths = [expert.path(number, proj) for number in numbers for proj in expert.alike]
        zero = replace(m, a=0 * m.a[:1], b=0 * m.b[:, :1], departure=0.0, energy=0.0)
        added += [replace(zero, module=path) for path in paths if path not in known]
        if expert.down != expert.proj and (expert.container, "down_proj") not in fused:
            back = replace(zero, a=0 * m.b[:, :1].T, b=0 * m.a[:1].T)  # of the other shape
            added += [replace(back, module=expert.path(n, expert.down)) for n in numbers]
    return [*modules, *added]


def _widened(module: LoRAModule, rank: int) -> LoRAModule:
    """The same pair, padded with zeros to `rank`."""
    extra = rank - module.rank
    a = np.pad(np.asarray(module.a), ((0, extra), (0, 0)))
    b = np.pad(np.asarray(module.b), ((0, 0), (0, extra)))
    return replace(module, a=a, b=b)


def _config(
    rank: int, ranks: dict[str, int], aimed: Aims, transpose: bool, base: str
) -> dict[str, Any]:
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
        "target_modules": list(aimed.modules),
        "modules_to_save": None,
        "fan_in_fan_out": transpose,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    return config | ({"target_parameters": list(aimed.parameters)} if aimed.parameters else {})
