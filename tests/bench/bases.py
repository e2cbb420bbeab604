"""A hundred LoRAs in common bases: size, errors and time, beside the best LoRAs of each alone.

``python -m tests.bench.bases`` writes collections with a planted share of common directions, puts
each in a quarter of its numbers by `tdecomp basis --budget`, and resizes every member on its own to
as many. Times are seconds of the processor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tdecomp import jobs
from tdecomp.collections import AdapterPair
from tdecomp.files.loras import SCHEMES, AdapterFile, write_adapter
from tdecomp.files.loras.adapter_file import HeldPair
from tests.bench.tables import Printer, printing, say

__all__ = ["main", "members"]

MEMBERS, SITES, WIDTH, RANK, COMMON = 100, 4, 1024, 4, 24
PART = 0.25
SHARED = (1.0, 0.9, 0.5, 0.0)
"""Shares of every member's energy that lie in the bases of all."""


def members(
    shared: float, *, count: int = MEMBERS, sites: int = SITES, width: int = WIDTH
) -> Iterator[AdapterFile]:
    """LoRAs of one rank, each the sum of a part in common bases and one of its own."""
    bases = [
        [np.linalg.qr(_normal(width, COMMON, site, side))[0] for side in (0, 1)]
        for site in range(sites)
    ]
    own = np.sqrt((1 - shared) / width), np.sqrt(shared / COMMON)
    for k in range(count):
        stored: dict[str, HeldPair] = {}
        for site, sides in enumerate(bases):
            b, a = (
                own[0] * _normal(width, RANK, k, site, 2 + side)
                + own[1] * basis @ _normal(COMMON, RANK, k, site, 4 + side)
                for side, basis in enumerate(sides)
            )
            pair = AdapterPair(b=b.astype(np.float32), a=a.T.astype(np.float32))
            stored[f"layers.{site}.q_proj"] = HeldPair(pair)
        yield AdapterFile(path=Path(f"{k}"), name=f"m{k}", scheme=None, stored=stored)


def _normal(rows: int, columns: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).standard_normal((rows, columns))


def row(shared: float, folder: Path, **sizes: int) -> list[str]:
    """One collection: what sharing costs and loses."""
    paths: list[Path] = []
    for member in members(shared, **sizes):
        paths.append(folder / member.name)
        paths[-1].mkdir()
        write_adapter(paths[-1], member, scheme=SCHEMES[0])
    separate = sum(file.stat().st_size for path in paths for file in path.iterdir())
    numbers = sum(sum(pair.shape) * RANK for pair in member.stored.values()) * len(paths)
    start = time.process_time()
    made = jobs.basis(paths, folder / "basis", budget=int(PART * numbers))
    seconds = time.process_time() - start
    size = sum(file.stat().st_size for file in (folder / "basis").rglob("*") if file.is_file())
    losses = [one.lost for one in made.members]
    return [
        f"{shared:.0%}",
        f"{separate / 1e6:.1f}",
        f"{size / 1e6:.1f}",
        f"{made.error:.3f}",
        f"{min(losses):.3f} to {max(losses):.3f}",
        f"{made.resized_error:.3f}",
        "yes" if made.sharing_wins else "no",
        f"{seconds:.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="A hundred LoRAs in common bases.")
    printing(parser)
    printer = Printer(parser.parse_args().markdown)
    rows = []
    for shared in SHARED:
        say(f"{MEMBERS} members, {shared:.0%} of their energy in common bases")
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(shared, Path(folder)))
    printer.table(
        f"`tdecomp basis`, {MEMBERS} LoRAs of rank {RANK} at {SITES} sites of {WIDTH} × {WIDTH}",
        (
            *("in common", "separate MB", "basis MB", "error", "of the members"),
            *("resized alone", "sharing wins", "CPU s"),
        ),
        rows,
    )


if __name__ == "__main__":
    main()
