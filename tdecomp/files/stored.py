"""Arrays in files, read piece by piece into memory that is used again.

Files are read, not mapped: one that is cut short while it is mapped ends the process (SIGBUS), and
reading from the system's cache into memory that stays in the processor's is not slower.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import EllipsisType
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import FileError
from .storage import Location, RangeFile, RemoteFile, UnmappedFile, Url

__all__ = ["Bytes", "Index", "OpenFile", "Source", "Stored", "open_source"]

Index = tuple["int | slice | EllipsisType", ...]

_MOST = 200  # files kept open at once; the least that systems allow a process is 256
_KEPT: weakref.WeakSet[OpenFile] = weakref.WeakSet()
_SPAN = 1 << 20  # bytes that are read at once although not all of them are asked for
_WHOLE = 1 << 26  # bytes that are asked of a server at once although only some are wanted
_GAP = 1 << 15  # bytes: reading over them takes as long as another call to the system


class Bytes(Protocol):
    """A file that is read by position."""

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill an array of bytes with those from ``start`` on."""
        ...

    def soon(self, start: int, stop: int) -> None:
        """Hear what is about to be read."""
        ...


class _Stamp(NamedTuple):
    """What tells a file from the one that has its place later.

    Some network drives give a file new numbers; then its times decide.
    """

    size: int
    modified: int
    changed: int
    number: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Stamp:
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def is_of(self, found: os.stat_result) -> bool:
        now = _Stamp.of(found)
        same = (now.size, now.modified) == (self.size, self.modified)
        return same and (now.number == self.number or now.changed == self.changed)


class Source:
    """A file of weights that is read by position: always the one that was opened first.

    It stays open while anything refers to it, so that a file that takes its place later is not
    read. When many are open, more are opened anew whenever they are read, and refused if another
    file is there by then. Several threads may read.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = OpenFile(path)
        self._stamp = _Stamp.of(file.stat())
        self._kept = file if len(_KEPT) < _MOST else None
        if self._kept is not None:
            _KEPT.add(self._kept)

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self._stamp.size

    @property
    def mark(self) -> str:
        """What tells its content from another, seen from any machine."""
        return f"{self._stamp.size} bytes, {self._stamp.modified} ns"

    def first(self, count: int) -> bytes:
        """Bytes from the beginning on, fewer if the file has not so many."""
        out = np.empty(min(count, self.size), np.uint8)
        self.opened().read_into(0, out)
        return out.tobytes()

    def check(self) -> None:
        """Raise a FileError if the file has changed since it was opened first."""
        self.opened()

    def opened(self) -> OpenFile:
        """The open file; a FileError if it has changed since it was opened first."""
        try:
            file = self._kept or OpenFile(self.path)
            same = self._stamp.is_of(file.stat())
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from error
        if not same:
            raise _changed(self.path)
        return file


def open_source(path: Location, *, mmap: bool = True) -> Source | RangeFile:
    """A file of weights, wherever it is.

    Parameters
    ----------
    path
        The file.
    mmap
        Whether a local file is read as one of a disk, in small pieces out of the system's memory;
        else in large ones, several at once.

    Raises
    ------
    OSError, FileError
        If it cannot be opened.
    """
    if isinstance(path, Url):
        return RemoteFile(path)
    return Source(path) if mmap else UnmappedFile(Source(path))


class OpenFile:
    """A file, open until nothing refers to it any more; made by `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._number)

    def stat(self) -> os.stat_result:
        """What the system knows of the file, wherever it is by now."""
        return os.fstat(self._number)

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill an array of bytes with those from ``start`` on; a FileError if there are fewer."""
        rest = memoryview(out.data)
        try:
            while rest and (count := self._read(rest, start)):
                rest, start = rest[count:], start + count
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from error
        if rest:
            raise _changed(self.path)

    def soon(self, start: int, stop: int) -> None:
        """Nothing: the system reads ahead."""

    def _read(self, out: memoryview, start: int) -> int:
        if sys.platform != "win32":
            return os.preadv(self._number, [out], start)
        with self._lock:  # threads share one position
            os.lseek(self._number, start, os.SEEK_SET)
            found = os.read(self._number, len(out))
        out[: len(found)] = found
        return len(found)


def _changed(path: Path) -> FileError:
    return FileError(f"{path} has changed while it was in use: run again when nothing writes to it")


class Stored:
    """An array in a file, or a part of one, opened but not read.

    Parameters
    ----------
    file
        From `Source.opened`.
    start
        Byte at which the array begins.
    dtype, shape
        As stored, C order.
    """

    def __init__(self, file: Bytes, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._file, self.dtype = file, dtype
        self._place = _Region(start, shape, _strides(shape, dtype.itemsize), True)
        self._memory = self._picked = np.empty(0, np.uint8)
        self._last: tuple[Index, np.ndarray] | None = None
        self._told = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self._place.shape

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def reach(self) -> tuple[int, int] | None:
        """The bytes from the first number to the last; None where too many between are others."""
        nbytes = self.size * self.dtype.itemsize
        low, span = self._place.extent(self.dtype.itemsize)
        return (low, low + span) if span <= max(2 * nbytes, _WHOLE) else None

    def narrowed(self, index: Index) -> Stored:
        """The part that an index selects."""
        part = Stored(self._file, 0, self.dtype, ())
        part._place = self._place.part(index)
        return part

    def __getitem__(self, index: Index) -> np.ndarray:
        """Read a part: read-only, valid until another one is read."""
        if self._last is None or self._last[0] != index:
            self._last = None
            self._tell()
            self._last = index, self._read(self._place.part(index))
        return self._last[1]

    def _tell(self) -> None:
        """Say once what is going to be read, tile by tile."""
        if not self._told:
            self._told, reach = True, self.reach()
            if reach is not None:
                self._file.soon(*reach)

    def _read(self, place: _Region) -> np.ndarray:
        nbytes = math.prod(place.shape) * self.dtype.itemsize
        low, span = (place.start, nbytes) if place.dense else place.extent(self.dtype.itemsize)
        if span <= 2 * nbytes:
            out = self._window(place, low, span)
        else:
            self._picked = _at_least(self._picked, nbytes)
            out = np.ndarray(place.shape, self.dtype, self._picked)
            self._pick(place, out)
        out.flags.writeable = False
        return out

    def _pick(self, place: _Region, out: np.ndarray) -> None:
        """Copy scattered numbers, reading over small gaps between them."""
        low, span = place.extent(self.dtype.itemsize)
        if span <= max(_SPAN, out.nbytes):
            out[...] = self._window(place, low, span)
            return
        for index, piece in place.pieces():
            self._pick(piece, out[index])

    def _window(self, place: _Region, low: int, span: int) -> np.ndarray:
        """Read the bytes that hold a place, and look at it."""
        self._memory = _at_least(self._memory, span)
        self._file.read_into(low, self._memory[:span])
        offset = place.start - low
        return np.ndarray(place.shape, self.dtype, self._memory, offset, place.strides)


class _Region(NamedTuple):
    """Where the numbers of a view lie: at ``start + i * strides[0] + j * strides[1] + ...``.

    `dense`: one after the other, in C order. Made for every tile, so nothing is computed twice.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dense: bool

    def part(self, index: Index) -> _Region:
        """The place of a part; `index` has integers, slices and an ellipsis at its end."""
        start, _, _, dense = self
        shape: list[int] = []
        strides: list[int] = []
        axis = 0
        for one in index:
            if one is ...:
                break
            n, stride = self.shape[axis], self.strides[axis]
            axis += 1
            if isinstance(one, slice):
                first, last, step = one.indices(n)
                count = len(range(first, last, step))
                dense = dense and (count == n or not shape) and step == 1
                start += stride * first if count else 0
                shape.append(count)
                strides.append(stride * step)
            else:
                dense = dense and not shape
                start += stride * range(n)[one]
        return _Region(start, (*shape, *self.shape[axis:]), (*strides, *self.strides[axis:]), dense)

    def extent(self, itemsize: int) -> tuple[int, int]:
        """First byte and number of bytes from there to the last."""
        if 0 in self.shape:
            return self.start, 0
        reach = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        low = self.start + sum(min(0, r) for r in reach)
        return low, self.start + sum(max(0, r) for r in reach) + itemsize - low

    def pieces(self) -> Iterator[tuple[Index, _Region]]:
        """Parts along the mode with the longest steps, each short enough to be read at once."""
        axis = max(
            (a for a, n in enumerate(self.shape) if n > 1), key=lambda a: abs(self.strides[a])
        )
        stride = abs(self.strides[axis])
        step = max(1, _SPAN // stride) if stride <= _GAP else 1
        for i in range(0, self.shape[axis], step):
            index = (*[slice(None)] * axis, slice(i, i + step), ...)
            yield index, self.part(index)


def _at_least(memory: np.ndarray, nbytes: int) -> np.ndarray:
    return memory if memory.nbytes >= nbytes else np.empty(nbytes, np.uint8)


def _strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * max(n, 1))
    return tuple(reversed(strides[: len(shape)]))
