"""The reference of the command line, made from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text
from typer.main import get_command

from tdecomp.cli.commands import app

_GENERAL = "Arguments and options"


def commands_page() -> str:
    """Every command with its arguments, options by purpose, and examples."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    lines = ["# Commands", "", "Made from `tdecomp --help`.", ""]
    for name, command in shown.items():
        lines += _command(name, command)
    return "\n".join(lines)


def _command(name: str, command: Any) -> Iterator[str]:
    yield from (f"## {name}", "", _plain(command.help), "")
    usage = [f"tdecomp {name}", *(_argument(p) for p in command.params if not _is_option(p))]
    yield from ("```text", " ".join([*usage, "[OPTIONS]"]), "```", "")
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            panel = getattr(parameter, "rich_help_panel", None) or _GENERAL
            panels.setdefault(panel, []).append(parameter)
    for panel, parameters in panels.items():
        yield from (f"**{panel}**", "")
        for parameter in parameters:
            yield from _parameter(parameter)
        yield ""
    examples = [line.strip() for line in command.epilog.splitlines()[1:]]
    yield from ("Examples:", "", "```console", *(f"$ {line}" for line in examples), "```", "")


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option"


def _argument(parameter: Any) -> str:
    text = parameter.metavar or parameter.name.upper()
    text = f"{text}..." if parameter.nargs != 1 else text
    return text if parameter.required else f"[{text}]"


def _parameter(parameter: Any) -> Iterator[str]:
    """A list item; choices are a list below it."""
    if _is_option(parameter):
        value = (parameter.metavar or "").strip()
        written = " ".join(filter(None, [", ".join(parameter.opts), value]))
    else:
        written = _argument(parameter)
    first, *choices = _plain(parameter.help or "").split("\n\n")
    first = f"{first.rstrip(':')}:" if choices else first
    required = " Required." if parameter.required and _is_option(parameter) else ""
    default = parameter.default
    shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    told = f" (default `{default}`)" if shown else ""
    yield f"- `{written}`{told}: {first}{required}"
    yield from (f"  - {choice}" for choice in choices)


def _plain(text: str) -> str:
    """Help without the marks of the terminal; what Markdown would read as marks is escaped."""
    plain = Text.from_markup(text).plain
    return plain.replace("*", r"\*").replace("<", r"\<").replace("_", r"\_")
