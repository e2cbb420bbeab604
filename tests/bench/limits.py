"""What the machine can do: reads of memory and files, and one skinny product, in seconds.

Every function returns the median of five runs after one warm-up. They are the yardsticks of the
tables, measured in the same run as what is compared with them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["file_read", "memory_read", "seconds", "skinny", "skinny_left", "widen_and_subtract"]

_BUFFER = 1 << 22  # bytes of a file read at a time
_TILES = (1 << 15, 1 << 18, 1 << 24)  # numbers
_HIGH = 1 if np.little_endian else 0  # which half of a float32 is its bfloat16


def seconds(work: Callable[[], object], runs: int = 5) -> float:
    """Median wall time of `runs` calls, after a warm-up where more than one is asked for."""
    if runs > 1:
        work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory_read(x: np.ndarray) -> float:
    """One read of an array: the fastest of a sum and of dot products of its matrices."""
    matrices = x.reshape(-1, x.shape[-2] * x.shape[-1])
    return min(
        seconds(x.sum),
        seconds(lambda: [m @ m for m in matrices]),
    )


def skinny(x: np.ndarray, k: int) -> float:
    """``X_l Ω`` for every matrix of a stack, Ω ``(in, k)``: the fastest way to ask numpy for it."""
    matrices = x.reshape(-1, *x.shape[-2:])
    rows = x.reshape(-1, x.shape[-1])
    omega = _normal(x.shape[-1], k)
    turned = np.asfortranarray(omega)
    return min(
        seconds(lambda: matrices @ omega),
        seconds(lambda: [m @ omega for m in matrices]),
        seconds(lambda: [m @ turned for m in matrices]),
        seconds(lambda: rows @ omega),
    )


def skinny_left(x: np.ndarray, k: int) -> float:
    """``Ωᵀ X_l`` for every matrix of a stack, Ω ``(out, k)``: the fastest way, as `skinny`."""
    matrices = x.reshape(-1, *x.shape[-2:])
    omega = _normal(x.shape[-2], k)
    turned = np.ascontiguousarray(omega.T)
    return min(
        seconds(lambda: [turned @ m for m in matrices]),
        seconds(lambda: [omega.T @ m for m in matrices]),
    )


def file_read(*paths: Path) -> float:
    """Read files whole, once from disk at most: the warm-up leaves them in the page cache."""
    buffer = memoryview(bytearray(_BUFFER))

    def read() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return seconds(read)


def widen_and_subtract(shape: Sequence[int]) -> float:
    """``float32(tuned) - float32(base)`` of two bfloat16 arrays in memory, tile by tile.

    The 16 bits are written into the upper halves of zeroed float32 tiles; of a few sizes of tiles
    the fastest counts.
    """
    rng = np.random.default_rng(0)
    size = math.prod(shape)
    base, tuned = rng.integers(0x3000, 0x4000, (2, size), dtype=np.uint16)
    delta = np.empty(size, np.float32)

    def by_tiles(length: int) -> None:
        tiles = np.zeros((2, length), np.float32)
        halves = tiles.view(np.uint16)[:, _HIGH::2]
        for start in range(0, size, length):
            part = slice(start, start + length)
            n = len(delta[part])
            halves[0, :n], halves[1, :n] = base[part], tuned[part]
            np.subtract(tiles[1, :n], tiles[0, :n], out=delta[part])

    return min(seconds(lambda n=n: by_tiles(min(n, size))) for n in _TILES)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
