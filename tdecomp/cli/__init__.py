"""The ``tdecomp`` command: files in, files and tables out. No numerics here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tdecomp.errors import TdecompError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    0 done; 1 a check failed (`verify`); 2 bad input, told in one line; 130 interrupted, 143
    terminated: either way the temporary output is removed first.
    """
    with _stopped_by_exception():
        code = _run(arguments)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    import numpy as np
    import typer

    from tdecomp.cli._commands import app

    try:
        with np.errstate(all="ignore"):  # what is not finite is found and told in words
            code = app(arguments, prog_name="tdecomp", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted: nothing was written", 130)
    except _Stopped as stopped:
        return _say(f"{stopped}: nothing was written", 128 + stopped.number)
    except BrokenPipeError:  # the reader had enough, as in `tdecomp inspect MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except Exception as error:
        if line := _in_one_line(error):
            return _say(line, 2)
        raise
    return code if isinstance(code, int) else 0


class _Stopped(BaseException):
    """A signal that asks the process to end, as an exception, so that outputs are undone."""

    def __init__(self, number: int):
        super().__init__(signal.strsignal(number))
        self.number = number


@contextmanager
def _stopped_by_exception() -> Iterator[None]:
    """Raise `_Stopped` where a signal would end the process on the spot; SIGINT does already."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows: no HUP
    old = {n: signal.getsignal(n) for n in numbers if n is not None}
    old = {n: how for n, how in old.items() if how is signal.SIG_DFL}  # nohup ignores SIGHUP
    try:
        for n in old:
            signal.signal(n, stop)
        yield
    finally:
        for n, how in old.items():
            signal.signal(n, how)


def _in_one_line(error: Exception) -> str:
    """What to tell the user; empty for an error that is a bug."""
    if isinstance(error, TdecompError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot read or write'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "out of memory: share fewer modes (--share) or take fewer sites (--targets)"
    usage = getattr(error, "format_message", None)  # the option parser's own errors
    return f"{usage() or 'name a command'} (see --help)" if usage else ""


def _say(message: str, code: int) -> int:
    print(f"tdecomp: {' '.join(message.split())}", file=sys.stderr)
    return code
