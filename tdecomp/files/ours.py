"""How an output of this tool is known again: by what is inside, never by a file's name.

Folders carry ``.tdecomp.json``, which lists every file that was written there, with its size and,
up to 16 MiB, its SHA-256. A folder is ours while all that it holds is what the list says: a file
that was added, or changed afterwards, is somebody's work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FileError
from . import safetensors
from .below import entries_below
from .plain import is_object

__all__ = ["MARKER", "foreign_in", "has_metadata", "is_json", "mark"]

MARKER = ".tdecomp.json"
_SCHEMA = 1
_HASHED = 1 << 24  # bytes up to which content is compared; above, size and time
_LARGEST_LIST = 1 << 26
_OF_THE_SYSTEM = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_DELETE = "delete the folder yourself if nothing in it is needed, or choose another name"


def mark(folder: Path) -> None:
    """Write the list of all files below a folder into it; `foreign_in` then returns None."""
    rows = {file: _row(folder / file) for file in sorted(_files(folder)) if file != MARKER}
    content = {"made_by": "tdecomp", "schema": _SCHEMA, "files": rows}
    text = json.dumps(content, indent=1, ensure_ascii=True) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")


def foreign_in(folder: Path) -> str | None:
    """Say what speaks against replacing a folder; None if this tool wrote all that it holds.

    An empty folder is nobody's. A folder inside that has a list of its own is looked up there.

    Returns
    -------
    str or None
        The rest of a sentence that begins with the folder's name.
    """
    files = sorted(file for file in _files(folder) if Path(file).name not in _OF_THE_SYSTEM)
    if not files:
        return None
    listed = _listed(folder) or _of_an_older_version(folder, files)
    if not listed:
        return f"is not an output of tdecomp (it holds {_few(files)} and no {MARKER}): {_DELETE}"
    nested = {Path(file).parent for file in files if Path(file).name == MARKER} - {Path()}
    for file in files:
        if file == MARKER or nested & set(Path(file).parents):
            continue
        if file not in listed:
            return f"holds {file}, which tdecomp did not write: move it away, or {_DELETE}"
        if _changed(folder, file, listed[file]):
            return f"holds {file}, which was changed after tdecomp wrote it: {_DELETE}"
    for sub in sorted(nested):
        if fault := foreign_in(folder / sub):
            return f"is not replaced: {folder / sub} {fault}"
    return None


def is_json(path: Path, made_by: str) -> bool:
    """Whether a file is a JSON object whose key ``made_by`` says so."""
    content = _json(path)
    return is_object(content) and bool(content.get("made_by") == made_by)


def has_metadata(path: Path, key: str) -> bool:
    """Whether a file is a safetensors file with a metadata key that only this tool writes."""
    try:
        return key in safetensors.read_header(path)[1]
    except FileError:
        return False


def _files(folder: Path) -> Iterator[str]:
    """Names of all that is not a folder below a folder, with ``/`` between the parts."""
    for entry in entries_below(folder):
        yield Path(entry.path).relative_to(folder).as_posix()


def _row(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    return {"bytes": size} | ({"sha256": _hash(file)} if size <= _HASHED else {})


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _changed(folder: Path, file: str, row: object) -> bool:
    path = folder / file
    if not is_object(row) or path.is_symlink() or not path.is_file():
        return True
    found = path.stat()
    if found.st_size != row.get("bytes"):
        return True
    if "sha256" in row:
        return found.st_size > _HASHED or bool(_hash(path) != row["sha256"])
    return found.st_mtime_ns > (folder / MARKER).stat().st_mtime_ns


def _listed(folder: Path) -> dict[str, Any] | None:
    content = _json(folder / MARKER)
    if not is_object(content) or content.get("made_by") != "tdecomp":
        return None
    files = content.get("files")
    return files if content.get("schema") == _SCHEMA and is_object(files) else None


def _json(path: Path) -> object:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_LIST:  # a pipe would be waited for
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _of_an_older_version(folder: Path, files: list[str]) -> dict[str, Any] | None:
    """A list for factors and their report, written before there were lists."""
    factors, report = "factors.safetensors", "report.json"
    ours = files in ([factors], [factors, report]) and any(
        has_metadata(folder / factors, key) for key in ("tdecomp", "tdecomp.adapter")
    )
    content: object = _json(folder / report) if report in files else {"groups": []}
    if not ours or not is_object(content) or "groups" not in content:
        return None
    return {file: _row(folder / file) for file in files}


def _few(files: list[str], limit: int = 3) -> str:
    return ", ".join(files[:limit]) + (", ..." if len(files) > limit else "")
