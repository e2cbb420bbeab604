"""A bucket where parts of a job meet, through fsspec; see `tdecomp.tasks.meeting`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from tdecomp.files.storage import Url, patiently

__all__ = ["Bucket"]


class Bucket:
    """A folder of an object store: a write is whole or not there, nothing has to be renamed."""

    pause = 0.5

    def __init__(self, url: Url) -> None:
        self._url = url

    def __str__(self) -> str:
        return str(self._url)

    def open(self, kinds: Collection[str]) -> None:
        """See whether it can be there; object stores make folders as files come."""
        del kinds
        self._url.check_writable()

    def names(self, kind: str) -> set[str]:
        """Names of files."""

        def ask(url: Url) -> set[str]:
            try:
                found = url.system.ls(url.key, detail=False)
            except FileNotFoundError:
                return set()
            own = url.key.rstrip("/")
            return {name.rpartition("/")[2] for name in found if name.rstrip("/") != own} - {""}

        return self._asked(kind, "", ask)

    def read(self, kind: str, name: str) -> bytes | None:
        """What a file holds."""

        def ask(url: Url) -> bytes | None:
            try:
                return bytes(url.system.cat_file(url.key))
            except FileNotFoundError:
                return None

        return self._asked(kind, name, ask)

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Put it."""
        self._asked(kind, name, lambda url: url.system.pipe_file(url.key, data))

    def claim(self, kind: str, name: str, data: bytes) -> bool:
        """Put it if there is none, where the server knows such a condition."""

        def ask(url: Url) -> bool:
            try:
                url.system.pipe_file(url.key, data, mode="create")
            except FileExistsError:
                return False
            return True

        return self._asked(kind, name, ask)

    def remove(self, kind: str, name: str) -> None:
        """Delete it."""

        def ask(url: Url) -> None:
            with suppress(FileNotFoundError, KeyError):  # that of a file system in memory
                url.system.rm_file(url.key)

        self._asked(kind, name, ask)

    def clear(self, kind: str) -> None:
        """Delete all."""
        for name in self.names(kind):
            self.remove(kind, name)

    def _asked(self, kind: str, name: str, ask: Callable[[Url], Any]) -> Any:
        url = self._url
        for part in (kind, name):
            url = url / part if part else url
        return patiently(lambda: ask(url), str(url), url.scheme, known=True)
