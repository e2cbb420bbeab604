"""Cases in forked processes: one that hangs or dies is a fault of its case, and the rest go on."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.forks import fork
from tests.fuzz import worlds
from tests.fuzz.cases import Case, Outcome, command

HANGS = 30.0
"""Seconds on the clock without an outcome after which a process is ended."""
_ROOM = 3 << 30  # address space beyond what a process starts with


def run_all(seed: int, cases: int, processes: int) -> list[Outcome]:
    """All outcomes, in the order of their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        kinds = worlds.build(home, command)
        parts = [range(first, cases, processes) for first in range(processes)]
        workers = [
            _Worker(seed, part, kinds, home, Path(folder, str(i))) for i, part in enumerate(parts)
        ]
        running = [worker for worker in workers if worker.start()]
        while running:
            ready, _, _ = select.select([worker.pipe for worker in running], [], [], 1.0)
            for worker in list(running):
                if not worker.attend(worker.pipe in ready):
                    running.remove(worker)
    return sorted((o for worker in workers for o in worker.outcomes), key=lambda o: o.number)


def run_here(seed: int, number: int) -> Outcome:
    """One case in this process, with all that is printed."""
    with tempfile.TemporaryDirectory() as folder:
        home, place = Path(folder, "home"), Path(folder, "place")
        home.mkdir()
        place.mkdir()
        return Case.draw(seed, number, worlds.build(home, command)).run(home, place, loud=True)


class _Worker:
    """A process that works through some numbers and is started again where one ended it."""

    def __init__(
        self, seed: int, numbers: Sequence[int], kinds: tuple[str, ...], home: Path, place: Path
    ):
        self.seed, self.numbers, self.kinds = seed, numbers, kinds
        self.home, self.place = home, place
        self.outcomes: list[Outcome] = []
        self.pipe = self.process = -1
        self._rest, self._last = b"", 0.0

    def start(self) -> bool:
        """Fork for the numbers that have no outcome; False if all have one."""
        left = self.numbers[len(self.outcomes) :]
        if not left:
            return False
        self.pipe, writing = os.pipe()
        self._rest, self._last = b"", time.monotonic()
        self.process = fork()
        if self.process == 0:
            try:
                self._work(left, writing)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        return True

    def _work(self, numbers: Sequence[int], writing: int) -> None:
        os.setpgid(0, 0)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = used * resource.getpagesize() + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        place = self.place / str(os.getpid())
        place.mkdir(parents=True)
        for number in numbers:
            outcome = Case.draw(self.seed, number, self.kinds).run(self.home, place)
            os.write(writing, json.dumps(asdict(outcome)).encode() + b"\n")

    def attend(self, ready: bool) -> bool:
        """Take what the process says; False when all is done."""
        if ready:
            new = os.read(self.pipe, 1 << 16)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                row = json.loads(line)
                words = {key: tuple(row[key]) for key in ("mutations", "words")}
                self.outcomes.append(Outcome(**row | words))
                self._last = time.monotonic()
            return bool(new) or self._again("the process died")
        if time.monotonic() - self._last > HANGS:
            os.kill(self.process, signal.SIGKILL)
            return self._again(f"no outcome after {HANGS:.0f} s")
        return True

    def _again(self, why: str) -> bool:
        """Wait for the ended process; the case it was at is at fault; go on behind it."""
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        if len(self.outcomes) < len(self.numbers):
            case = Case.draw(self.seed, self.numbers[len(self.outcomes)], self.kinds)
            self.outcomes.append(replace(case.blank, fault=f"{why} (status {status})"))
        return self.start()
