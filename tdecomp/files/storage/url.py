"""A place on a server, with as much of `pathlib.Path` as reading a model takes."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ...errors import FileError
from ...tasks import sendable
from .protocols import AccessError, filesystem, patiently, whole_answer

__all__ = ["Location", "Url", "from_root", "local", "place", "remembering", "shown"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(?=[^/])")  # one letter is a drive
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_WEB = ("http", "https")
_FILES = (".safetensors", ".json")


@sendable
@dataclass(frozen=True, order=True)
class Url:
    """A file or folder on a server; its text is the whole of it, so that it can be sent anywhere.

    Shown, it has neither a password nor a query, which may be a signature.

    Parameters
    ----------
    address
        As typed, ``"s3://bucket/model"``; without a ``/`` at its end.
    """

    address: str

    def __str__(self) -> str:
        if self.scheme not in _WEB:
            return self.address
        parts = urlsplit(self.address)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", "")) + (
            "?..." if parts.query else ""
        )

    __repr__ = __str__

    @property
    def scheme(self) -> str:
        """The protocol."""
        return self.address.partition("://")[0]

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the name."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder that holds it; of a bucket itself."""
        folder = self._path.rpartition("/")[0]
        return Url(f"{self.scheme}://{folder}{self._query}") if folder else self

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.scheme}://{self._path}/{name}{self._query}")

    def with_name(self, name: str) -> Url:
        """Another one in the same folder."""
        return self.parent / name

    @property
    def system(self) -> Any:
        """The file system of fsspec; a FileError if it is not installed."""
        return filesystem(self.scheme)

    @property
    def key(self) -> str:
        """What the file system calls it."""
        return str(self.system._strip_protocol(self.address))

    def facts(self) -> dict[str, Any] | None:
        """What the server says of it now; None where there is nothing."""

        def ask() -> dict[str, Any] | None:
            self.system.invalidate_cache()
            try:
                return dict(self.system.info(self.key))
            except FileNotFoundError as error:
                if (found := whole_answer(error)) is not error:
                    raise found from None
                return None

        return patiently(ask, str(self), self.scheme)

    def missing(self) -> FileError:
        """The error where there is nothing."""
        bucket = self._path.partition("/")[0]
        if self.has_bucket():
            return FileError(f"{self} does not exist")
        return FileError(f"{self} does not exist: there is no bucket {bucket!r}")

    def has_bucket(self) -> bool:
        """Whether its bucket is there, where the protocol has buckets."""
        bucket = self._path.partition("/")[0]
        return self.scheme not in _BUCKETS or Url(f"{self.scheme}://{bucket}").facts() is not None

    def check_writable(self) -> None:
        """Refuse a protocol that only reads, and a bucket that is not there."""
        if self.scheme in _WEB:
            raise FileError(
                f"{self} cannot be written to: {self.scheme}:// is for reading",
                tip="name a folder, or s3://, gs://",
            )
        if not self.has_bucket():
            raise self.missing()

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self._known() is not None or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is a file; signed addresses give no access to what is beside theirs."""
        try:
            facts = self._known()
        except AccessError:
            if self.scheme not in _WEB:
                raise
            return False
        return facts is not None and facts.get("type") != "directory" and not self._is_web_folder()

    def is_dir(self) -> bool:
        """Whether there is something below it."""
        if self.scheme in _WEB:
            return self._is_web_folder()
        facts = self._known()
        return facts is not None and facts.get("type") == "directory"

    def iterdir(self) -> Iterator[Url]:
        """What is in the folder."""
        yield from (self / name for name in sorted(self._listed()))

    def below(self) -> Iterator[tuple[PurePosixPath, Url]]:
        """Every file below the folder, with its path from there."""
        root = self.key.rstrip("/")
        names = patiently(lambda: self.system.find(root), str(self), self.scheme)
        for name in sorted(str(name) for name in names):
            part = name[len(root) :].lstrip("/")
            yield PurePosixPath(part), self / part

    def relative_to(self, root: Url) -> PurePosixPath:
        """Path from a folder above it."""
        return PurePosixPath(self._path.removeprefix(root._path).lstrip("/"))

    def glob(self, pattern: str) -> Iterator[Url]:
        """What is in the folder and has such a name."""
        return (one for one in self.iterdir() if fnmatchcase(one.name, pattern))

    def read_bytes(self) -> bytes:
        """All of a small file."""
        found: bytes = patiently(lambda: self.system.cat_file(self.key), str(self), self.scheme)
        return found

    def size(self) -> int:
        """Bytes of a file."""
        facts = self._known()
        if facts is None or not isinstance(facts.get("size"), int):
            facts = self.facts()
        if facts is None:
            raise self.missing()
        return int(facts.get("size") or 0)

    def _known(self) -> dict[str, Any] | None:
        """`facts`, remembered or out of a listing of the folder where `remembering`."""
        memory = _MEMORY.get()
        if memory is None:
            return self.facts()
        folder = self.parent
        if folder != self and memory.facts.get(folder, _NOTHING).get("type") == "directory":
            return folder._listed().get(self.name)
        if self not in memory.facts:
            memory.facts[self] = self.facts() or {}
        return memory.facts[self] or None

    def _listed(self) -> dict[str, dict[str, Any]]:
        """Facts by name of what is in the folder."""
        memory = _MEMORY.get()
        if memory is not None and self in memory.listings:
            return memory.listings[self]
        rows = patiently(lambda: self.system.ls(self.key, detail=True), str(self), self.scheme)
        names = [str(row["name"]).rstrip("/").rpartition("/")[2] for row in rows]
        found = {name: dict(row) for name, row in zip(names, rows, strict=True) if name}
        if memory is not None:
            memory.listings[self] = found
        return found

    @property
    def _path(self) -> str:
        """Host or bucket, and path."""
        rest = self.address.partition("://")[2]
        return rest.partition("?")[0] if self.scheme in _WEB else rest

    @property
    def _query(self) -> str:
        """What servers may ask for with every file, such as a token."""
        rest = self.address.removeprefix(f"{self.scheme}://{self._path}")
        return rest if rest.startswith("?") else ""

    def _is_web_folder(self) -> bool:
        """Whether it is a page that lists files: by its name, since all pages are files."""
        if self.scheme not in _WEB or self.suffix in _FILES:
            return False
        memory = _MEMORY.get()
        if memory is not None and self in memory.pages:
            return memory.pages[self]
        found = bool(patiently(lambda: self.system.isdir(self.key), str(self), self.scheme))
        if memory is not None:
            memory.pages[self] = found
            if found:
                memory.facts[self] = {"type": "directory"}
        return found


@dataclass(frozen=True)
class _Memory:
    """Answers of servers: facts, listings, and which pages list files."""

    facts: dict[Url, dict[str, Any]] = field(default_factory=dict[Url, dict[str, Any]])
    listings: dict[Url, dict[str, dict[str, Any]]] = field(
        default_factory=dict[Url, dict[str, dict[str, Any]]]
    )
    pages: dict[Url, bool] = field(default_factory=dict[Url, bool])


_NOTHING: dict[str, Any] = {}
_MEMORY: ContextVar[_Memory | None] = ContextVar("_MEMORY", default=None)


@contextmanager
def remembering() -> Generator[None]:
    """Inside, servers are not asked twice what is in a folder: one look at it, as it was."""
    token = _MEMORY.set(_Memory())
    try:
        yield
    finally:
        _MEMORY.reset(token)


Location = Path | Url
"""On a disk of this machine, or on a server."""


def from_root(path: Location) -> Location:
    """The same place for a process that runs in another folder."""
    return path if isinstance(path, Url) else path.absolute()


def place(path: str | os.PathLike[str] | Url) -> Location:
    """Where a path leads.

    `pathlib` makes ``s3:/bucket`` of ``s3://bucket``; that is understood, too.

    Examples
    --------
    >>> place("s3://bucket/model/"), place("https://me:secret@host/m.safetensors?signature=1")
    (s3://bucket/model, https://host/m.safetensors?...)
    >>> place("model").name, place(Path("s3://bucket/model")).parent
    ('model', s3://bucket)
    """
    if isinstance(path, Url):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    found = _URL.match(text)
    if found is None or not (found[2] or isinstance(path, Path)):
        return Path(path)
    if os.path.lexists(f"{found[1]}:"):
        return Path(path)
    rest = text[found.end() :]
    return Url(f"{found[1].lower()}://{rest.rstrip('/')}")


def local(path: str | os.PathLike[str] | Url, what: str) -> Path:
    """The path of what is read from a disk only.

    Raises
    ------
    FileError
        If it is on a server; `what` says what is looked for there.
    """
    where = place(path)
    if isinstance(where, Url):
        raise FileError(f"{where}: {what} are read from a disk only", tip="download it first")
    return where


def shown(path: str | os.PathLike[str] | Url) -> str:
    """A path as messages and reports have it, without secrets."""
    where = place(path)
    return str(where) if isinstance(where, Url) else str(path)
