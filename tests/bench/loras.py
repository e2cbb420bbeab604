"""LoRAs of rank 128 made rank 32: seconds, memory, and one dense SVD of the same matrix beside it.

``python -m tests.bench.loras --shape flux`` writes a file as kohya's scripts name it (19 double and
38 single blocks, hidden size 3072, bfloat16), runs `tdecomp resize` on it as a process of its own,
and takes the SVD of the dense ΔW of one of its largest sites in the same run.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdecomp.collections import AdapterPair
from tdecomp.collections.resizing import resized
from tdecomp.files import safetensors
from tdecomp.files.loras import SCHEMES, AdapterFile, read_adapter, write_adapter
from tdecomp.files.loras.adapter_file import Expert3d
from tests.bench.children import run_child
from tests.bench.limits import seconds
from tests.bench.tables import Printer, printing, say

__all__ = ["SHAPES", "main", "write_planted"]

RANK, NARROW = 128, 32
_DECAY = 0.97  # from one column of B to the next

Shape = tuple[int, int]


def _llama_1b() -> Iterator[tuple[str, Shape]]:
    sizes = {"self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048)}
    sizes |= {"self_attn.v_proj": (512, 2048), "self_attn.o_proj": (2048, 2048)}
    sizes |= {"mlp.gate_proj": (8192, 2048), "mlp.up_proj": (8192, 2048)}
    sizes |= {"mlp.down_proj": (2048, 8192)}
    for layer in range(16):
        yield from ((f"model.layers.{layer}.{name}", shape) for name, shape in sizes.items())


def _flux() -> Iterator[tuple[str, Shape]]:
    h = 3072
    stream = {"attn_qkv": (3 * h, h), "attn_proj": (h, h), "mod_lin": (6 * h, h)}
    stream |= {"mlp_0": (4 * h, h), "mlp_2": (h, 4 * h)}
    for block in range(19):
        for side in ("img", "txt"):
            for name, shape in stream.items():
                yield f"unet.double_blocks_{block}_{side}_{name}", shape
    single = {"linear1": (7 * h, h), "linear2": (h, 5 * h), "modulation_lin": (3 * h, h)}
    for block in range(38):
        yield from ((f"unet.single_blocks_{block}_{n}", shape) for n, shape in single.items())


SHAPES: Mapping[str, tuple[str, dict[str, Shape], str]] = {
    "1b": ("peft", dict(_llama_1b()), "model.layers.0.mlp.down_proj"),
    "flux": ("kohya", dict(_flux()), "unet.double_blocks_0_img_mlp_2"),
}
"""Naming scheme, sites with their (out, in), and the site that the dense SVD is taken of."""


@dataclass(frozen=True)
class Planted:
    """A pair that is made when it is read: Gaussian, with columns that become shorter."""

    shape: Shape
    rank: int
    seed: int
    dtype: str = "BF16"
    kind: str = "lora"
    expert: Expert3d | None = None

    def read(self) -> AdapterPair:
        """The pair, the same on every call, in numbers that the dtype holds."""
        rng = np.random.default_rng(self.seed)
        out, in_ = self.shape
        b = rng.standard_normal((out, self.rank), dtype=np.float32)
        b *= _DECAY ** np.arange(self.rank, dtype=np.float32) / math.sqrt(out)
        a = rng.standard_normal((self.rank, in_), dtype=np.float32) / np.float32(math.sqrt(in_))
        b, a = (safetensors.rounded(x, self.dtype) for x in (b, a))
        return AdapterPair(b=b, a=a, scale=0.5)


def write_planted(path: Path, scheme: str, sites: Mapping[str, Shape], rank: int) -> int:
    """Write such an adapter; returns its bytes."""
    row = next(s for s in SCHEMES if s.name == scheme)
    stored = {site: Planted(shape, rank, k) for k, (site, shape) in enumerate(sites.items())}
    if row.in_folder:
        path.mkdir()
    adapter = AdapterFile(path=path, name="planted", scheme=None, stored=stored)  # type: ignore[arg-type]
    write_adapter(path, adapter, scheme=row)
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))


def whole(printer: Printer, shape: str, rank: int, narrow: int, folder: Path) -> Path:
    """Resize the file as a process of its own; returns where it is."""
    scheme, sites, _ = SHAPES[shape]
    end = "" if scheme == "peft" else ".safetensors"
    path, out = folder / f"wide{end}", folder / f"narrow{end}"
    say(f"writing {len(sites)} sites of rank {rank}")
    size = write_planted(path, scheme, sites, rank)
    command = [sys.executable, "-m", "tdecomp", "resize", str(path), "-o", str(out)]
    child = run_child([*command, "--rank", str(narrow), "--quiet"])
    printer.table(
        f"`tdecomp resize --rank {narrow}`, {shape}: {len(sites)} sites, rank {rank}, BF16",
        ("file MB", "s", "peak RSS MB", "RSS / file"),
        [
            [
                f"{size / 1e6:.0f}",
                f"{child.seconds:.1f}",
                f"{child.rss / 1e6:.0f}",
                f"{child.rss / size:.2f}",
            ]
        ],
    )
    return path


def beside_dense(printer: Printer, path: Path, site: str, narrow: int) -> None:
    """One site in factor space and by a dense SVD in float32."""
    pair = read_adapter(path).pairs[site]
    fast = seconds(lambda: resized(pair, narrow), 5)
    new = resized(pair, narrow)
    dense = np.asarray(pair.dense(), np.float32)
    say(f"dense SVD of {dense.shape}")
    found: list[np.ndarray] = []
    slow = seconds(lambda: found.append(np.linalg.svd(dense, full_matrices=False)[1]), 1)
    s = found[0].astype(np.float64)
    errors = (
        math.sqrt(new.departure / new.energy),
        math.sqrt(np.sum(s[narrow:] ** 2) / np.sum(s**2)),
    )
    printer.table(
        f"{site}, {' × '.join(map(str, dense.shape))}, rank {pair.rank} to {narrow}",
        ("in factors s", "dense SVD s", "ratio", "error in factors", "error dense"),
        [[f"{fast:.3f}", f"{slow:.1f}", f"{slow / fast:.0f}", *(f"{e:.6f}" for e in errors)]],
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="LoRAs made smaller.")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    printing(parser)
    chosen = parser.parse_args()
    printer = Printer(chosen.markdown)
    with tempfile.TemporaryDirectory() as folder:
        path = whole(printer, chosen.shape, RANK, NARROW, Path(folder))
        beside_dense(printer, path, SHAPES[chosen.shape][2], NARROW)


if __name__ == "__main__":
    main()
