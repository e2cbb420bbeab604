"""Signals that end a process, as an exception: what is half-written is removed on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stopped", "stopped_by_exception"]

_ENDED = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


class Stopped(BaseException):
    """A signal that asks the process to end, as an exception, so that outputs are undone."""

    def __init__(self, number: int):
        super().__init__(_ENDED[signal.Signals(number).name])
        self.number = number


@contextmanager
def stopped_by_exception() -> Iterator[None]:
    """Raise `Stopped` where a signal would end the process; those that nohup ignores stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    here = threading.current_thread() is threading.main_thread()
    known = [signal.Signals[name] for name in _ENDED if here and hasattr(signal, name)]
    old = {n: how for n in known if (how := signal.getsignal(n)) in usual}
    try:
        for n in old:
            signal.signal(n, stop)
        yield
    finally:
        for n, how in old.items():
            signal.signal(n, how)
