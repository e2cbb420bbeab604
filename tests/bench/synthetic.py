"""``python -m tests.bench.synthetic PRESET FOLDER``: a Llama-shaped pair with planted spectra.

Writes ``FOLDER/base`` and ``FOLDER/tuned``, bfloat16, one tensor in memory at a time. The delta of
every projection is the sum of three parts, each in a share of its energy (`SHARES`):

- ``U C_l Vᵀ``: bases shared by all layers of a group (q; k and v; o; gate and up; down), and a core
  of each matrix's own with singular values that fall as ``0.9^i``;
- ``U_l S_l V_lᵀ``: bases of the matrix's own, orthogonal to the shared ones, values as above;
- white noise.

Everything follows from the seed and the tensor's name, so a tensor can be made again on its own.

White noise and base weights are windows into one pool of drawn normals: drawing them one by one
would take longer than everything that is measured. Inside a window all numbers are independent; a
window begins at a random place, so two matrices that use the same part of the pool see it shifted,
and neither their products nor their common spectrum differ from those of independent noise by more
than a random pair does. The length of the pool is prime, so a tensor longer than the pool
(an embedding) never repeats a row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files.atomic import output_folder

__all__ = ["DELTA", "PRESETS", "SHARES", "Llama", "Planted", "write_pair"]

BASE = 0.02  # standard deviation of the base weights
DELTA = 0.002  # root mean square of what tuning changed
SHARES = {"shared": 0.5, "own": 0.3, "noise": 0.2}  # of the delta's energy
DECAY = 0.9
NOTE = "synthetic.json"
_POOL = 33_554_393  # the largest prime below 2^25
_BLOCK = 1 << 22  # numbers encoded at a time

_SHARING = {
    "q_proj": "q",
    "k_proj": "kv",
    "v_proj": "kv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}


@dataclass(frozen=True)
class Llama:
    """Sizes of a Llama; `vocabulary` 0: without embeddings; `rank` of each planted part."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 0
    rank: int = 32

    @property
    def config(self) -> dict[str, object]:
        """The ``config.json``."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """``(out, in)`` of every projection of a layer, by its path inside the layer."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        attention = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
        mlp = {"gate_proj": (self.mlp, h), "up_proj": (self.mlp, h), "down_proj": (h, self.mlp)}
        return {f"self_attn.{name}": shape for name, shape in attention.items()} | {
            f"mlp.{name}": shape for name, shape in mlp.items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name, in file order."""
        norm = (self.hidden,)
        rows: dict[str, tuple[int, ...]] = {}
        if self.vocabulary:
            rows["model.embed_tokens.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            path = f"model.layers.{layer}"
            rows[f"{path}.input_layernorm.weight"] = norm
            for name, shape in self.projections.items():
                rows[f"{path}.{name}.weight"] = shape
            rows[f"{path}.post_attention_layernorm.weight"] = norm
        return rows | {"model.norm.weight": norm}


PRESETS = {
    "tiny": Llama(96, 3, heads=4, kv_heads=2, mlp=256, vocabulary=512, rank=8),
    "1b-part": Llama(2048, 2, heads=32, kv_heads=8, mlp=8192, vocabulary=16_384),
    "1b": Llama(2048, 16, heads=32, kv_heads=8, mlp=8192, vocabulary=128_256),
    "7b-subset": Llama(4096, 4, heads=32, kv_heads=32, mlp=11_008),
}


@dataclass(frozen=True)
class Planted:
    """The numbers of a pair, tensor by tensor.

    Attributes
    ----------
    sizes
        Of the model.
    seed
        Everything follows from it and the tensors' names.
    """

    sizes: Llama
    seed: int = 0
    _shared: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, repr=False)

    def base(self, name: str) -> np.ndarray:
        """Base weights, float32, exact in bfloat16; ones for a norm."""
        shape = self.sizes.shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return self._window(self._weights, f"base {name}", shape)

    def tuned(self, name: str) -> np.ndarray:
        """Tuned weights, float32; only projections differ from the base."""
        weights = self.base(name)
        return weights + self.delta(name) if name.endswith("_proj.weight") else weights

    def delta(self, name: str) -> np.ndarray:
        """What tuning adds to a projection, float32."""
        u, v = self.bases(name)
        energy = DELTA**2 * math.prod(self.sizes.shapes[name])
        noise = self._window(self._pool, f"noise {name}", self.sizes.shapes[name])
        out = (u * math.sqrt(energy)) @ self.core(name) @ v.T
        out += np.float32(DELTA * math.sqrt(SHARES["noise"])) * noise
        return out

    def bases(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal columns ``(out, 2 rank)`` and ``(in, 2 rank)``, the shared ones first."""
        return self._bases(name, 0), self._bases(name, 1)

    def core(self, name: str) -> np.ndarray:
        """The planted part in its bases, ``(2 rank, 2 rank)``; its squared norm is its share."""
        r = self.sizes.rank
        values = DECAY ** np.arange(r)
        values /= np.linalg.norm(values)
        half = np.sqrt(values)
        core = np.zeros((2 * r, 2 * r))
        shared = half[:, None] * _orthonormal(self._rng(f"core {name}"), r, r) * half
        core[:r, :r] = shared * math.sqrt(SHARES["shared"]) / np.linalg.norm(shared)
        core[r:, r:] = np.diag(values) * math.sqrt(SHARES["own"])
        return core.astype(np.float32)

    def _bases(self, name: str, side: int) -> np.ndarray:
        n, r = self.sizes.shapes[name][side], self.sizes.rank
        key = _SHARING[name.split(".")[-2]], side
        if key not in self._shared:
            self._shared[key] = _orthonormal(self._rng(f"shared {key}"), n, r)
        shared = self._shared[key]
        own = self._rng(f"own {side} {name}").standard_normal((n, r), dtype=np.float32)
        own -= shared @ (shared.T @ own)
        return np.hstack([shared, np.linalg.qr(own)[0]])

    @cached_property
    def _pool(self) -> np.ndarray:
        """Standard normals, as many as are needed and no more than 2^25."""
        largest = max(map(math.prod, self.sizes.shapes.values()))
        return self._rng("pool").standard_normal(min(_POOL, 2 * largest + 1), dtype=np.float32)

    @cached_property
    def _weights(self) -> np.ndarray:
        """The pool at the scale of the base weights, cut to bfloat16."""
        weights = np.float32(BASE) * self._pool
        weights.view(np.uint32)[...] &= 0xFFFF0000
        return weights

    def _window(self, pool: np.ndarray, what: str, shape: tuple[int, ...]) -> np.ndarray:
        """A window of the pool that begins at a place of its own; around the end, if need be."""
        start, count = int(self._rng(what).integers(len(pool))), math.prod(shape)
        parts = []
        while count:
            parts.append(pool[start : start + count])
            count, start = count - len(parts[-1]), 0
        return np.concatenate(parts).reshape(shape)

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(what.encode())])


def _orthonormal(rng: np.random.Generator, n: int, r: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((n, r), dtype=np.float32))[0]


def write_pair(
    preset: str, folder: str | Path, *, seed: int = 0, overwrite: bool = False
) -> dict[str, Path]:
    """Write ``folder/base`` and ``folder/tuned``, all or nothing.

    Parameters
    ----------
    preset
        One of `PRESETS`.
    folder
        To be made; an existing one is refused unless `overwrite`, and then must be one of ours.

    Returns
    -------
    dict
        The two folders, by ``"base"`` and ``"tuned"``.

    Raises
    ------
    FileError
        If the folder may not be written.
    """
    planted = Planted(PRESETS[preset], seed)
    entries = [(name, "BF16", shape) for name, shape in planted.sizes.shapes.items()]
    sides: dict[str, Callable[[str], np.ndarray]]
    sides = {"base": planted.base, "tuned": planted.tuned}
    with output_folder(folder, overwrite=overwrite) as place:
        for side, values in sides.items():
            (place / side).mkdir()
            (place / side / "config.json").write_text(json.dumps(planted.sizes.config, indent=2))
            safetensors.write(
                place / side / "model.safetensors",
                entries,
                lambda name, values=values: _encoded(values(name)),
                {"format": "pt"},
            )
        note = {"preset": preset, "seed": seed, "shares": SHARES, **asdict(planted.sizes)}
        (place / NOTE).write_text(json.dumps(note, indent=2))
    return {side: Path(folder) / side for side in sides}


def _encoded(array: np.ndarray) -> np.ndarray:
    """Stored bytes of an array as bfloat16, block by block: the rounding needs copies."""
    flat = array.reshape(-1)
    out = np.empty(2 * flat.size, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        block = safetensors.encode(flat[start : start + _BLOCK], "BF16")
        out[2 * start : 2 * start + block.size] = block
    return out


def main() -> None:
    """Write a pair and say how long it took."""
    parser = argparse.ArgumentParser(description="A Llama-shaped pair with planted spectra.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    start = time.perf_counter()
    try:
        pair = write_pair(given.preset, given.folder, seed=given.seed, overwrite=given.overwrite)
    except FileError as error:
        sys.exit(str(error))
    for side, path in pair.items():
        size = (path / "model.safetensors").stat().st_size
        print(f"{side}: {path}, {size / 1e9:.2f} GB")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
