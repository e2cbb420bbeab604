"""Commands of other packages: entry points of the group ``tdecomp.commands``.

The core never imports torch. Commands that do live in `tdecomp_torch`, and are found as those of
any other package are: by what it says in its ``pyproject.toml``. An entry point is an `Extension`,
in a file that is loaded whenever the command line is, and that imports little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from tdecomp.cli.options import examples
from tdecomp.errors import ArgumentError

__all__ = ["GROUP", "Extension", "add_commands"]

GROUP = "tdecomp.commands"
"""Group of entry points."""


@dataclass(frozen=True)
class Extension:
    """A command of another package.

    Attributes
    ----------
    function
        As Typer takes it; arguments and options as `tdecomp.cli.options` has them, its docstring
        the help.
    examples
        Two, without the ``tdecomp`` before them.
    """

    function: Callable[..., Any]
    examples: tuple[str, ...]


def add_commands(app: typer.Typer) -> None:
    """Add every command that an installed package brings; own names stay."""
    own = {command.name or getattr(command.callback, "__name__", "") for command in _own(app)}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name not in own:
            own.add(entry.name)
            found = _loaded(entry)
            add = app.command(entry.name, no_args_is_help=True, epilog=examples(*found.examples))
            add(found.function)


def _own(app: typer.Typer) -> list[Any]:
    return list(app.registered_commands)


def _loaded(entry: EntryPoint) -> Extension:
    """The command of an entry point; of one that cannot be loaded, a command that says so."""
    try:
        found = entry.load()
        if isinstance(found, Extension):
            return found
        reason = f"{entry.value} is no tdecomp.cli.extensions.Extension"
    except Exception as error:  # of a stranger's package
        reason = f"{type(error).__name__}: {error}"

    def broken() -> None:
        raise ArgumentError(f"the command {entry.name!r} of another package is broken: {reason}")

    broken.__doc__ = f"Cannot be loaded: {reason}."
    return Extension(broken, (entry.name,))
