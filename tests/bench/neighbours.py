"""``python -m tests.bench.neighbours``: every public function beside a busy process.

Three columns of medians: one thread beside the neighbour, what a user gets beside it, and what a
user gets alone. ``--neighbours`` says how many busy processes there are for every core but one.
``--cores 1`` keeps this process on one core, as a quota does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

import tdecomp as td
from tests.bench.tables import Printer, printing, say

_SPIN = "x = 1.0\nwhile True:\n    for _ in range(10000):\n        x = x * 1.0000001 % 3.0\n"


@contextmanager
def busy(n: int) -> Iterator[None]:
    """`n` processes that never rest."""
    running = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(n)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def planted(*shape: int, rank: int = 4, dtype: str = "float64") -> np.ndarray:
    """A CP tensor of the given rank, and noise of a tenth of its size."""
    rng = np.random.default_rng(0)
    x = np.ones((1, rank))
    for n in shape:
        x = (x[:, None, :] * rng.standard_normal((n, rank))).reshape(-1, rank)
    x = x.sum(axis=1).reshape(shape)
    return (x / x.std() + 0.1 * rng.standard_normal(shape)).astype(dtype)


def tasks() -> dict[str, Callable[[], object]]:
    """One call of each public function, on data small and large."""
    kernel = planted(3, 3, 220, 220)
    large = planted(8, 1024, 1024, dtype="float32")
    cube, modes = planted(60, 60, 60), planted(*(4,) * 10)
    many = [planted(64, 64) for _ in range(40)]
    train = td.TT.random((4,) * 20, 40, random_state=0)
    matrix = planted(512, 512)
    return {
        "tucker2 of 3x3x220x220": lambda: td.tucker2(kernel, rank=16),
        "tucker of 60x60x60": lambda: td.tucker(cube, rank=8),
        "tucker by error": lambda: td.tucker(cube, error=0.2),
        "cp of 60x60x60": lambda: td.cp(cube, rank=4),
        "als of 60x60x60": lambda: td.als(cube, "a r, r b s, s c -> a b c", rank=4),
        "hosvd of 60x60x60": lambda: td.hosvd(cube, rank=8),
        "interpolative of 60x60x60": lambda: td.interpolative(cube, rank=8),
        "tensor_train of (4,)*10": lambda: td.tensor_train(modes, rank=8),
        "forty svds of 64x64": lambda: [td.svd(m, rank=8) for m in many],
        "svd of 512x512": lambda: td.svd(matrix, rank=16),
        "mpo of 512x512": lambda: td.mpo(matrix, out=(8, 64), inp=(8, 64), rank=16),
        "tt_round of 20 cores of 40": lambda: td.tt_round(train, rank=20),
        "norm of 20 cores of 40": train.norm,
        "ranks of 60x60x60": lambda: td.ranks(cube),
        "explore of 8x1024x1024": lambda: td.explore(large, names="layer out in"),
        "tucker2 of 8x1024x1024": lambda: td.tucker2(large, rank=16),
        "svd of 8x1024x1024": lambda: td.svd(large, rank=16),
        "tensor_train of 8x1024x1024": lambda: td.tensor_train(large, rank=16),
        "cp of 8x1024x1024": lambda: td.cp(large, rank=4),
    }


def median(task: Callable[[], object], runs: int) -> float:
    """Seconds."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        task()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Public functions beside a busy process.")
    parser.add_argument("--cores", type=int, help="keep this process on so many cores")
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="tasks whose name holds this")
    printing(parser)
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    rows = []
    for name, task in tasks().items():
        if given.only not in name:
            continue
        say(name)
        task()
        alone = median(task, given.runs)
        with busy(given.neighbours):
            beside = median(task, given.runs)
            with threadpool_limits(limits=1, user_api="blas"):
                one = median(task, given.runs)
        rows.append((name, f"{alone:.3g}", f"{beside:.3g}", f"{one:.3g}", f"{beside / one:.2f}"))
    columns = ("what", "alone s", "beside s", "beside, one thread s", "beside / one thread")
    Printer(given.markdown).table("Beside a busy process", columns, rows)


if __name__ == "__main__":
    main()
