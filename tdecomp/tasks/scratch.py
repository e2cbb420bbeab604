"""Work shared out through a folder that several processes see: no server, no connections.

The first part leads: it puts every call into the folder, does calls itself while it waits, and
takes up what the others gave. A call is done by whoever claims it first; the claim of a part that
was lost is taken over. Everything is written under another name and renamed, and named by a hash
of what it is: a part that is started again finds what was done before.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdecomp.errors import ArgumentError, FileError, WorkerError
from tdecomp.tasks.spreading import perform, perform_packed
from tdecomp.tasks.wire import packed

__all__ = ["ScratchPart", "leading", "serve"]

_MADE_BY = "tdecomp scratch"
_LOOKS = 0.05  # seconds between two looks into the folder
_TELLS = 10.0  # seconds of waiting after which it is told
_KINDS = ("tasks", "claims", "results")

Told = Callable[[str], None]
"""Takes a line for people: what is being waited for."""


@dataclass(frozen=True, kw_only=True)
class ScratchPart:
    """One of several processes that share out a job.

    Attributes
    ----------
    number, of
        The how-maniest of how many, from 1 on.
    folder
        Where they meet.
    job
        What all of them were asked for, in plain JSON values: parts of another job are refused.
    timeout
        Seconds without a sign of the others after which a claim is taken over, or waiting ends.
    told
        Hears what is waited for.
    """

    number: int
    of: int
    folder: Path
    job: Mapping[str, Any]
    timeout: float = 600.0
    told: Told = field(default=print, repr=False, compare=False)

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            raise ArgumentError(f"part {self.number}/{self.of}: parts are numbered 1 to {self.of}")
        if self.timeout <= 0:
            raise ArgumentError(f"timeout={self.timeout:g} must be a positive number of seconds")


@contextmanager
def leading(part: ScratchPart) -> Generator[_Folder]:
    """Inside, the executor of the first part; what it put into the folder is gone afterwards.

    Raises
    ------
    FileError
        A folder that cannot be written, or with parts of another job.
    """
    folder = _Folder(part)
    folder.open()
    yield folder
    folder.close()


def serve(part: ScratchPart) -> int:
    """Do calls of the first part until its job is done; how many there were.

    Raises
    ------
    WorkerError
        No sign of the first part for as long as the timeout.
    FileError
        A folder with parts of another job.
    """
    folder = _Folder(part)
    count, waited = 0, _Waiting(part, "part 1")
    while not folder.is_done():
        if folder.has_job() and folder.do_one():
            count, waited = count + 1, _Waiting(part, "part 1")
        else:
            waited.a_little()
    return count


class _Folder:
    """The folder as one part sees it; an executor for the first one."""

    def __init__(self, part: ScratchPart) -> None:
        self.part, self._max_workers = part, part.of
        self._job = part.folder / "job.json"
        self._checked = False

    def open(self) -> None:
        """Begin the job, or go on with it."""
        try:
            for kind in _KINDS:
                (self.part.folder / kind).mkdir(parents=True, exist_ok=True)
            if not self._job.exists():
                self._write(self._job, json.dumps(self._plain(done=False)).encode())
        except OSError as error:
            raise FileError(f"cannot write {self.part.folder}: {error.strerror}") from error
        self.has_job()
        self._write(self._job, json.dumps(self._plain(done=False)).encode())
        self._forget_claims()

    def close(self) -> None:
        """Tell the others that all is done, and leave nothing but that."""
        self._write(self._job, json.dumps(self._plain(done=True)).encode())
        for kind in _KINDS:
            for file in (self.part.folder / kind).iterdir():
                with suppress(OSError):
                    file.unlink()

    def is_done(self) -> bool:
        """Whether the first part has all that it needs."""
        return self.has_job() and bool(self._told().get("done"))

    def has_job(self) -> bool:
        """Whether the first part was here; a FileError if it is of another job."""
        if not self._job.exists():
            return False
        if not self._checked:
            then, now = self._told(), self._plain(done=False)
            if then.get("made_by") != _MADE_BY:
                raise FileError(f"{self._job} is not of tdecomp: give an empty folder")
            for key in {**then, **now}.keys() - {"done"}:
                if then.get(key) != now.get(key):
                    raise FileError(
                        f"{self.part.folder} holds parts of another job, with {key} ="
                        f" {then.get(key)} in the place of {now.get(key)}: give all parts the same"
                        " options, or an empty folder"
                    )
            self._checked = True
            if self.part.number > 1:
                self._forget_claims()
        return True

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> _PutCall:
        """Put a call into the folder."""
        return self.submit_near(0, fn, *args)

    def submit_near(self, place: int, fn: Callable[..., Any], /, *args: Any) -> _PutCall:
        """Put a call into the folder, for one of the parts rather than the others."""
        assert fn is perform, "what is handed out is always done by `perform`"
        data = packed(args)
        name = f"{1 + place % self.part.of}-{hashlib.sha256(data).hexdigest()}"
        if not self._place("results", name).exists():
            self._write(self._place("tasks", name), data)
        return _PutCall(self, name)

    def do_one(self, *, overdue: bool = False) -> bool:
        """Claim a call that nobody has, or that is overdue, and do it; False if there is none."""
        try:
            tasks = sorted((self.part.folder / "tasks").iterdir(), key=self._order)
        except OSError as error:
            raise FileError(f"cannot read {self.part.folder}: {error.strerror}") from error
        for task in tasks:
            if task.suffix or self._place("results", task.name).exists():
                continue
            if self._claimed(task.name, overdue=overdue):
                try:
                    call = task.read_bytes()
                except FileNotFoundError:  # done and taken up meanwhile
                    self._place("claims", task.name).unlink(missing_ok=True)
                else:
                    self._write(self._place("results", task.name), perform_packed(call))
                return True
        return False

    def _order(self, task: Path) -> tuple[bool, str]:
        """Those for this part first."""
        return not task.name.startswith(f"{self.part.number}-"), task.name

    def result(self, name: str) -> bytes | None:
        """What a call gave, if it is done; it is then forgotten as a task."""
        try:
            data = self._place("results", name).read_bytes()
        except FileNotFoundError:
            return None
        for kind in ("tasks", "claims"):
            self._place(kind, name).unlink(missing_ok=True)
        return data

    def holder(self, name: str) -> str:
        """Who has claimed a call."""
        try:
            return f"part {self._place('claims', name).read_text()}"
        except OSError:
            return "the other parts"

    def _claimed(self, name: str, *, overdue: bool) -> bool:
        """Whether a call is ours now."""
        claim = self._place("claims", name)
        with suppress(OSError):
            if overdue and time.time() - claim.stat().st_mtime > self.part.timeout:
                claim.unlink()
        try:
            number = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(number, "w") as file:
            file.write(str(self.part.number))
        return True

    def _forget_claims(self) -> None:
        """Of this part when it was started before."""
        for claim in (self.part.folder / "claims").iterdir():
            with suppress(OSError):
                if claim.read_text() == str(self.part.number):
                    claim.unlink()

    def _place(self, kind: str, name: str) -> Path:
        return self.part.folder / kind / name

    def _plain(self, *, done: bool) -> dict[str, Any]:
        own = {"made_by": _MADE_BY, "parts": self.part.of, "done": done}
        return {**own, **json.loads(json.dumps(dict(self.part.job)))}

    def _told(self) -> dict[str, Any]:
        try:
            found = json.loads(self._job.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"cannot read {self._job}: {error}") from error
        return found if isinstance(found, dict) else {}

    def _write(self, file: Path, data: bytes) -> None:
        part = file.with_name(f"{file.name}.part-{self.part.number}")
        part.write_bytes(data)
        part.replace(file)


class _PutCall:
    """A call in the folder, as a future."""

    def __init__(self, folder: _Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def result(self) -> bytes:
        """What it gave; meanwhile this part does what others have not begun."""
        waited = _Waiting(self._folder.part, "the other parts")
        while (found := self._folder.result(self._name)) is None:
            if self._folder.do_one(overdue=waited.is_over()):
                continue
            waited.what = self._folder.holder(self._name)
            waited.a_little(ends=False)
        return found


class _Waiting:
    """Time that goes by without a sign of others."""

    def __init__(self, part: ScratchPart, what: str) -> None:
        self.part, self.what = part, what
        self._since, self._told = time.monotonic(), False

    def is_over(self) -> bool:
        return time.monotonic() - self._since > self.part.timeout

    def a_little(self, *, ends: bool = True) -> None:
        """Wait; tell it after a while, and give up after the timeout where that `ends` it."""
        if ends and self.is_over():
            raise WorkerError(
                f"part {self.part.number}/{self.part.of} has waited {self.part.timeout:g} s for"
                f" {self.what} at {self.part.folder}",
                tip="start part 1 again, then this one: what is done is kept",
            )
        if not self._told and time.monotonic() - self._since > _TELLS:
            self._told = True
            self.part.told(
                f"part {self.part.number}/{self.part.of} waits for {self.what},"
                f" {self.part.timeout:g} s at most"
            )
        time.sleep(_LOOKS)
