"""``python -m tests.worker_kills 40``: kill workers of a Dask cluster at random moments.

A cluster of two processes on this machine decomposes a small pair over and over while one of its
workers is killed every few seconds, also as it starts. Every decomposition has to be that of one
process, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

import tdecomp as td
from tdecomp.files.delta import open_delta
from tdecomp.tasks.dask_cluster import dask_executor
from tests.tasks.test_workers import write_models

_EVERY = 3.0  # seconds between two kills, in the mean


class Killer:
    """Kills workers from a thread of its own, so many times."""

    def __init__(self, kills: int, seed: int) -> None:
        self.kills, self._left = 0, kills
        self._rng, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether all kills were made."""
        return self._left == 0

    def stop(self) -> None:
        """Kill no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._left and not self._over.wait(self._rng.expovariate(1 / _EVERY)):
            with suppress(ProcessLookupError, IndexError):
                os.kill(self._rng.choice(children(os.getpid())), signal.SIGKILL)
                self.kills, self._left = self.kills + 1, self._left - 1


def children(parent: int) -> list[int]:
    """The workers: processes below this one that were spawned."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes()
            after = (folder / "stat").read_text().rpartition(")")[2].split()
            if b"spawn_main" in words and int(after[1]) == parent and after[0] != "Z":
                found.append(int(folder.name))
    return sorted(found)


def kill_workers(folder: Path, kills: int, seed: int) -> int:
    """Decompose until so many kills were made; how often that was."""
    models, count = write_models(folder), 0
    one = td.decompose(open_delta(*models).stacks, td.tucker2, rank=4)
    with dask_executor("local") as executor:
        killer = Killer(kills, seed)
        try:
            while not killer.is_done:
                stacks = open_delta(*models).stacks
                many = td.decompose(stacks, td.tucker2, rank=4, executor=executor)
                for name, array in one[0].tensor.arrays.items():
                    np.testing.assert_array_equal(array, many[0].tensor.arrays[name])
                count += 1
        finally:
            killer.stop()
    return count


def main() -> None:
    """Kill as often as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        count = kill_workers(Path(folder), given.kills, given.seed)
    seconds = time.perf_counter() - start
    print(f"{given.kills} workers killed in {seconds:.0f} s: {count} decompositions, all the same")


if __name__ == "__main__":
    main()
