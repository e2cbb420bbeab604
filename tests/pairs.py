"""A small pair of checkpoints on disk, with everything that real ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.files import safetensors

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}

_INTEGERS = {"int8": "I8", "int64": "I64", "uint8": "U8"}


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random tensors of a tiny llama with grouped-query attention."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, 16)}
    for i in range(3):
        at = f"model.layers.{i}"
        for proj, rows in (("q", 16), ("k", 8), ("v", 8), ("o", 16)):
            shapes[f"{at}.self_attn.{proj}_proj.weight"] = (rows, 16)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (24, 16)
        shapes[f"{at}.mlp.down_proj.weight"] = (16, 24)
        shapes[f"{at}.input_layernorm.weight"] = (16,)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def write_folder(
    folder: Path,
    arrays: dict[str, np.ndarray],
    *,
    dtype: str = "F32",
    shards: int = 1,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder in one or several shards; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.txt").write_text("a b c")
    names = sorted(arrays)
    parts = [names[i::shards] for i in range(shards)]
    file = "model.safetensors" if shards == 1 else "model-{:05d}-of-{:05d}.safetensors"
    where = {}
    for i, part in enumerate(parts):
        target = folder / file.format(i + 1, shards)
        codes = {n: _INTEGERS.get(str(arrays[n].dtype), dtype) for n in part}
        entries = [(n, code, arrays[n].shape) for n, code in codes.items()]
        safetensors.write(
            target, entries, lambda n, codes=codes: safetensors.encode(arrays[n], codes[n])
        )
        where |= dict.fromkeys(part, target.name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A float32 base in one file and a bfloat16 tuned model in two shards."""
    rng = np.random.default_rng(seed)
    old = weights(rng)
    new = {n: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32) for n, a in old.items()}
    base = write_folder(folder / "base", old)
    return base, write_folder(folder / "tuned", new, dtype="BF16", shards=2)
