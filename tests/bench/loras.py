"""LoRAs of rank 128 made rank 32: seconds, memory, and one dense SVD of the same matrix beside it.

``python -m tests.bench.loras --shape flux`` writes a file as kohya's scripts name it (19 double and
38 single blocks, hidden size 3072, bfloat16), runs `tdecomp resize` on it as a process of its own,
and takes the SVD of the dense ΔW of one of its largest sites in the same run. Times are seconds of
the processor, which a busy neighbour does not change much.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdecomp.collections import AdapterPair
from tdecomp.collections.resizing import resized
from tdecomp.files import safetensors
from tdecomp.files.loras import SCHEMES, AdapterFile, write_adapter
from tdecomp.files.loras.adapter_file import Expert3d
from tests.bench.children import run_child
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


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    """Median processor time of some calls."""
    times: list[float] = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def of_children() -> float:
    """Processor time of the processes that were run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def whole(printer: Printer, shape: str, rank: int, narrow: int, folder: Path) -> Path:
    """Resize the file as a process of its own; returns where it is."""
    scheme, sites, _ = SHAPES[shape]
    end = "" if scheme == "peft" else ".safetensors"
    path, out = folder / f"wide{end}", folder / f"narrow{end}"
    say(f"writing {len(sites)} sites of rank {rank}")
    size = write_planted(path, scheme, sites, rank)
    command = [sys.executable, "-m", "tdecomp", "resize", str(path), "-o", str(out)]
    before = of_children()
    child = run_child([*command, "--rank", str(narrow), "--quiet"])
    used, peak = of_children() - before, child.rss / size
    printer.table(
        f"`tdecomp resize --rank {narrow}`, {shape}: {len(sites)} sites, rank {rank}, bfloat16",
        ("file MB", "CPU s", "wall s", "peak RSS MB", "RSS / file"),
        [
            [f"{size / 1e6:.0f}", f"{used:.1f}", f"{child.seconds:.1f}"]
            + [f"{child.rss / 1e6:.0f}", f"{peak:.2f}"]
        ],
    )
    return path


def beside_dense(printer: Printer, pair: AdapterPair, site: str, narrow: int) -> None:
    """One site in factor space and by a dense SVD in float32."""
    new = resized(pair, narrow)
    fast = cpu_seconds(lambda: resized(pair, narrow), 5)
    dense = np.asarray(pair.dense(), np.float32)
    say(f"dense SVD of {dense.shape}")
    found: list[np.ndarray] = []
    slow = cpu_seconds(lambda: found.append(np.linalg.svd(dense, full_matrices=False)[1]), 1)
    squares = found[0].astype(np.float64) ** 2
    errors = (
        math.sqrt(new.departure / new.energy),
        math.sqrt(squares[narrow:].sum() / squares.sum()),
    )
    printer.table(
        f"{site}, {' × '.join(map(str, dense.shape))}, rank {pair.rank} to {narrow}",
        ("in factors CPU s", "dense SVD CPU s", "ratio", "error in factors", "error dense"),
        [[f"{fast:.3f}", f"{slow:.1f}", f"{slow / fast:.0f}", *(f"{e:.6f}" for e in errors)]],
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="LoRAs made smaller.")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--part", choices=["file", "site", "both"], default="both")
    printing(parser)
    chosen = parser.parse_args()
    printer = Printer(chosen.markdown)
    _, sites, site = SHAPES[chosen.shape]
    if chosen.part != "file":
        planted = Planted(sites[site], RANK, list(sites).index(site))
        beside_dense(printer, planted.read(), site, NARROW)
    if chosen.part != "site":
        with tempfile.TemporaryDirectory() as folder:
            whole(printer, chosen.shape, RANK, NARROW, Path(folder))


if __name__ == "__main__":
    main()
