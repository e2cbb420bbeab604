"""``python -m tests.bench.whole_model PAIR``: ``tdecomp decompose`` of a whole pair on disk.

PAIR is a folder that ``python -m tests.bench.synthetic 1b PAIR`` wrote. Three tables: the command
as users run it, every pass over the data against its parts measured alone, and full SVDs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

import tdecomp as td
from tdecomp import linalg
from tdecomp.files.checkpoint import Pair
from tdecomp.files.delta import Delta, open_delta
from tdecomp.files.safetensors import Entry
from tdecomp.stack import Site
from tests.bench import limits
from tests.bench.children import Child, run_child
from tests.bench.tables import Printer, printing, say

RANK = 64
MEMORY = "2GB"
METHODS: dict[str, Callable[..., td.Fit]] = {"tucker2": td.tucker2, "svd": td.svd}
Shape = tuple[int, int]


# ------------------------------------------------------------------------------------- the command


def command(pair: Path, method: str) -> tuple[Child, dict]:
    """``tdecomp decompose`` in a process of its own, and its report."""
    with tempfile.TemporaryDirectory(prefix="tdecomp-bench-") as folder:
        child = run_child(
            [
                *(sys.executable, "-m", "tdecomp", "decompose"),
                *(str(pair / "base"), str(pair / "tuned")),
                *("-o", str(Path(folder) / "out"), "--method", method, "--rank", str(RANK)),
                *("--max-memory", MEMORY, "--json"),
            ]
        )
    return child, json.loads(child.output)


def commands_table(printer: Printer, pair: Path, methods: list[str], svds: float) -> None:
    """Wall time, memory and sizes of every method."""
    files = [pair / side / "model.safetensors" for side in ("base", "tuned")]
    say("reading both files")
    read = limits.file_read(*files)
    rows = [["read both files", f"{read:.2f}", *[""] * 2, "1.0", *[""] * 3]]
    for method in methods:
        say(f"tdecomp decompose --method {method} --rank {RANK} --max-memory {MEMORY}")
        child, report = command(pair, method)
        rows.append(
            [
                f"{method}, rank {RANK}",
                f"{child.seconds:.2f}",
                f"{child.rss / 2**30:.2f}",
                f"{child.anonymous / 2**30:.2f}",
                f"{child.seconds / read:.1f}",
                f"{svds / child.seconds:.0f}" if svds else "",
                f"{report['n_params'] / 1e6:.1f} of {report['delta_params'] / 1e6:.0f}",
                f"{report['error']:.4f}",
            ]
        )
    printer.table(
        f"tdecomp decompose --max-memory {MEMORY}, {_size(files)}",
        ("what", "wall s", "peak RSS GiB", "of it without files", "× reading both files",
         "× faster than full SVDs", "numbers, millions", "error"),
        rows,
    )  # fmt: skip


def _size(files: list[Path]) -> str:
    return " and ".join(f"{file.stat().st_size / 1e9:.2f} GB" for file in files)


# -------------------------------------------------------------------------------------- its passes


@dataclass
class Watched:
    """Reads of a stack's slices as they happen, to tell passes apart.

    Attributes
    ----------
    read
        The stack's own.
    times
        When each read began, by the number of times its site had been read before.
    """

    read: Callable[[Site], np.ndarray]
    times: dict[int, list[float]] = field(default_factory=dict)
    _seen: Counter = field(default_factory=Counter)

    def __call__(self, site: Site) -> np.ndarray:
        before = self._seen[site]
        self._seen[site] += 1
        self.times.setdefault(before, []).append(time.perf_counter())
        return self.read(site)

    def passes(self, end: float) -> list[float]:
        """Seconds from the first read of every pass to the first of the next, or the end."""
        starts = sorted(min(times) for times in self.times.values()) + [end]
        return [later - sooner for sooner, later in zip(starts, starts[1:], strict=False)]


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """How many steps of Krylov spaces are made meanwhile: two skinny products each."""
    count, original = [0], linalg.krylov_steps

    def counting(*given):
        for found in original(*given):
            count[0] += 1
            yield found

    with patch.object(linalg, "krylov_steps", counting):
        yield count


@dataclass(frozen=True)
class Parts:
    """One read of one slice, piece by piece, in seconds."""

    file: float
    widen: float
    product: float


def parts_of(both: Pair, site: Site) -> Parts:
    """What reading a site from the page cache, subtracting and one skinny product cost alone."""
    say(f"  parts of {site.shape}")
    out, in_ = site.shape
    x = np.random.default_rng(0).standard_normal((1, out, in_), dtype=np.float32)
    file = _read_entry(both.base.entry(both.base_name(site.tensor)))
    for name in both.tuned_names(site.tensor):
        file += _read_entry(both.tuned.entry(name))
    return Parts(file, limits.widen_and_subtract(site.shape), limits.skinny(x, RANK + 10))


def _read_entry(entry: Entry) -> float:
    """Read the bytes of a tensor into a buffer."""
    buffer = bytearray(entry.nbytes)

    def read() -> None:
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            file.readinto(buffer)

    return limits.seconds(read)


def passes_table(printer: Printer, delta: Delta, method: str, parts: dict[Shape, Parts]) -> None:
    """Every pass of every group against the sum of its parts; passes of a group side by side."""
    rows, all_spent, all_alone = [], 0.0, 0.0
    METHODS[method](np.eye(64, dtype=np.float32)[None], rank=RANK // 4)  # what is loaded once
    for stack in delta.stacks:
        say(f"  {method}: {stack.group.name}")
        watched = Watched(stack.read)
        with counted_steps() as steps:
            METHODS[method](replace(stack, read=watched), rank=RANK)
            spent = watched.passes(time.perf_counter())
        out, in_ = stack.shape[-2:]
        one = parts[out, in_]
        products = [1.0] * len(spent)
        if method == "svd":  # all of a matrix's products in one read, and one for the residual
            products = [2 * steps[0] / stack.n_sites + 1]
        alone = [stack.n_sites * (one.file + one.widen + n * one.product) for n in products]
        rows.append(
            [
                stack.group.name,
                str(stack.n_sites),
                str(len(spent)),
                " ".join(f"{seconds:.2f}" for seconds in spent),
                f"{stack.n_sites * one.file:.2f}",
                f"{stack.n_sites * one.widen:.2f}",
                f"{stack.n_sites * one.product:.2f}",
                " ".join(f"{n:.3g}" for n in products),
                " ".join(f"{a / b:.2f}" for a, b in zip(spent, alone, strict=True)),
            ]
        )
        all_spent, all_alone = all_spent + sum(spent), all_alone + sum(alone)
    total = f"{all_spent:.2f} of {all_alone:.2f}"
    rows.append(["all", *[""] * 2, total, *[""] * 4, f"{all_spent / all_alone:.2f}"])
    printer.table(
        f"{method}, rank {RANK}: seconds of every pass, and of its parts measured alone",
        ("group", "slices", "passes", "s of each", "page cache", "widen, subtract",
         "one product", "products of each", "pass / parts"),
        rows,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- full SVDs


def full_svds(printer: Printer, delta: Delta) -> float:
    """One full SVD of each shape, and what all of them would take: an extrapolation."""
    sites = [site for group in delta.groups for site in group.sites]
    counts = Counter(site.shape for site in sites)
    first = {site.shape: site for site in reversed(sites)}
    rows, total = [], 0.0
    for shape, count in counts.items():
        say(f"full SVD of one matrix {shape}")
        matrix = first[shape].view(delta.pair.delta(first[shape].tensor, first[shape].slices))
        one = limits.seconds(
            lambda matrix=matrix: np.linalg.svd(matrix, full_matrices=False), runs=1
        )
        rows.append(["×".join(map(str, shape)), str(count), f"{one:.2f}", f"{one * count:.0f}"])
        total += one * count
    rows.append(["all, extrapolated", str(len(sites)), "", f"{total:.0f}"])
    printer.table(
        "Full SVD per matrix (numpy), one matrix of each shape measured, the rest extrapolated",
        ("shape", "matrices", "s of one", "s of all"),
        rows,
    )
    return total


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="tdecomp decompose of a whole pair on disk.")
    parser.add_argument("pair", type=Path, help="folder with base and tuned")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--no-svds", action="store_true", help="leave the full SVDs out")
    parser.add_argument("--no-passes", action="store_true", help="only the command")
    printing(parser)
    given = parser.parse_args()
    printer = Printer(given.markdown)
    delta = open_delta(given.pair / "base", given.pair / "tuned")
    svds = 0.0 if given.no_svds else full_svds(printer, delta)
    commands_table(printer, given.pair, given.methods, svds)
    if given.no_passes:
        return
    sites = {site.shape: site for group in delta.groups for site in group.sites}
    parts = {shape: parts_of(delta.pair, site) for shape, site in sites.items()}
    for method in given.methods:
        passes_table(printer, delta, method, parts)


if __name__ == "__main__":
    main()
