"""A file that is read in ranges, ahead of its reader."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .ahead import here
from .url import Location

__all__ = ["RangeFile"]

_HEAD = 1 << 16  # bytes: most headers of one file of a sharded model


class RangeFile(ABC):
    """A file of weights by position, as `stored.Source` and `stored.OpenFile` in one.

    Attributes
    ----------
    path, size
        Where it is, and bytes when it was opened.
    """

    path: Location
    size: int

    @property
    @abstractmethod
    def mark(self) -> str:
        """What tells its content from another, seen from any machine."""

    @abstractmethod
    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of a range, by one request; called from several threads."""

    @abstractmethod
    def opened(self) -> RangeFile:
        """The file itself; a FileError if it is known to have changed."""

    @abstractmethod
    def check(self) -> None:
        """Raise a FileError if the file has changed since it was opened."""

    def first(self, count: int) -> bytes:
        """Bytes from the beginning on, fewer if the file has not so many."""
        here().want(self, 0, min(max(count, _HEAD), self.size))
        out = np.empty(min(count, self.size), np.uint8)
        self.read_into(0, out)
        return out.tobytes()

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill an array of bytes with those from ``start`` on."""
        here().read_into(self, start, out)

    def soon(self, start: int, stop: int) -> None:
        """Fetch a range that is about to be read."""
        here().want(self, start, min(stop, self.size))
