"""``python -m tests.bench.in_memory``: stacks in memory, against other libraries and the machine.

Every library gets the same float32 array, site modes first and C-contiguous. The slow peers run
once and take minutes each; ``--peers none`` leaves them all out. What is being done is said on
stderr, tables go to stdout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import tdecomp as td
from tdecomp.linalg import svd_gram
from tests.bench import limits
from tests.bench.peers import (
    Job,
    full_svds,
    parafac_to,
    peers_of_train,
    peers_of_tucker,
    relative_error,
)
from tests.bench.tables import Printer, printing, say

RANK = 16
STACKS = [(16, 2048, 2048), (12, 3, 768, 768)]
_COLUMNS = (
    "what", "median s", "error", "error / exact", "× one skinny product", "× one read",
    "time / ours", "note",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ data


def shared(shape: Sequence[int], rank: int) -> np.ndarray:
    """Float32 stack with shared bases of the given rank, and noise of a tenth of its size."""
    rng = np.random.default_rng(0)
    *sites, out, in_ = shape
    cores = rng.standard_normal((*sites, rank, rank), dtype=np.float32)
    left = rng.standard_normal((out, rank), dtype=np.float32)
    return _noisy(left @ cores @ rng.standard_normal((rank, in_), dtype=np.float32), rng)


def decaying(shape: Sequence[int], rank: int) -> np.ndarray:
    """The same with four times as many basis vectors, whose weights fall to a tenth at `rank`."""
    rng = np.random.default_rng(1)
    *sites, out, in_ = shape
    width = 4 * rank
    weights = (0.1 ** (np.arange(width) / rank)).astype(np.float32)
    cores = rng.standard_normal((*sites, width, width), dtype=np.float32)
    cores *= np.sqrt(weights[:, None] * weights)
    left = rng.standard_normal((out, width), dtype=np.float32)
    return _noisy(left @ cores @ rng.standard_normal((width, in_), dtype=np.float32), rng)


def components(shape: Sequence[int], rank: int) -> np.ndarray:
    """A CP tensor of the given rank with normal factors, and noise of a tenth of its size."""
    rng = np.random.default_rng(2)
    *sites, out, in_ = shape
    cores = np.ones((rank,), np.float32)
    for n in reversed(sites):
        cores = rng.standard_normal((n, *[1] * (cores.ndim - 1), rank), dtype=np.float32) * cores
    left = rng.standard_normal((out, rank), dtype=np.float32) * cores[..., None, :]
    return _noisy(left @ rng.standard_normal((rank, in_), dtype=np.float32), rng)


def _noisy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = 0.1 * float(np.linalg.norm(x)) / x.size**0.5
    for matrix in x.reshape(-1, *x.shape[-2:]):
        matrix += np.float32(scale) * rng.standard_normal(matrix.shape, dtype=np.float32)
    return x


DATA = {"shared": shared, "decaying": decaying, "components": components}


# ----------------------------------------------------------------------------------- measurement


@dataclass(frozen=True)
class Row:
    """What one job took and how well it did."""

    what: str
    seconds: float
    error: float
    note: str = ""


def run(job: Job, x: np.ndarray, runs: int) -> Row:
    """Median of some runs after a warm-up; a single run has none."""
    say(f"  {job.what}, {runs} run{'s' * (runs > 1)}")
    result = job.work() if runs > 1 else None
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = job.work()
        times.append(time.perf_counter() - start - job.paused())
    error = relative_error(x, np.asarray(job.dense(result)))
    return Row(job.what, statistics.median(times), error, job.note(result))


def _ours(what: str, fit) -> Job:
    return Job(what, fit, lambda found: found.tensor.to_dense())


def blocks(x: np.ndarray, rank: int, runs: int, peers: bool) -> Iterator[tuple[list[Row], float]]:
    """Rows that belong together, ours first, and the error of the exact algorithm.

    Ours and the yardstick run first, then the peers, once.
    """
    tucker_rank = (*x.shape[:-2], rank, rank)
    ours = [
        _ours(f"td.tucker {tucker_rank}", lambda: td.tucker(x, rank=tucker_rank)),
        _ours(f"td.tucker2 {rank}", lambda: td.tucker2(x, rank=rank)),
    ]
    exact = _ours("td.hosvd, exact", lambda: td.hosvd(x, rank=tucker_rank, svd=svd_gram))
    rows = [run(job, x, runs) for job in ours] + [run(exact, x, 1)]
    others = peers_of_tucker(x, tucker_rank) if peers else ()
    yield rows + [run(job, x, 1) for job in others], rows[-1].error

    train = _ours(f"td.tensor_train {rank}", lambda: td.tensor_train(x, rank=rank))
    exact = _ours("td.tensor_train, exact", lambda: td.tensor_train(x, rank=rank, svd=svd_gram))
    rows = [run(train, x, runs), run(exact, x, 1)]
    others = peers_of_train(x, rank) if peers else ()
    yield rows + [run(job, x, 1) for job in others], rows[-1].error

    independent = _ours(f"td.svd {rank}", lambda: td.svd(x, rank=rank))
    rows = [run(independent, x, runs)]
    if not peers:
        yield rows, float("nan")
        return
    rows.append(run(full_svds(x, rank), x, 1))
    yield rows, rows[-1].error


def components_block(x: np.ndarray, rank: int, runs: int, peers: bool) -> list[Row]:
    """CP, and TensorLy's ALS until it is as good."""
    row = run(_ours(f"td.cp {rank}", lambda: td.cp(x, rank=rank)), x, runs)
    return [row] + ([run(parafac_to(x, rank, row.error), x, 1)] if peers else [])


def table(printer: Printer, data: str, x: np.ndarray, runs: int, peers: bool) -> None:
    """Measure and print one stack."""
    shape = " × ".join(map(str, x.shape))
    say(f"{shape}, {data}")
    product, read = limits.skinny(x, RANK + 16), limits.memory_read(x)
    lines = [_line(Row(f"one skinny product, k = {RANK + 16}", product, np.nan), product, read)]
    lines.append(_line(Row("one read of the stack", read, np.nan), product, read))
    if data == "components":
        measured = iter([(components_block(x, RANK, runs, peers), float("nan"))])
    else:
        measured = blocks(x, RANK, runs, peers)
    for rows, exact in measured:
        lines += [_line(row, product, read, rows[0].seconds, exact) for row in rows]
    printer.table(f"({shape}) float32, rank {RANK}, {data}", _COLUMNS, lines)


def _line(
    row: Row, product: float, read: float, ours: float = np.nan, exact: float = np.nan
) -> list[str]:
    return [
        row.what,
        f"{row.seconds:.3g}",
        _number(row.error, ".5f"),
        _number(row.error / exact, ".4f"),
        f"{row.seconds / product:.1f}",
        f"{row.seconds / read:.1f}",
        _number(row.seconds / ours, ".3g"),
        row.note,
    ]


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else f"{value:{form}}"


# ----------------------------------------------------------------------------------------- steps


def steps(printer: Printer, x: np.ndarray, runs: int) -> None:
    """Where the time of `td.tucker` goes: its passes and small matrices measured alone.

    The steps are the same work done by plain numpy on the same stack, with ``k = rank + 16``
    columns; what is left of the total is the last row.
    """
    say(f"steps of {x.shape}")
    k, matrices = RANK + 16, x.reshape(-1, *x.shape[-2:])
    out, in_ = x.shape[-2:]
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((out, len(matrices) * k), dtype=np.float32)
    left = [rng.standard_normal((out, RANK), dtype=np.float32) for _ in matrices]
    right = rng.standard_normal((RANK, in_), dtype=np.float32)
    product = limits.skinny(x, k)
    rows = {
        "sketch Σ Ωᵀ X_l": limits.skinny_left(x, k),
        "A_l = X_l Q2": product,
        "B_l = Q1ᵀ X_l": limits.skinny_left(x, k),
        "norm and NaN check: one read": limits.memory_read(x),
        "orthonormal (in, k)": limits.seconds(lambda: np.linalg.qr(wide[:in_, :k])),
        "leading vectors of all A_l": limits.seconds(lambda: _leading(wide, k)),
        "residual ‖X_l − L_l R‖": limits.seconds(lambda: _residual(matrices, left, right)),
    }
    total = limits.seconds(lambda: td.tucker(x, rank=(*x.shape[:-2], RANK, RANK)), runs)
    rows["everything else"] = total - sum(rows.values())
    rows["td.tucker"] = total
    printer.table(
        f"Steps of td.tucker, ({' × '.join(map(str, x.shape))}), rank {RANK}",
        ("step", "s", "× one skinny product", "share"),
        [[w, f"{s:.4f}", f"{s / product:.2f}", f"{s / total:.0%}"] for w, s in rows.items()],
    )


def _leading(wide: np.ndarray, k: int) -> np.ndarray:
    """Leading left singular vectors, from a sketch with two power steps."""
    q = wide @ np.random.default_rng(0).standard_normal((wide.shape[1], k), dtype=np.float32)
    for _ in range(2):
        q = wide @ (wide.T @ np.linalg.qr(q)[0])
    q = np.linalg.qr(q)[0]
    return q @ np.linalg.svd(q.T @ wide, full_matrices=False)[0]


def _residual(matrices: np.ndarray, left: list[np.ndarray], right: np.ndarray) -> float:
    """Squared norms of ``X_l − L_l R``, by tiles of rows that stay in the cache."""
    rows = max(1, (1 << 18) // right.shape[1])
    total = 0.0
    for matrix, factor in zip(matrices, left, strict=True):
        for start in range(0, len(matrix), rows):
            tile = factor[start : start + rows] @ right
            tile -= matrix[start : start + rows]
            flat = tile.reshape(-1)
            total += float(flat @ flat)
    return total


def _size(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x"))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Stacks in memory, against peers and limits.")
    parser.add_argument("--stacks", nargs="+", type=_size, default=STACKS, metavar="16x2048x2048")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--peers", choices=["all", "none"], default="all")
    parser.add_argument("--runs", type=int, default=5)
    printing(parser)
    given = parser.parse_args()
    printer = Printer(given.markdown)
    for shape in given.stacks:
        for data in given.data:
            x = DATA[data](shape, RANK)
            table(printer, data, x, given.runs, given.peers == "all")
            if data == "shared":
                steps(printer, x, given.runs)


if __name__ == "__main__":
    main()
