"""Two tiny llama-shaped models on disk, and ways to look at and to spoil files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.files import safetensors
from tdecomp.files.factors import load_factors

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE, VOCAB = 12, 4, 2, 4, 20, 10
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
LARGEST = WIDE
NUMBERS = 2 * sum(out * in_ for out, in_ in SHAPES.values())
"""Numbers in the covered delta."""

Q0, NORM0 = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"

Row = tuple[str, np.ndarray]
"""Storage code and values."""


def config(layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
    } | more


def base_arrays(layers: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (VOCAB, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in SHAPES.items()}
        shapes[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return {name: safetensors.rounded(array, "BF16") for name, array in arrays.items()}


def tuned_arrays(base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    arrays = {}
    for name, array in base.items():
        delta = 0.1 * rng.standard_normal(array.shape)
        if array.ndim == 2:
            left, right = (rng.standard_normal((n, 2)) for n in array.shape)
            delta += left @ right.T
        arrays[name] = safetensors.rounded((array + delta).astype(np.float32), "BF16")
    return arrays


def write(file: Path, rows: Mapping[str, Row]) -> None:
    safetensors.write(
        file,
        [(name, code, array.shape) for name, (code, array) in rows.items()],
        lambda name: safetensors.encode(rows[name][1], rows[name][0]),
        {"format": "pt"},
    )


def write_base(folder: Path, arrays: Mapping[str, np.ndarray], **settings: Any) -> Path:
    """One F32 file."""
    folder.mkdir()
    write(folder / "model.safetensors", {name: ("F32", a) for name, a in arrays.items()})
    _write_rest(folder, config(**{"torch_dtype": "float32"} | settings))
    return folder


def write_tuned(folder: Path, arrays: Mapping[str, np.ndarray], **settings: Any) -> Path:
    """Two BF16 shards and an index."""
    folder.mkdir()
    names, shards = list(arrays), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = len(names) // 2
    parts = dict(zip(shards, (names[:half], names[half:]), strict=True))
    for shard, part in parts.items():
        write(folder / shard, {name: ("BF16", arrays[name]) for name in part})
    index = {"metadata": {}, "weight_map": {n: s for s, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _write_rest(folder, config(**{"torch_dtype": "bfloat16"} | settings))
    return folder


def _write_rest(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text('{"words": ["a", "b"]}')


def read(folder: Path) -> dict[str, Row]:
    """Every tensor of a folder, widened, with its storage code."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    entries = [e for file in files for e in safetensors.read_header(file)[0].values()]
    return {e.name: (e.dtype, safetensors.load(e)) for e in entries}


def file_of(folder: Path, tensor: str) -> Path:
    return next(f for f in folder.glob("*.safetensors") if tensor in safetensors.read_header(f)[0])


def spoil(folder: Path, tensor: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Path:
    """Replace one tensor in its file (None: leave it out); returns the file."""
    file = file_of(folder, tensor)
    _, metadata = safetensors.read_header(file)
    rows = read(file)
    code, array = rows[tensor]
    new = change(array.copy())
    rows = {n: r for n, r in rows.items() if n != tensor or new is not None}
    if new is not None:
        rows[tensor] = (code, new)
    safetensors.write(
        file,
        [(name, code, array.shape) for name, (code, array) in rows.items()],
        lambda name: safetensors.encode(rows[name][1], rows[name][0]),
        metadata,
    )
    return file


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A change for `spoil`: the last entry."""

    def change(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[-1] = value
        return array

    return change


def is_covered(name: str) -> bool:
    return "_proj." in name


def delta_norm(base: Mapping[str, Row], tuned: Mapping[str, Row], names: Iterable[str]) -> float:
    squares = (np.sum((tuned[n][1].astype(float) - base[n][1]) ** 2) for n in names)
    return float(np.sqrt(sum(squares)))


def decoded(folder: Path) -> dict[str, np.ndarray]:
    """Delta of every covered tensor, from the factors and the site table."""
    factors = load_factors(folder)
    deltas = {name: np.zeros(shape) for name, shape in factors.shapes.items()}
    for group, tensor in zip(factors.groups, factors.tensors, strict=True):
        dense = np.asarray(tensor.to_dense(), float).reshape(-1, *group.shape[-2:])
        for site, matrix in zip(group.sites, dense, strict=True):
            site.take(deltas[site.tensor])[...] = matrix
    return deltas


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes; folders as None."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }
