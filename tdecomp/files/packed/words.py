"""Matrices of words, groups and plain numbers, as integer layouts store them."""

from __future__ import annotations

import numpy as np

from ...errors import FileError
from ..safetensors import Entry, load, part
from .bits import unpack
from .layout import Refused

__all__ = [
    "PLAIN_FLOATS",
    "WORDS",
    "check_floats",
    "check_words",
    "groups_of",
    "numbers",
    "numbers_along",
]

WORDS = frozenset({"I32", "U32"})
PLAIN_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def numbers(entry: Entry, index: tuple[slice | int, ...] = ()) -> np.ndarray:
    """A tensor or a part of it as float32, integers too."""
    return load(entry, index).astype(np.float32, copy=False)


def check_words(*entries: Entry) -> None:
    """Refuse anything but matrices of 32-bit words."""
    for entry in entries:
        if len(entry.shape) != 2 or entry.dtype not in WORDS:
            raise Refused(f"but its {entry.name!r} is {entry.dtype} {entry.shape}, expected words")


def check_floats(entry: Entry, modes: int) -> None:
    """Refuse anything but floats with that many modes."""
    if len(entry.shape) != modes or entry.dtype not in PLAIN_FLOATS:
        raise Refused(f"but its {entry.name!r} is {entry.dtype} {entry.shape}, expected floats")


def groups_of(order: Entry | None, inputs: int, groups: int) -> np.ndarray:
    """Group of every input."""
    if order is None:
        return np.arange(inputs) // (inputs // groups)
    where = load(order).astype(np.int64)
    if where.size and not 0 <= where.min() <= where.max() < groups:
        raise FileError(
            f"{order.file}: {order.name!r} has entries from {where.min()} to {where.max()}, "
            f"there are {groups} groups"
        )
    return where


def numbers_along(words: Entry, bits: int, start: int, stop: int, axis: int) -> np.ndarray:
    """Numbers ``start`` to ``stop`` along the packed axis of a matrix of words.

    Every 32 numbers begin a word, whatever their bits.
    """
    low = start // 32
    some = slice(low * bits, -(-stop // 32) * bits)
    stored = part(words, (slice(None),) * axis + (some,)).codes()
    lines = np.moveaxis(stored, axis, -1)
    count = min(stop - 32 * low, lines.shape[-1] * 32 // bits)
    return np.moveaxis(unpack(lines, bits, count)[..., start - 32 * low :], -1, axis)
