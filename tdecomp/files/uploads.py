"""Outputs on a server: made on a disk, sent under a temporary name, then copied to their place.

Servers cannot rename a folder. Before any work a temporary folder beside the place shows that it
can be written to; everything is sent there first, so that only copies within the server are left,
seconds in which an interruption may leave some files of each. Until then the old output is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.ours import MARKER, mark
from tdecomp.files.plain import is_object
from tdecomp.files.storage import Url, patiently, place

__all__ = ["uploaded_file", "uploaded_folder"]


@contextmanager
def uploaded_folder(
    target: Url, *, overwrite: bool, inputs: Iterable[str | os.PathLike[str] | Url]
) -> Generator[Path]:
    """Give a folder on this machine; its files are at ``target`` when the block succeeds.

    Parameters as for `tdecomp.files.atomic.output_folder`.

    Raises
    ------
    FileError
        Before any work, if nothing may be written there; afterwards, if the server refuses.
    """
    _check_apart(target, inputs)
    with _sent(target, lambda: _check_folder(target, overwrite)) as new:
        new.mkdir()
        yield new
        mark(new)


@contextmanager
def uploaded_file(
    target: Url,
    *,
    ours: Callable[[Path], bool],
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str] | Url],
) -> Generator[Path]:
    """As `uploaded_folder`, for a file; ``ours`` looks at a copy of the old one."""
    _check_apart(target, inputs)
    with _sent(target, lambda: _check_file(target, overwrite, ours)) as new:
        yield new


@contextmanager
def _sent(target: Url, check: Callable[[], None]) -> Generator[Path]:
    target.check_writable()
    check()
    beside = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    here = Path(tempfile.mkdtemp(prefix="tdecomp-"))
    try:
        _put_bytes(beside / "lock", b"tdecomp")
        new = here / f"new{target.suffix}"
        yield new
        _send(new, beside / "new")
        check()  # hours may have passed
        _into_place(new, beside / "new", target)
    finally:
        shutil.rmtree(here, ignore_errors=True)
        with suppress(FileError):
            _remove(beside)


def _send(new: Path, there: Url) -> None:
    for part, file in _parts(new):
        url = there / part if part else there
        _ask(url, lambda url=url, file=file: url.system.put_file(os.fspath(file), url.key))


def _into_place(new: Path, there: Url, target: Url) -> None:
    """Copy within the server; the list by which the folder is known again comes last."""
    parts = sorted((part for part, _ in _parts(new)), key=lambda part: (part == MARKER, part))
    old = {str(part) for part, _ in target.below()} if new.is_dir() else set[str]()
    for part in parts:
        source, url = (there / part, target / part) if part else (there, target)
        _ask(url, lambda s=source, u=url: u.system.cp_file(s.key, u.key))
    for part in old.difference(parts):
        url = target / part
        _ask(url, lambda url=url: url.system.rm_file(url.key))


def _parts(new: Path) -> list[tuple[str, Path]]:
    """Files of an output, with their names in it; a file has none."""
    if new.is_file():
        return [("", new)]
    return [(f.relative_to(new).as_posix(), f) for f in sorted(new.rglob("*")) if f.is_file()]


def _put_bytes(url: Url, content: bytes) -> None:
    _ask(url, lambda: url.system.pipe_file(url.key, content))


def _remove(folder: Url) -> None:
    def remove() -> None:
        with suppress(FileNotFoundError):
            folder.system.rm(folder.key, recursive=True)

    _ask(folder, remove)


def _ask(url: Url, call: Callable[[], Any]) -> None:
    patiently(call, str(url), url.scheme)


# ------------------------------------------------------------------------------------- refusals


def _check_apart(target: Url, inputs: Iterable[str | os.PathLike[str] | Url]) -> None:
    for one in map(place, inputs):
        if not isinstance(one, Url) or one.scheme != target.scheme:
            continue
        given, wanted = f"{one.key}/", f"{target.key}/"
        if given.startswith(wanted) or wanted.startswith(given):
            raise FileError(f"{target} is, holds or lies inside the input {one}: write elsewhere")


def _check_folder(target: Url, overwrite: bool) -> None:
    facts = target.facts()
    if facts is None:
        return
    if facts.get("type") != "directory":
        raise FileError(f"{target} exists and is not a folder: choose another name")
    _check_free(target, overwrite)
    if fault := _foreign_in(target):
        raise FileError(f"{target} {fault}: it is not replaced; choose another name")


def _check_file(target: Url, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    facts = target.facts()
    if facts is None:
        return
    if facts.get("type") == "directory":
        raise FileError(f"{target} is a folder: name a file")
    _check_free(target, overwrite)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"old{target.suffix}")
        copy.write_bytes(target.read_bytes())
        if copy.stat().st_size and not ours(copy):
            raise FileError(
                f"{target} is not an output of tdecomp of this kind: it is not replaced; choose "
                "another name"
            )


def _check_free(target: Url, overwrite: bool) -> None:
    if not overwrite:
        raise FileError(
            f"{target} already exists", tip="add overwrite=True, or choose another name"
        )


def _foreign_in(folder: Url) -> str:
    """What speaks against replacing a folder: files that its list does not know as they are."""
    files = {str(part): url for part, url in folder.below()}
    marker = files.pop(MARKER, None)
    try:
        content: object = None if marker is None else json.loads(marker.read_bytes())
    except ValueError:
        content = None
    listed = content.get("files") if is_object(content) else None
    if not is_object(listed) or not is_object(content) or content.get("made_by") != "tdecomp":
        return f"is not an output of tdecomp (it has no {MARKER})"
    for name, url in files.items():
        row = listed.get(name)
        if not is_object(row):
            return f"holds {name}, which tdecomp did not write"
        if url.size() != row.get("bytes") or not _is_content(url, row.get("sha256")):
            return f"holds {name}, which was changed after tdecomp wrote it"
    return ""


def _is_content(url: Url, digest: object) -> bool:
    return digest is None or hashlib.sha256(url.read_bytes()).hexdigest() == digest
