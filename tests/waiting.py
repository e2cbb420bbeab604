"""Waiting for what other threads and servers do, and limits that a busy or slow machine keeps.

A test waits until something is so, not for a time in which it ought to be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE", "cpu_seconds", "new_threads", "wait_until"]

PATIENCE = 60.0
"""Seconds after which something is stuck; never waited for in a passing test."""
_WORK = 0.012  # seconds that `_some_work` takes where the limits of the tests were written


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait for a condition; whether it came true."""
    end = time.monotonic() + patience
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.001)
    return true or condition()  # this process may have been stopped for longer than that


@contextmanager
def new_threads(prefix: str) -> Iterator[Callable[[], list[threading.Thread]]]:
    """Inside, the threads of such a name that were not there before: other tests have theirs."""
    before = set(threading.enumerate())
    yield lambda: [
        t for t in threading.enumerate() if t.name.startswith(prefix) and t not in before
    ]


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """What is inside takes less processor time, or as much less as this machine is slower."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < limit or taken < limit * _slowness(), f"{taken:.1f} s"


def _slowness() -> float:
    """How many times slower than at their writing this machine is now."""
    start = time.process_time()
    _some_work()
    return (time.process_time() - start) / _WORK


def _some_work() -> None:
    names = [f"layers.{i}.weight" for i in range(20_000)]
    places = {name: name.split(".") for name in names}
    assert sum(len(segments) for segments in places.values()) == 3 * len(names)
