"""``python -m tests.bench.datasets``: CP of data that TensorLy and scikit-learn ship.

With 2 to 10 components. Both libraries take as many sweeps, from singular vectors, and stop at the
same change. Missing entries are zeros for both; columns of scikit-learn's tables in units of their
own are divided by their norms.
"""

from __future__ import annotations

import argparse
import importlib
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
from tests.bench.tables import Printer, installed, printing, say

__all__ = ["TABLES", "TENSORS", "data", "main", "timed"]

TENSORS = {
    "serology": datasets.load_covid19_serology,
    "IL-2": datasets.load_IL2data,
    "kinetic": datasets.load_kinetic,
    "Indian pines, every fourth": datasets.load_indian_pines,
}

_SAME = 1 + 1e-4  # ratio up to which both have reached the same

_EXACT = 1e-8  # error from which on down both are exact

# Loader of scikit-learn and shape: rows by columns as they are, or what these mean.
TABLES = {
    "iris": ("load_iris", (3, 50, 4)),  # species, flower, measure
    "digits": ("load_digits", (1797, 8, 8)),  # picture, row, column
    "wine": ("load_wine", (178, 13)),
    "breast cancer": ("load_breast_cancer", (569, 3, 10)),  # tumour, mean or spread or worst, kind
    "diabetes": ("load_diabetes", (442, 10)),
    "linnerud": ("load_linnerud", (20, 2, 3)),  # person, exercises or body, which
}


def data(name: str) -> np.ndarray:
    """A dataset in float64, the large one thinned out."""
    if name in TABLES:
        return _table(*TABLES[name])
    x = np.nan_to_num(np.asarray(TENSORS[name]().tensor, dtype=np.float64))
    return x[::4, ::4, ::4] if x.size > 2_000_000 else x


def _table(loader: str, shape: tuple[int, ...]) -> np.ndarray:
    found = getattr(importlib.import_module("sklearn.datasets"), loader)()
    table = np.asarray(found.data, dtype=np.float64)
    if loader == "load_linnerud":
        table = np.concatenate([table, np.asarray(found.target, dtype=np.float64)], axis=1)
    if loader != "load_digits":
        table = table / np.linalg.norm(table, axis=0)
    return table.reshape(shape)


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
    names = [*TENSORS, *(TABLES if installed("sklearn") else ())]
    parser.add_argument("--data", nargs="+", choices=names, default=names, metavar="NAME")
    printing(parser)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    printer, sweeps = Printer(given.markdown), {"n_iter_max": given.sweeps, "tol": 1e-8}
    rows, ratios = [], []
    for name in given.data:
        x = data(name)
        say(f"{name}, {'x'.join(map(str, x.shape))}")
        for rank in range(2, 11):
            ours = partial(_ours, x, rank, n_restarts=given.restarts, **sweeps)
            error, seconds = timed(ours, x)
            theirs = _tried(partial(_theirs, x, rank, **sweeps), x)
            cells = ("fails", "", "")
            if theirs is not None:
                ratios.append(max(error, _EXACT) / max(theirs[0], _EXACT))
                cells = (f"{theirs[0]:.5f}", f"{ratios[-1]:.4f}", f"{theirs[1]:.2f}")
            rows.append((name, str(rank), f"{error:.5f}", *cells[:2], f"{seconds:.2f}", cells[2]))
    columns = ("data", "components", "error", "TensorLy", "ratio", "s", "TensorLy s")
    printer.table("CP of real data", columns, rows)
    larger = [ratio for ratio in ratios if ratio > _SAME]
    counts = (str(len(ratios)), str(len(larger)), f"{max(ratios, default=0.0):.4f}")
    printer.table("Errors", ("compared", "larger than TensorLy's", "largest ratio"), [counts])


def _tried(fit: Callable[[], np.ndarray], x: np.ndarray) -> tuple[float, float] | None:
    """What TensorLy reaches, or None: it cannot start above what an unfolding has to give."""
    try:
        return timed(fit, x)
    except ValueError:
        return None


if __name__ == "__main__":
    main()
