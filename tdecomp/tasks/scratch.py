"""Work shared out through a folder or bucket that several processes see: no server of ours.

The first part leads: it puts every call into the folder, does calls itself while it waits, and
takes up what the others gave. A call is done by whoever claims it first; the claim of a part that
was lost is taken over. All is written whole or not at all and named by a hash of what it is: a part
that is started again finds what was done before, and a call that two have done at once has done no
harm.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tdecomp.errors import ArgumentError, FileError, WorkerError
from tdecomp.tasks.meeting import Meeting
from tdecomp.tasks.spreading import perform, perform_packed
from tdecomp.tasks.wire import packed

__all__ = ["ScratchPart", "leading", "serve"]

_MADE_BY = "tdecomp scratch"
_TELLS = 10.0  # seconds of waiting after which it is told
_KINDS = ("tasks", "claims", "results")
_JOB = "job.json"

Told = Callable[[str], None]
"""Takes a line for people: what is being waited for."""


@dataclass(frozen=True, kw_only=True)
class ScratchPart:
    """One of several processes that share out a job.

    Attributes
    ----------
    number, of
        The how-maniest of how many, from 1 on.
    place
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
    place: Meeting
    job: Mapping[str, Any]
    timeout: float = 600.0
    told: Told = field(default=print, repr=False, compare=False)

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            raise ArgumentError(f"part {self.number}/{self.of}: parts are numbered 1 to {self.of}")
        if self.timeout <= 0:
            raise ArgumentError(f"timeout={self.timeout:g} must be a positive number of seconds")


@contextmanager
def leading(part: ScratchPart) -> Generator[_Desk]:
    """Inside, the executor of the first part; what it put into the folder is gone afterwards.

    Raises
    ------
    FileError
        A folder that cannot be written, or with parts of another job.
    """
    desk = _Desk(part)
    desk.open()
    yield desk
    desk.close()


def serve(part: ScratchPart) -> int:
    """Do calls of the first part until its job is done; how many there were.

    Raises
    ------
    WorkerError
        No sign of the first part for as long as the timeout.
    FileError
        A folder with parts of another job.
    """
    desk = _Desk(part)
    count, waited = 0, _Waiting(part, "part 1")
    while (state := desk.state()) != "done":
        if state == "going on" and desk.do_one():
            count, waited = count + 1, _Waiting(part, "part 1")
        else:
            waited.a_little()
    return count


class _Desk:
    """Where the parts meet, as one of them sees it; an executor for the first one."""

    def __init__(self, part: ScratchPart) -> None:
        self.part, self._max_workers = part, part.of
        self._place, self._checked = part.place, False
        self._done: set[str] = set()  # results that need no task any more
        self._held: dict[str, float] = {}  # claims of others, and since when they were seen

    def open(self) -> None:
        """Begin the job, or go on with it."""
        self._place.open(_KINDS)
        self._job()
        self._tell(done=False)
        self._forget_claims()
        self._done = self._place.names("results")

    def close(self) -> None:
        """Tell the others that all is done, and leave nothing but that."""
        self._tell(done=True)
        for kind in _KINDS:
            self._place.clear(kind)

    def state(self) -> Literal["none", "going on", "done"]:
        """How far the first part is; a FileError if it has another job."""
        job = self._job()
        if job is None:
            return "none"
        return "done" if job.get("done") else "going on"

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> _PutCall:
        """Put a call there."""
        return self.submit_near(0, fn, *args)

    def submit_near(self, place: int, fn: Callable[..., Any], /, *args: Any) -> _PutCall:
        """Put a call there, for one of the parts rather than the others."""
        assert fn is perform, "what is handed out is always done by `perform`"
        data = packed(args)
        name = f"{1 + place % self.part.of}-{hashlib.sha256(data).hexdigest()}"
        if name not in self._done:
            self._place.write("tasks", name, data)
        return _PutCall(self, name)

    def do_one(self, *, overdue: bool = False) -> bool:
        """Claim a call that nobody has, or that is overdue, and do it; False if there is none."""
        tasks = self._place.names("tasks")
        if tasks:
            tasks -= self._place.names("results")
            self._look_at_claims()
        for name in sorted(tasks, key=self._order):
            if self._claimed(name, overdue=overdue):
                call = self._place.read("tasks", name)
                if call is None:  # done and taken up meanwhile
                    self._place.remove("claims", name)
                else:
                    self._place.write("results", name, perform_packed(call))
                return True
        return False

    def _order(self, name: str) -> tuple[bool, str]:
        """Those for this part first."""
        return not name.startswith(f"{self.part.number}-"), name

    def result(self, name: str) -> bytes | None:
        """What a call gave, if it is done; it is then forgotten as a task."""
        data = self._place.read("results", name)
        if data is not None:
            self._done.add(name)
            for kind in ("tasks", "claims"):
                self._place.remove(kind, name)
        return data

    def holder(self, name: str) -> str:
        """Who has claimed a call."""
        owner = self._place.read("claims", name)
        return "the other parts" if owner is None else f"part {owner.decode(errors='replace')}"

    def _look_at_claims(self) -> None:
        """Those that are there, and since when: a claim has no clock that all parts share."""
        now = time.monotonic()
        self._held = {name: self._held.get(name, now) for name in self._place.names("claims")}

    def _claimed(self, name: str, *, overdue: bool) -> bool:
        """Whether a call is ours now."""
        if name in self._held:
            if not overdue or time.monotonic() - self._held[name] <= self.part.timeout:
                return False
            self._place.remove("claims", name)
        return self._place.claim("claims", name, str(self.part.number).encode())

    def _forget_claims(self) -> None:
        """Of this part when it was started before."""
        own = str(self.part.number).encode()
        for name in self._place.names("claims"):
            if self._place.read("claims", name) == own:
                self._place.remove("claims", name)

    def _job(self) -> dict[str, Any] | None:
        """What the first part was asked for, None where it was not here yet."""
        data = self._place.read("", _JOB)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError as error:
            raise FileError(f"cannot read {self._place}/{_JOB}: {error}") from error
        job: dict[str, Any] = found if isinstance(found, dict) else {}
        if not self._checked:
            self._check(job)
            self._checked = True
            if self.part.number > 1:
                self._forget_claims()
        return job

    def _check(self, then: dict[str, Any]) -> None:
        """Refuse a job that is not this one."""
        if then.get("made_by") != _MADE_BY:
            raise FileError(f"{self._place}/{_JOB} is not of tdecomp: give an empty folder")
        now = self._plain(done=False)
        for key in {**then, **now}.keys() - {"done"}:
            if then.get(key) != now.get(key):
                raise FileError(
                    f"{self._place} holds parts of another job, with {key} ="
                    f" {then.get(key)} in the place of {now.get(key)}: give all parts the same"
                    " options, or an empty folder"
                )

    def _plain(self, *, done: bool) -> dict[str, Any]:
        own = {"made_by": _MADE_BY, "parts": self.part.of, "done": done}
        return {**own, **json.loads(json.dumps(dict(self.part.job)))}

    def _tell(self, *, done: bool) -> None:
        self._place.write("", _JOB, json.dumps(self._plain(done=done)).encode())


class _PutCall:
    """A call that was put there, as a future."""

    def __init__(self, desk: _Desk, name: str) -> None:
        self._desk, self._name = desk, name

    def result(self) -> bytes:
        """What it gave; meanwhile this part does what others have not begun."""
        waited = _Waiting(self._desk.part, "the other parts")
        while (found := self._desk.result(self._name)) is None:
            if self._desk.do_one(overdue=waited.is_over()):
                continue
            waited.what = self._desk.holder(self._name)
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
                f" {self.what} at {self.part.place}",
                tip="start part 1 again, then this one: what is done is kept",
            )
        if not self._told and time.monotonic() - self._since > _TELLS:
            self._told = True
            self.part.told(
                f"part {self.part.number}/{self.part.of} waits for {self.what},"
                f" {self.part.timeout:g} s at most"
            )
        time.sleep(self.part.place.pause)
