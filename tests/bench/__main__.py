"""``make bench``: time the decompositions against their peers, in the same run.

Prints medians and ratios; the machine is whatever it runs on. Data are synthetic, with a planted
low-rank part and noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorly
from rich.console import Console
from rich.table import Table

import tdecomp as td

SHAPES = [(6, 3, 384, 384), (12, 3, 768, 768)]
RANK = 16
RUNS = 3


def planted(shape: tuple[int, ...], rank: int) -> np.ndarray:
    """Float32 stack with shared bases of the given rank, and noise of a tenth of its size."""
    rng = np.random.default_rng(0)
    *sites, out, in_ = shape
    cores = rng.standard_normal((*sites, rank, rank))
    x = rng.standard_normal((out, rank)) @ cores @ rng.standard_normal((rank, in_))
    x += 0.1 * x.std() * rng.standard_normal(shape)
    return x.astype(np.float32)


def median_time(work: Callable[[], object]) -> float:
    """Median wall time in seconds after one warm-up."""
    work()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def full_svd(x: np.ndarray) -> None:
    """One full SVD per matrix, as extraction tools do it."""
    for matrix in x.reshape(-1, *x.shape[-2:]):
        np.linalg.svd(matrix, full_matrices=False)


def main() -> None:
    """Print the table."""
    table = Table(
        "stack", "what", "median s", "× one skinny product", title=f"rank {RANK}, float32"
    )
    for shape in SHAPES:
        x = planted(shape, RANK)
        sketch = np.ones((shape[-1], RANK + 16), dtype=np.float32)
        ranks = (*shape[:-2], RANK, RANK)
        rows: list[tuple[str, Callable[[], object]]] = [
            ("one skinny product x @ Ω", lambda x=x, s=sketch: x @ s),
            ("td.svd", lambda x=x: td.svd(x, rank=RANK)),
            ("one full SVD per matrix (numpy)", lambda x=x: full_svd(x)),
            ("td.tucker2", lambda x=x: td.tucker2(x, rank=RANK)),
            ("td.tucker", lambda x=x, r=ranks: td.tucker(x, rank=r)),
            (
                "tensorly tucker, 5 sweeps",
                lambda x=x, r=ranks: tensorly.decomposition.tucker(x, rank=list(r), n_iter_max=5),
            ),
        ]
        times = [median_time(work) for _, work in rows]
        for (what, _), seconds in zip(rows, times, strict=True):
            table.add_row(
                "×".join(map(str, shape)), what, f"{seconds:.3f}", f"{seconds / times[0]:.0f}"
            )
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
