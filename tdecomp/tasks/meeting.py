"""Where parts of a job meet: small files under a kind and a name, which all of them see."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tdecomp.errors import FileError

__all__ = ["Folder", "Meeting"]

_UNFINISHED = "."  # how the name of a file begins that is being written


class Meeting(Protocol):
    """A place for files that are written once, whole or not at all; errors are FileErrors."""

    @property
    def pause(self) -> float:
        """Seconds between two looks."""
        ...

    def open(self, kinds: Collection[str]) -> None:
        """Make it ready for files of some kinds."""
        ...

    def names(self, kind: str) -> set[str]:
        """What there is of a kind."""
        ...

    def read(self, kind: str, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        ...

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Put a file there, in the place of an older one."""
        ...

    def claim(self, kind: str, name: str, data: bytes) -> bool:
        """Put a file there if there is none; whether it was put.

        Where the place cannot tell, two may be told that theirs was.
        """
        ...

    def remove(self, kind: str, name: str) -> None:
        """Take a file away, if it is there."""
        ...

    def clear(self, kind: str) -> None:
        """Take all of a kind away, and what was half written."""
        ...


class Folder:
    """A folder of a disk, here or of a network; a kind is a folder in it, ``""`` itself."""

    pause = 0.05

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def open(self, kinds: Collection[str]) -> None:
        """Make folders."""
        try:
            for kind in kinds:
                (self._path / kind).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error) from error

    def names(self, kind: str) -> set[str]:
        """Names of files."""
        try:
            found = [file.name for file in (self._path / kind).iterdir()]
        except OSError as error:
            raise FileError(f"cannot read {self._path}: {error.strerror}") from error
        return {name for name in found if not name.startswith(_UNFINISHED)}

    def read(self, kind: str, name: str) -> bytes | None:
        """What a file holds."""
        try:
            return (self._path / kind / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileError(f"cannot read {self._path}: {error.strerror}") from error

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Write under another name, then rename."""
        folder = self._path / kind
        new = folder / f"{_UNFINISHED}{name}.{secrets.token_hex(4)}"
        try:
            new.write_bytes(data)
            new.replace(folder / name)
        except OSError as error:
            raise self._refused(error) from error

    def claim(self, kind: str, name: str, data: bytes) -> bool:
        """Create a file, which only one can."""
        try:
            number = os.open(self._path / kind / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._refused(error) from error
        with os.fdopen(number, "wb") as file:
            file.write(data)
        return True

    def remove(self, kind: str, name: str) -> None:
        """Delete a file."""
        with suppress(OSError):
            (self._path / kind / name).unlink()

    def clear(self, kind: str) -> None:
        """Delete all files."""
        for file in (self._path / kind).iterdir():
            self.remove(kind, file.name)

    def _refused(self, error: OSError) -> FileError:
        return FileError(f"cannot write {self._path}: {error.strerror}")
