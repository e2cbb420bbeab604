"""Hashes of weight files, as many files at a time as there are processors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np

from tdecomp._threads import cores
from tdecomp.errors import FileError
from tdecomp.files.opening import Checkpoint, check_unchanged
from tdecomp.files.storage import Location, RangeFile, from_root
from tdecomp.files.stored import Source, open_source
from tdecomp.files.tally import Tally
from tdecomp.progress import Progress, silent
from tdecomp.tasks import Executor, sendable, spread

__all__ = ["fingerprint", "fingerprints"]

_CHUNK = 1 << 22  # bytes hashed at a time
_AHEAD = 1 << 26  # bytes asked of a server before they are hashed


def fingerprint(checkpoint: Checkpoint, progress: Progress = silent) -> list[dict[str, Any]]:
    """`fingerprints` of one checkpoint."""
    return fingerprints([checkpoint], progress)[0]


def fingerprints(
    checkpoints: Sequence[Checkpoint],
    progress: Progress = silent,
    executor: Executor | None = None,
    *,
    hashed: bool = True,
) -> list[list[dict[str, Any]]]:
    """Name, size and SHA-256 of every weight file; reads all of them once.

    They are those of the files that were opened, even where another file has the name by now.
    They are no by-product of reading the weights: SHA-256 takes every byte of a file in order, and
    stacks are read tensor by tensor in the order of their groups, some twice, others never.

    Parameters
    ----------
    checkpoints
        From `open_checkpoint`.
    progress
        Called with the fraction that is read, of all.
    executor
        Whose workers read the files, each one by one of them.
    hashed
        False: no hash, and nothing is read.

    Returns
    -------
    list of list of dict
        ``{"file": name without folder, "size": bytes, "sha256": hex}`` per file of each, the last
        of them where it is `hashed`.

    Raises
    ------
    FileError
        If a file cannot be read, or was written to since it was opened.
    """
    files = [[c.sources.get(file) or _source(file) for file in c.files] for c in checkpoints]
    sources = [source for some in files for source in some]
    if not hashed:
        rows = ({"file": source.path.name, "size": source.size} for source in sources)
    elif executor is None:
        rows = iter(_digests(sources, progress))
    else:
        rows = iter(_digests_of_workers(sources, executor, progress))
    found = [[next(rows) for _ in some] for some in files]
    for checkpoint in checkpoints:
        check_unchanged(checkpoint)
    return found


def _digests(sources: list[Source | RangeFile], progress: Progress) -> list[dict[str, Any]]:
    """One row per file. Threads hash; the caller's tells how far they are, and ends them."""
    tally = Tally(progress, sum(source.size for source in sources))
    read: SimpleQueue[int | None] = SimpleQueue()  # bytes; None: a file is done with
    enough = Event()
    with ThreadPoolExecutor(cores(), thread_name_prefix="hashing") as pool:
        rows = [pool.submit(_digest, source, read, enough) for source in sources]
        try:
            for _ in rows:
                while (count := read.get()) is not None:
                    tally.add(count)
            return [row.result() for row in rows]
        finally:
            enough.set()


def _digests_of_workers(
    sources: list[Source | RangeFile], executor: Executor, progress: Progress
) -> list[dict[str, Any]]:
    tally = Tally(progress, sum(source.size for source in sources))
    rows: list[dict[str, Any]] = []
    calls = (partial(_digest_there, from_root(source.path), source.mark) for source in sources)
    with spread(executor, calls) as found:
        for row in found:
            rows.append(row)
            tally.add(row["size"])
    return rows


@sendable
def _digest_there(path: Location, mark: str) -> dict[str, Any]:
    """Row of a file; this runs on a worker."""
    source = _source(path)
    if source.mark != mark:
        raise FileError(f"{path} is another file for a worker than for the process that reads it")
    return _digest(source, SimpleQueue(), Event())


def _digest(
    source: Source | RangeFile, read: SimpleQueue[int | None], enough: Event
) -> dict[str, Any]:
    try:
        digest, file, memory = hashlib.sha256(), source.opened(), np.empty(_CHUNK, np.uint8)
        for start in range(0, source.size, _CHUNK):
            if enough.is_set():
                break
            chunk = memory[: source.size - start]
            file.soon(start, min(start + _AHEAD, source.size))
            file.read_into(start, chunk)
            digest.update(chunk.data)
            read.put(len(chunk))
        return {"file": source.path.name, "size": source.size, "sha256": digest.hexdigest()}
    except BaseException:
        enough.set()  # the other files would be hashed for nothing
        raise
    finally:
        read.put(None)


def _source(path: Location) -> Source | RangeFile:
    try:
        return open_source(path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
