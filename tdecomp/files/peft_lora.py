"""PEFT LoRA folders: what PEFT and vLLM load as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.adapters import LoRAModule
from tdecomp.errors import FileError
from tdecomp.files import safetensors

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
) -> int:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into an existing folder.

    The global ``r = lora_alpha`` is the largest rank, so that the scale is 1 for PEFT and for vLLM
    (which ignores ``rank_pattern``); narrower pairs are padded with zeros.

    Parameters
    ----------
    folder
        Existing, empty.
    modules
        Pairs; those of rank 0 are left out. When all are, the first is kept as a zero of rank 1,
        because an adapter without modules cannot be loaded.
    base
        ``base_model_name_or_path`` of the configuration.
    dtype
        Storage code.
    rank_pattern
        Keep every module's own rank and list it in ``rank_pattern`` instead of padding: smaller
        files, for PEFT only.

    Returns
    -------
    int
        The global rank.
    """
    kept = [m for m in modules if m.rank] or [_widened(m, 1) for m in modules[:1]]
    if not kept:
        raise FileError(f"no module can be written as LoRA to {folder}")
    rank = max(m.rank for m in kept)
    stored = kept if rank_pattern else [_widened(m, rank) for m in kept]
    arrays: dict[str, np.ndarray] = {}
    for m in stored:
        arrays[f"base_model.model.{m.module}.lora_A.weight"] = np.asarray(m.a)
        arrays[f"base_model.model.{m.module}.lora_B.weight"] = np.asarray(m.b)
    safetensors.write(
        folder / "adapter_model.safetensors",
        [(name, dtype, a.shape) for name, a in sorted(arrays.items())],
        lambda name: safetensors.encode(arrays[name], dtype),
        {"format": "pt"},
    )
    ranks = {m.module: m.rank for m in stored if m.rank != rank}
    config = _config(rank, ranks, [m.module for m in kept], any(m.transpose for m in kept), base)
    (folder / "adapter_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    return rank


def _widened(module: LoRAModule, rank: int) -> LoRAModule:
    """The same pair, padded with zeros to `rank`."""
    extra = rank - module.rank
    a = np.pad(np.asarray(module.a), ((0, extra), (0, 0)))
    b = np.pad(np.asarray(module.b), ((0, 0), (0, extra)))
    return LoRAModule(module.module, a, b, module.transpose, module.departure, module.energy)


def _config(
    rank: int, ranks: dict[str, int], modules: list[str], transpose: bool, base: str
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
        "target_modules": sorted(modules),
        "modules_to_save": None,
        "fan_in_fan_out": transpose,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
