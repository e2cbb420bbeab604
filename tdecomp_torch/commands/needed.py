"""What a command needs that the core does not."""

from __future__ import annotations

from importlib.util import find_spec

from tdecomp.errors import ArgumentError

__all__ = ["check_installed"]


def check_installed(command: str) -> None:
    """Refuse a command whose libraries are not there, before anything is read.

    Raises
    ------
    ArgumentError
        Names what is missing and how to get it.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise ArgumentError(
            f"'tdecomp {command}' runs models and needs {' and '.join(missing)}",
            tip="pip install 'tdecomp-toolkit[peft]'",
        )
