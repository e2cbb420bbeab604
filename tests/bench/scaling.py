"""``python -m tests.bench.scaling``: how the cost of `td.tucker2` grows.

Time over the number of layers, the rank and the size of the matrices, four each; and the memory of
a stack that is read from disk, over the number of layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np

import tdecomp as td
from tdecomp.files import safetensors
from tdecomp.files.checkpoint import open_checkpoint
from tdecomp.files.delta import survey_model
from tdecomp.stack import group_sites
from tests.bench import limits
from tests.bench.children import run_child
from tests.bench.in_memory import shared
from tests.bench.tables import Printer, printing, say

LAYERS = (4, 8, 16, 32)
RANKS = (8, 16, 32, 64)
SIZES = (512, 1024, 2048, 4096)
_NAME = "model.layers.{}.self_attn.o_proj.weight"


def times(printer: Printer, what: str, cases: list[tuple[int, int, int]], runs: int) -> None:
    """One table: every case is ``(layers, size, rank)``; costs relative to the first."""
    rows, first = [], 0.0
    for layers, size, rank in cases:
        say(f"  {layers} × {size} × {size}, rank {rank}")
        x = shared((layers, size, size), rank)
        spent = limits.seconds(lambda x=x, rank=rank: td.tucker2(x, rank=rank), runs)
        product = limits.skinny(x, rank + 16)
        cost = spent / (x.size * rank)
        first = first or cost
        rows.append(
            [
                f"{layers} × {size} × {size}",
                str(rank),
                f"{spent:.4f}",
                f"{1e12 * cost:.1f}",
                f"{cost / first:.2f}",
                f"{spent / product:.1f}",
            ]
        )
    printer.table(
        f"td.tucker2 over {what}",
        ("stack", "rank", "s", "ps per number and rank", "of the first", "× one skinny product"),
        rows,
    )


def write_layers(folder: Path, layers: int, size: int) -> None:
    """A checkpoint of square matrices with shared bases, one in memory at a time."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, size, 16), dtype=np.float32)

    def matrix(name: str) -> np.ndarray:
        core = rng.standard_normal((16, 16), dtype=np.float32)
        noise = rng.standard_normal((size, size), dtype=np.float32)
        return safetensors.encode(left @ core @ right.T + noise, "F32")

    entries = [(_NAME.format(i), "F32", (size, size)) for i in range(layers)]
    safetensors.write(folder / "model.safetensors", entries, matrix)
    (folder / "config.json").write_text('{"model_type": "llama"}')


def measure_memory(folder: Path, rank: int) -> int:
    """Most bytes that Python and numpy held at once during `td.tucker2` of a lazy stack."""
    checkpoint = open_checkpoint(folder)
    (group,) = group_sites(survey_model(checkpoint).sites)
    stack = td.Stack(group, lambda site: site.take(checkpoint.read(site.tensor)))
    tracemalloc.start()
    try:
        td.tucker2(stack, rank=rank)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def memory(printer: Printer, size: int, rank: int) -> None:
    """Peak memory over the number of layers, each in a process of its own."""
    rows = []
    for layers in LAYERS:
        say(f"  memory of {layers} layers")
        with tempfile.TemporaryDirectory(prefix="tdecomp-bench-") as folder:
            write_layers(Path(folder), layers, size)
            options = ["--measure-memory", folder, "--rank", str(rank)]
            child = run_child([sys.executable, "-m", "tests.bench.scaling", *options])
        stack = layers * size**2 * 4
        rows.append(
            [
                str(layers),
                f"{stack / 2**20:.0f}",
                f"{int(child.output) / 2**20:.0f}",
                f"{child.anonymous / 2**20:.0f}",
                f"{child.rss / 2**20:.0f}",
            ]
        )
    printer.table(
        f"td.tucker2 of a stack read from disk, matrices {size} × {size} float32, rank {rank}",
        ("layers", "stack MiB", "arrays at once MiB", "process without files MiB", "peak RSS MiB"),
        rows,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="How the cost of td.tucker2 grows.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16, help="of the memory table")
    parser.add_argument("--measure-memory", type=Path, metavar="FOLDER", help="print one number")
    printing(parser)
    given = parser.parse_args()
    if given.measure_memory:
        print(measure_memory(given.measure_memory, given.rank))
        return
    printer = Printer(given.markdown)
    times(printer, "layers", [(layers, 1024, 16) for layers in LAYERS], given.runs)
    times(printer, "ranks", [(8, 1024, rank) for rank in RANKS], given.runs)
    times(printer, "sizes", [(4, size, 16) for size in SIZES], given.runs)
    memory(printer, 1024, given.rank)


if __name__ == "__main__":
    main()
