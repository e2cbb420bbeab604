"""Signals that end a process: at once, or as an exception while there is something to undo."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

__all__ = ["Stopped", "SignalWatch", "watched"]

CLEAN = "nothing half-written is left"
_ENDED = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_PATIENCE = 5.0  # seconds for cleaning up, in which further signals are held


class Stopped(BaseException):
    """A signal that asks the process to end, as an exception, so that outputs are undone."""

    def __init__(self, number: int):
        super().__init__(_ENDED[signal.Signals(number).name])
        self.number = number


@dataclass
class SignalWatch:
    """What a signal does now.

    Attributes
    ----------
    working
        The first one raises `Stopped`; else it ends the process, since there is nothing to undo.
    stopped
        When the first one came. Others are held while what is half-written is removed; one that
        comes when that should long be over ends the process, and says what is left.
    """

    working: bool = False
    stopped: float | None = field(default=None, init=False)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal."""
        now = time.monotonic()
        if self.stopped is None and self.working:
            self.stopped = now
            raise Stopped(number)
        if self.stopped is None or now - self.stopped > _PATIENCE:
            _leave(number)


@contextmanager
def watched(*, to_the_end: bool) -> Iterator[SignalWatch]:
    """Answer signals where they would end the process; those that nohup ignores stay so.

    Parameters
    ----------
    to_the_end
        The process is ours and about to end, so signals are ignored afterwards: Python would
        let them end it in the middle of its own ending. Else they are as before.
    """
    watch = SignalWatch()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    here = threading.current_thread() is threading.main_thread()
    known = [signal.Signals[name] for name in _ENDED if here and hasattr(signal, name)]
    old = {n: how for n in known if (how := signal.getsignal(n)) in usual}
    try:
        for n in old:
            signal.signal(n, watch.handle)
        yield watch
    finally:
        for n, how in old.items():
            signal.signal(n, signal.SIG_IGN if to_the_end else how)


def left() -> str:
    """Say which temporary folders of this process are there."""
    workshop = sys.modules.get("tdecomp.files.workshop")
    folders = workshop.still_open() if workshop else []
    if not folders:
        return CLEAN
    return f"{', '.join(map(str, folders))} is left: the next run to the same place removes it"


def _leave(number: int) -> None:
    """End the process here and now; streams may be in the middle of something."""
    line = f"tdecomp: {_ENDED[signal.Signals(number).name]}: {left()}\n"
    with suppress(Exception):
        os.write(2, ascii(line)[1:-3].encode() + b"\n")
    os._exit(128 + number)
