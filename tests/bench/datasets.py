"""``python -m tests.bench.datasets``: CP of the datasets that TensorLy ships, 2 to 10 components.

Both libraries take as many sweeps, from singular vectors, and stop at the same change. Missing
entries are zeros for both.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorly
from tensorly import datasets
from tensorly.decomposition import parafac

import tdecomp as td
from tests.bench.tables import Printer, printing, say

DATA = {
    "serology": datasets.load_covid19_serology,
    "IL-2": datasets.load_IL2data,
    "kinetic": datasets.load_kinetic,
    "Indian pines, every fourth": datasets.load_indian_pines,
}


def data(name: str) -> np.ndarray:
    """A dataset in float64, the large one thinned out."""
    x = np.nan_to_num(np.asarray(DATA[name]().tensor, dtype=np.float64))
    return x[::4, ::4, ::4] if x.size > 2_000_000 else x


def timed(fit: Callable[[], np.ndarray], x: np.ndarray) -> tuple[float, float]:
    """Relative error, and seconds of the processor."""
    start = time.process_time()
    dense = fit()
    seconds = time.process_time() - start
    return float(np.linalg.norm(dense - x) / np.linalg.norm(x)), seconds


def _ours(x: np.ndarray, rank: int, **options: Any) -> np.ndarray:
    return np.asarray(td.cp(x, rank=rank, **options).tensor.to_dense())


def _theirs(x: np.ndarray, rank: int, **options: Any) -> np.ndarray:
    return tensorly.cp_to_tensor(parafac(x, rank, init="svd", **options))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="CP of real data beside TensorLy's.")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=1, help="starts of ours")
    printing(parser)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in DATA:
        x = data(name)
        say(f"{name}, {'x'.join(map(str, x.shape))}")
        sweeps = {"n_iter_max": given.sweeps, "tol": 1e-8}
        for rank in range(2, 11):
            ours = partial(_ours, x, rank, n_restarts=given.restarts, **sweeps)
            theirs = partial(_theirs, x, rank, **sweeps)
            (error, seconds), (their_error, their_seconds) = timed(ours, x), timed(theirs, x)
            times = f"{seconds:.2f}", f"{their_seconds:.2f}"
            ratio = f"{error / their_error:.4f}"
            rows.append((name, str(rank), f"{error:.5f}", f"{their_error:.5f}", ratio, *times))
    columns = ("data", "components", "error", "TensorLy", "ratio", "s", "TensorLy s")
    Printer(given.markdown).table("CP of real data", columns, rows)


if __name__ == "__main__":
    main()
