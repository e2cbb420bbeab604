"""Times over splits of one number of entries, trains of many modes, and many tiny matrices.

``python -m tests.bench.smooth``: each row beside TensorLy (torchTT and teneva where they can be
imported) in the same run. What should be smooth is seconds per number down each table.
"""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorly
from tensorly.decomposition import partial_tucker, tensor_train

import tdecomp as td
from tests.bench.tables import Printer, installed, printing

__all__ = ["kernels", "main", "tiny_matrices", "trains"]

KERNELS = [(1024, 1024), (340, 340, 3, 3), (342, 342, 3, 3), (512, 512, 3, 3), (8,) * 8, (2,) * 21]
MODES = (10, 50, 200)
COUNTS = (10, 1000, 10_000)


def seconds(work: Callable[[], Any]) -> str:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return f"{time.perf_counter() - start:.3f}"


def kernels(shapes: list[tuple[int, ...]]) -> list[list[str]]:
    """`tucker2` of the first two modes and `tensor_train`, beside TensorLy's."""
    return [_kernel(shape) for shape in shapes]


def _kernel(shape: tuple[int, ...]) -> list[str]:
    x, both = np.random.default_rng(0).standard_normal(shape).astype(np.float32), (0, 1)
    rank, bonds = [min(8, n) for n in shape[:2]], [1, *[8] * (len(shape) - 1), 1]
    return [
        str(shape) if len(shape) < 5 else f"({shape[0]},) * {len(shape)}",
        f"{math.prod(shape):,}",
        seconds(lambda: td.tucker2(x, rank=min(8, *shape), modes=both)),
        seconds(lambda: partial_tucker(tensorly.tensor(x), rank=rank, modes=both)),
        seconds(lambda: td.tensor_train(x, rank=8)),
        seconds(lambda: tensor_train(tensorly.tensor(x), bonds)),
    ]


def trains(modes: tuple[int, ...]) -> list[list[str]]:
    """Rounding of a train plus itself, by rank and by error."""
    peer = importlib.import_module("teneva") if installed("teneva") else None
    return [_train(d, peer) for d in modes]


def _train(d: int, peer: Any) -> list[str]:
    rng, bonds = np.random.default_rng(0), (1, *(5,) * (d - 1), 1)
    pairs = zip(bonds, bonds[1:], strict=False)
    cores = tuple(rng.standard_normal((a, 4, b)) / 4.5 for a, b in pairs)
    tt = td.TT(tuple((f"m{k}",) for k in range(d)), cores)
    both = tt + tt
    return [
        str(d),
        seconds(lambda: td.tt_round(both, rank=5)),
        seconds(lambda: td.tt_round(both, error=1e-8)),
        "" if peer is None else seconds(lambda: peer.truncate(list(both.cores), 1e-8)),
    ]


def tiny_matrices(counts: tuple[int, ...]) -> list[list[str]]:
    """Many 8 x 8 matrices in one array."""
    return [_tiny(n) for n in counts]


def _tiny(n: int) -> list[str]:
    x = np.random.default_rng(0).standard_normal((n, 8, 8)).astype(np.float32)
    return [
        f"{n:,}",
        seconds(lambda: td.svd(x, rank=2)),
        seconds(lambda: td.tucker2(x, rank=2)),
        seconds(lambda: np.linalg.svd(x)),
    ]


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    printing(parser)
    printer = Printer(parser.parse_args().markdown)
    printer.table(
        "Seconds by split",
        ("shape", "numbers", "tucker2", "TensorLy", "tensor_train", "TensorLy"),
        kernels(KERNELS),
    )
    printer.table("Rounding", ("modes", "rank=5", "error=1e-8", "teneva"), trains(MODES))
    printer.table("Tiny matrices", ("8 x 8", "svd", "tucker2", "numpy"), tiny_matrices(COUNTS))


if __name__ == "__main__":
    main()
