"""A local file that is read as one on a server: in large pieces, several on their way at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .ranged import RangeFile
from .url import Location

__all__ = ["UnmappedFile"]


class _Reads(Protocol):
    def read_into(self, start: int, out: np.ndarray) -> None: ...


class _Opens(Protocol):
    @property
    def path(self) -> Location: ...
    @property
    def size(self) -> int: ...
    @property
    def mark(self) -> str: ...
    def opened(self) -> _Reads: ...


class UnmappedFile(RangeFile):
    """A file on a mount that takes long to answer, such as NFS.

    Parameters
    ----------
    file
        The file as it is opened on a disk of this machine.
    """

    def __init__(self, file: _Opens) -> None:
        self._file, self.path, self.size = file, file.path, file.size

    @property
    def mark(self) -> str:
        """That of the file on the disk."""
        return self._file.mark

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of a range, by plain reads."""
        out = np.empty(stop - start, np.uint8)
        self._file.opened().read_into(start, out)
        return out.tobytes()

    def opened(self) -> UnmappedFile:
        """The file itself; a FileError if it has changed."""
        self.check()
        return self

    def check(self) -> None:
        """Raise a FileError if the file has changed since it was opened."""
        self._file.opened()
