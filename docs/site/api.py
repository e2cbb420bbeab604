"""The reference of the Python interface, from docstrings, with links to pages that show a use."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import theory


def _theory() -> list[str]:
    """The modules of `theory` that say what is public in them."""
    names = sorted(f"theory.{info.name}" for info in iter_modules(theory.__path__))
    return [name for name in names if hasattr(importlib.import_module(name), "__all__")]


_MODULES = {
    "tdecomp": "Decompose, look, draw",
    "tdecomp.formats": "Formats and what is done with them",
    "tdecomp.modes": "Named modes and equations",
    "tdecomp.adapters": "Adapters as data",
    "tdecomp_torch": "Adapters on torch models",
    "tdecomp_torch.peft": "Adapters as a method of PEFT",
    "tdecomp_torch.trainer": "Adapters under Trainer",
    "tdecomp.jobs": "The commands as functions",
    "tdecomp.stack": "Weights by name",
    "tdecomp.files": "Files",
    "tdecomp.statistics": "What a model sees",
    "tdecomp.starts": "Starts from data",
    "tdecomp.linalg": "Linear algebra",
    "tdecomp.tensor": "Arrays as tensors",
    "tdecomp.errors": "Errors",
    **dict.fromkeys(_theory(), "Statements that are checked"),
}
_CALL = r"(?<![\w.])(?:td|tdecomp|tdecomp_torch|jobs)\.{name}\b"


def api_pages(docs: Path) -> Iterator[tuple[str, str]]:
    """File names and their text."""
    shown = _shown_in(docs)
    names = "\n".join(_MODULES)
    listed = "\n".join(f"- [{name}]({name}.md): {text}" for name, text in _MODULES.items())
    toctree = f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    yield "api/index.md", f"# Python\n\n{listed}\n\n{toctree}"
    homes: dict[int, str] = {}
    for name, text in _MODULES.items():
        yield f"api/{name}.md", _page(name, text, shown, homes)


def _shown_in(docs: Path) -> Mapping[str, str]:
    """The text of every page that has examples, by the path that pages of this folder link to."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md"))}
    for path in sorted((docs / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        pages[path] = "".join("".join(cell["source"]) for cell in cells)
    return {f"../{path.relative_to(docs).as_posix()}": text for path, text in pages.items()}


def _page(name: str, title: str, shown: Mapping[str, str], homes: dict[int, str]) -> str:
    """All public names of a module; what an earlier page describes is a link there."""
    module = importlib.import_module(name)
    lines = [f"# {name}", "", f"{title}.", ""]
    for public in sorted(module.__all__, key=str.lower):
        thing = getattr(module, public)
        if not _is_documented(thing):
            continue
        home = homes.setdefault(id(thing), name)
        lines += [f"## {public}", ""]
        if home == name:
            lines += [*_directive(name, public, thing), "", *_uses(public, shown)]
        else:
            lines += [f"Described in [{home}]({home}.md).", ""]
    return "\n".join(lines)


def _is_documented(thing: Any) -> bool:
    return (inspect.isclass(thing) or inspect.isroutine(thing)) and bool(inspect.getdoc(thing))


def _directive(module: str, public: str, thing: Any) -> Iterator[str]:
    yield "```{eval-rst}"
    if inspect.isclass(thing):
        yield from (f".. autoclass:: {module}.{public}", "   :members:")
    else:
        yield f".. autofunction:: {module}.{public}"
    yield "```"


def _uses(public: str, shown: Mapping[str, str]) -> Iterator[str]:
    """Links to the pages that use it."""
    call = re.compile(_CALL.format(name=re.escape(public)))
    found = [path for path, text in shown.items() if call.search(text)]
    if found:
        links = ", ".join(f"[{Path(path).stem}]({path})" for path in found)
        yield from (f"Used in: {links}.", "")
