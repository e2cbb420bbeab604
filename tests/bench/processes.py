"""``python -m tests.bench.processes``: many processes, measured here and foreseen elsewhere.

Two tables. The first runs `tucker2` of a synthetic pair on this machine: threads of one process,
the cluster of `--dask local`, one of two processes as Dask starts it, and commands with their
start: alone, with ``--dask local``, and two parts that meet in a folder. All by turns, medians of
what follows a first run each; beside stands what the cost model foresees. The second table foresees
larger pairs on more processes and storage of other speeds, by the same model from the same
constants.

The model, for matrices of n numbers in all, w workers, k columns and P passes. A pass takes the
longer of reading, ``4 n / S`` seconds for two bfloat16 files at S bytes per second, and working,
``(n / W + 2 k n / F) / w``; then the process that leads takes up ``4 k`` bytes for each row or
column of every matrix at N bytes per second, and does its small steps, ``12 k`` operations for each
of these numbers at F. The last pass measures the residual with ``2 r n`` operations. Hashing takes
``4 n / min(S, w H)``. Constants of one core: W numbers widened and subtracted, F operations of
skinny products, H bytes hashed, N bytes packed and unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import tdecomp as td
from tdecomp import jobs
from tdecomp._threads import cores
from tdecomp.files import load_factors
from tdecomp.files.delta import open_delta
from tdecomp.tasks import Executor
from tdecomp.tasks.dask_cluster import dask_executor
from tdecomp.tasks.wire import packed, unpacked
from tests.bench import synthetic
from tests.bench.tables import Printer, printing, say

RANK = 64
PASSES = 3  # and one for the residual, of a thrifty stream on these pairs
SHAPES = {
    "8B": synthetic.Llama(4096, 32, heads=32, kv_heads=8, mlp=14_336),
    "70B": synthetic.Llama(8192, 80, heads=64, kv_heads=8, mlp=28_672),
    "405B": synthetic.Llama(16_384, 126, heads=128, kv_heads=8, mlp=53_248),
}
WORKERS = (1, 8, 64)
STORAGE = (0.5e9, 2e9, 10e9)  # bytes per second
MEMORY = 20e9  # bytes per second out of this machine's page cache


@dataclass(frozen=True)
class Constants:
    """Of one core, per second."""

    widened: float
    flops: float
    hashed: float
    sent: float

    def seconds(self, sizes: synthetic.Llama, workers: int, storage: float, passes: int) -> float:
        """What the model foresees for `tucker2`."""
        matrices = [shape for shape in sizes.projections.values() for _ in range(sizes.layers)]
        n, k = sum(map(math.prod, matrices)), (RANK + 10) * 3 // 2
        states = k * sum(max(shape) for shape in matrices)
        read = 4 * n / storage
        visit = (n / self.widened + 2 * k * n / self.flops) / workers
        small = 4 * states / self.sent + 12 * k * states / self.flops
        residual = (n / self.widened + 2 * RANK * n / self.flops) / workers
        hashing = 4 * n / min(storage, workers * self.hashed)
        return passes * (max(read, visit) + small) + max(read, residual) + hashing


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=synthetic.PRESETS, default="1b-part")
    parser.add_argument("--repeats", type=int, default=3)
    printing(parser)
    asked = parser.parse_args(arguments)
    printer = Printer(asked.markdown)
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing the pair {asked.preset}")
        synthetic.write_pair(asked.preset, Path(folder, "pair"))
        constants = measured(Path(folder, "pair"))
        rows, passes = here(Path(folder), asked.preset, constants, asked.repeats)
    title = (
        f"tucker2, rank {RANK}, of {asked.preset}: {passes} passes and the residual; a core widens"
        f" {constants.widened / 1e6:.0f} million numbers a second, multiplies at"
        f" {constants.flops / 1e9:.0f} Gflop/s, hashes {constants.hashed / 1e9:.2f} GB/s, packs"
        f" {constants.sent / 1e9:.2f} GB/s"
    )
    printer.table(title, ["", "seconds", "of threads", "foreseen", "measured / foreseen"], rows)
    printer.table(
        f"foreseen: tucker2, rank {RANK}, {PASSES} passes and the residual, such cores",
        ["pair", "storage GB/s", *(f"{w} worker" + "s" * (w > 1) for w in WORKERS)],
        [
            [name, f"{speed / 1e9:g}"]
            + [minutes(constants.seconds(sizes, w, speed, PASSES)) for w in WORKERS]
            for name, sizes in SHAPES.items()
            for speed in STORAGE
        ],
    )


def measured(pair: Path) -> Constants:
    """The constants of this machine, on one matrix of a pair, files in the page cache."""
    delta = open_delta(pair / "base", pair / "tuned")
    stack = max(delta.stacks, key=lambda one: math.prod(one.shape[-2:]))
    matrix = np.asarray(stack.slice(0))
    k = (RANK + 10) * 3 // 2
    right = np.ones((matrix.shape[1], k), np.float32)
    data = matrix.tobytes()
    with threadpool_limits(1, "blas"):
        return Constants(
            widened=matrix.size / fastest(lambda: stack.slice(0)),
            flops=2 * k * matrix.size / fastest(lambda: matrix @ right),
            hashed=len(data) / fastest(lambda: hashlib.sha256(data).digest()),
            sent=matrix.nbytes / fastest(lambda: unpacked(packed(matrix))),
        )


def fastest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def here(
    folder: Path, preset: str, constants: Constants, repeats: int
) -> tuple[list[list[str]], int]:
    """Rows of the runs on this machine, and the passes that they took."""
    sizes = synthetic.PRESETS[preset]
    seconds: dict[str, list[float]] = {}
    with dask_executor("local") as local, two_processes() as cluster:
        ways: dict[str, tuple[int, Callable[[Path, Path], float]]] = {
            f"{cores()} threads": (cores(), run_job),
            "--dask local": (cores(), partial(run_job, executor=local)),
            "a cluster of 2 processes": (2, partial(run_job, executor=cluster)),
            "the command": (cores(), run_command),
            "the command, --dask local": (cores(), partial(run_command, more=["--dask", "local"])),
            "2 parts in a folder": (2, run_parts),
        }
        for repeat in range(repeats + 1):
            for name, (_, run) in ways.items():
                say(f"{name}, run {repeat} of {repeats}" if repeat else f"{name}, not counted")
                took = run(folder / "pair", folder / "out")
                seconds.setdefault(name, []).append(took)
    stacks = open_delta(folder / "pair" / "base", folder / "pair" / "tuned").stacks
    passes = max(fit.passes for fit in td.decompose(stacks, td.tucker2, rank=RANK)) - 1
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    one = next(iter(medians.values()))
    rows = []
    for name, (workers, _) in ways.items():
        foreseen = constants.seconds(sizes, workers, MEMORY, passes)
        took = medians[name]
        rows.append(
            [name, f"{took:.2f}", f"{took / one:.2f}", f"{foreseen:.2f}", f"{took / foreseen:.2f}"]
        )
    return rows, passes


def run_job(pair: Path, out: Path, executor: Executor | None = None) -> float:
    """Seconds of the job; the factors are looked at."""
    start = time.perf_counter()
    how = {"method": "tucker2", "rank": RANK, "overwrite": True}
    jobs.decompose(
        pair / "base", pair / "tuned", out, machine=jobs.Machine(executor=executor), **how
    )
    seconds = time.perf_counter() - start
    assert len(load_factors(out / "factors.safetensors").parts) > 1
    return seconds


@contextmanager
def two_processes() -> Generator[Executor]:
    """Inside, a cluster as Dask starts it."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        LocalCluster(**options, memory_limit=0) as cluster,
        dask_executor(cluster.scheduler_address) as executor,
    ):
        yield executor


def run_command(pair: Path, out: Path, more: Sequence[str] = ()) -> float:
    """The same by a command, start of Python and of its cluster included."""
    start = time.perf_counter()
    subprocess.run([*_words(pair, out), *more], check=True)
    return time.perf_counter() - start


def run_parts(pair: Path, out: Path) -> float:
    """The same by two commands, start of Python included."""
    words = _words(pair, out)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        parts = [
            subprocess.Popen([*words, "--scratch", scratch, "--part", f"{number}/2"])
            for number in (1, 2)
        ]
        assert [part.wait() for part in parts] == [0, 0]
        return time.perf_counter() - start


def _words(pair: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "tdecomp", "decompose", str(pair / "base"), str(pair / "tuned")]
    return [*words, "--method", "tucker2", "--rank", str(RANK), "-o", str(out), "--overwrite", "-q"]


def minutes(seconds: float) -> str:
    """A time that people can read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
