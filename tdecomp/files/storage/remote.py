"""A file on a server, read by ranges."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...errors import FileError
from .protocols import patiently, ranges_of
from .ranged import RangeFile
from .url import Url

__all__ = ["RemoteFile"]

_TRUST = 5.0  # seconds in which the server is not asked again whether a file has changed
_MARKS = (
    *("ETag", "etag", "generation", "md5Hash", "blob_id", "sha256", "xet_hash", "version_id"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)
"""By which servers tell one content from another; a file with none is known by its size."""


class RemoteFile(RangeFile):
    """A file on a server, always with the content that was there first.

    It is as small as its address, size and mark, and can be sent to another process.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileError
        If there is none, or the server cannot be asked.
    """

    def __init__(self, path: Url) -> None:
        self.path = self._url = path
        self._mark = _mark(path)
        self.size = self._mark[0]
        self._asked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "_url": self._url,
            "size": self.size,
            "_mark": self._mark,
            "_asked": float("-inf"),
        }

    @property
    def mark(self) -> str:
        """Size, and what the server tells of the content."""
        return ", ".join(map(str, self._mark))

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of a range, by one request; asked again where a connection fails."""

        def ask() -> bytes:
            system = self._url.system
            some = ranges_of(system)
            found: bytes = system.cat_file(self._url.key, start=start, end=stop, **some)
            if len(found) < stop - start and self._mark == _mark(self._url):
                raise ConnectionError("cut short")
            return found

        found = patiently(ask, str(self._url), self._url.scheme, known=True)
        if len(found) == self.size > stop - start:
            raise FileError(
                f"the server of {self._url} sends whole files only, no ranges: download it"
            )
        if len(found) != stop - start:
            raise _changed(self._url)
        return found

    def opened(self) -> RemoteFile:
        """The file itself; whether it has changed is asked every few seconds."""
        if time.monotonic() - self._asked > _TRUST:
            self.check()
        return self

    def check(self) -> None:
        """Raise a FileError if the file has changed since it was opened."""
        self._asked = time.monotonic()
        if _mark(self._url) != self._mark:
            raise _changed(self._url)


def _mark(path: Url) -> tuple[Any, ...]:
    """Size, and what else tells this content from another."""
    facts = path.facts()
    if facts is None:
        raise path.missing()
    size = facts.get("size")
    if not isinstance(size, int):
        raise FileError(f"the server of {path} does not tell its size: download it")
    return size, *(str(facts[name]) for name in _MARKS if _is_told(facts, name))


def _is_told(facts: Mapping[str, Any], name: str) -> bool:
    return facts.get(name) is not None


def _changed(path: Url) -> FileError:
    return FileError(f"{path} has changed while it was in use: run again when nothing writes to it")
