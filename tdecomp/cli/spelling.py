"""What the library says in the words of Python, said in those of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from tdecomp.jobs.commands import typed_layers

__all__ = ["as_typed", "usage_error"]

_FLAGS = {"patterns": "--pattern"}
_OPTIONS = (
    *("targets", "exclude", "layers", "patterns", "share", "method", "modes", "rank", "error"),
    *("budget", "dtype", "overwrite", "allow_missing", "device", "max_memory"),
    *("rate", "steps", "seed", "base", "missing", "task", "rank_max"),
)
_POSSIBLE = re.compile(r"\s*\(Possible options: [^)]*\)")
_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_VALUE = rf"{_TEXT}|\[(?:{_TEXT}|[^\]'\"])*\]|\((?:{_TEXT}|[^)'\"])*\)|[\w.+-]*\w"
_ATTRIBUTE = " (attribute best)"
_GIVEN = re.compile(rf"\b({'|'.join(_OPTIONS)})=({_VALUE})")


def as_typed(text: str) -> str:
    """A message with every ``name=value`` as an option.

    >>> as_typed("no site matches targets=['q_prj', 'k'], layers=(0, 1, 5): give overwrite=True")
    'no site matches --targets q_prj,k, --layers 0-1,5: give --overwrite'
    >>> as_typed("the best is 0.5 (attribute best); raise rank_max=4 or the error")
    'the best is 0.5; raise --rank-max 4 or the error'
    """
    return _GIVEN.sub(lambda found: _option(found[1], found[2]), text.replace(_ATTRIBUTE, ""))


def _option(name: str, written: str) -> str:
    try:
        value = ast.literal_eval(written)
    except (ValueError, SyntaxError):  # a bare word: nan
        value = written
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value is True:
        return flag
    if name == "patterns" and isinstance(value, list | tuple):
        return " ".join(f"{flag} {shlex.quote(str(pattern))}" for pattern in value)
    return f"{flag} {_typed(name, value, written)}"


def _typed(name: str, value: object, written: str) -> str:
    if name == "layers" and isinstance(value, Collection):
        return typed_layers(sorted(value))
    if isinstance(value, Mapping):
        return ",".join(f"{key}={number}" for key, number in value.items())
    if isinstance(value, list | tuple):
        return shlex.quote(",".join(map(str, value)))
    return shlex.quote(value) if isinstance(value, str) else written


def usage_error(error: Any) -> tuple[str, str]:
    """What is wrong with the words of a command, and a tip; `error` is Typer's."""
    message = _POSSIBLE.sub("", error.format_message()).strip()
    command = error.ctx.command_path if getattr(error, "ctx", None) else "tdecomp"
    see = f"see '{command} --help'"
    near = list(getattr(error, "possibilities", None) or ())[:3]
    return message, f"did you mean {' or '.join(near)}? {see}" if near else see
