"""The ``tdecomp`` command: files in, files and tables out. No numerics here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper

from tdecomp.cli.signals import Stopped, left, watched
from tdecomp.errors import TdecompError

__all__ = ["main"]

_BREAKS = re.compile(r"\s*\n\s*")  # of the option parser's errors


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    0 done; 1 a check failed (`verify`); 2 bad input, told in one line; 130 interrupted, 143
    terminated: either way the temporary output is removed first.
    """
    _replace_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a screen without Δ, a path that is not text
    with watched(to_the_end=arguments is None) as watch:
        command = _command()
        try:
            watch.working = True
            code = _run(arguments, command)
            watch.working = False
        except Stopped as stopped:
            code = _end(stopped)
    sys.exit(code)


def _command() -> Callable[..., object]:
    """The commands, for which everything is loaded."""
    from tdecomp.cli.commands import app

    return app


def _end(stopped: Stopped) -> int:
    """Remove what is half-written, and say so or what is left."""
    from tdecomp.files.workshop import discard_all

    discard_all()
    return _say(f"{stopped}: {left()}", 128 + stopped.number)


def _run(arguments: list[str] | None, command: Callable[..., object] | None = None) -> int:
    import numpy as np

    command = command or _command()
    try:
        with np.errstate(all="ignore"):  # what is not finite is found and told in words
            code = command(arguments, prog_name="tdecomp", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as left:
        if not left.code:  # completion of a shell
            return 0
        _drop_output()
        return 128 + 13  # Typer makes it of a broken pipe: `inspect MODEL | head`
    except BrokenPipeError:
        _drop_output()
        return 128 + 13
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # Typer has printed the help
            return 2
        line, tip = _in_words(error)
        if not line:
            raise
        _drop_output()
        return _say(line, 2, tip)
    return code if isinstance(code, int) else 0


def _replace_closed_streams() -> None:
    """Give streams that the caller closed a place to write to.

    Otherwise there is no object to print to, and the next file that is opened gets the number of
    standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            lowest = os.open(os.devnull, os.O_RDWR)  # the number of the stream, as it is free
            setattr(sys, name, os.fdopen(lowest, mode))


def _drop_output() -> None:
    """Forget what standard output does not take, or Python would complain when it leaves."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_words(error: Exception) -> tuple[str, str]:
    """What to tell the user, and what to do about it; empty for an error that is a bug."""
    from tdecomp.cli.spelling import as_typed, usage_error

    if isinstance(error, TdecompError):
        return as_typed(error.message), as_typed(error.tip)
    if isinstance(error, OSError):
        where = error.filename or "cannot print, read or write"
        return f"{where}: {error.strerror or error}", ""
    if isinstance(error, MemoryError):
        return "out of memory", "share fewer modes (--share), or take fewer sites (--targets)"
    return usage_error(error) if hasattr(error, "format_message") else ("", "")


def _say(message: str, code: int, tip: str = "") -> int:
    """Tell it in one line, whatever the names and paths in it hold, and a tip in another."""
    from tdecomp.cli.screen import printable

    with suppress(OSError):  # nobody can be told; the exit code says it
        for start, text in (("tdecomp: ", message), ("  tip: ", tip)):
            if text:
                line = start + printable(_BREAKS.sub(" ", text))
                print(line, file=sys.stderr, flush=True)
    return code
