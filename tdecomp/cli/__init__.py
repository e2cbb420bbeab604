"""The ``tdecomp`` command: files in, files and tables out. No numerics here."""

from __future__ import annotations

import sys

from tdecomp.errors import TdecompError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    0 done; 1 a check failed (`verify`); 2 bad input, told in one line; 130 interrupted.
    """
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    import typer

    from tdecomp.cli._commands import app

    try:
        code = app(arguments, prog_name="tdecomp", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted: nothing was written", 130)
    except Exception as error:
        if line := _in_one_line(error):
            return _say(line, 2)
        raise
    return code if isinstance(code, int) else 0


def _in_one_line(error: Exception) -> str:
    """What to tell the user; empty for an error that is a bug."""
    if isinstance(error, TdecompError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot read or write'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "out of memory: share fewer modes (--share) or take fewer sites (--targets)"
    usage = getattr(error, "format_message", None)  # the option parser's own errors
    return f"{usage()} (see --help)" if usage else ""


def _say(message: str, code: int) -> int:
    print(f"tdecomp: {' '.join(message.split())}", file=sys.stderr)
    return code
