"""Citations such as ``[halko2011]`` as links to the bibliography, on pages and in docstrings."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from bibliography import entries

MARKDOWN, DOCSTRING = "{ref}", ":ref:"  # the same role in both languages
_CITATION = re.compile(
    r"^ *```.*?^ *```|``.*?``|`[^`\n]*`"  # code stays as it is
    r"|\[(?P<key>[a-z]+\d{4}[a-z]*)\](?![(:\[])",
    re.M | re.S,
)


def linked(text: str, keys: Collection[str], role: str = MARKDOWN) -> str:
    """Text whose citations are links; what is no key of the bibliography stays text."""

    def one(found: re.Match[str]) -> str:
        key = found["key"]
        return f"{role}`[{key}] <{key}>`" if key in keys else found[0]

    return _CITATION.sub(one, text)


def link_citations(folder: Path, keys: Collection[str]) -> None:
    """Link those of all pages and notebooks below a folder."""
    for path in folder.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(linked(text, keys), encoding="utf-8")
    for path in folder.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = linked("".join(cell["source"]), keys)
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def link_docstrings(bibliography: Path):
    """What autodoc calls with the lines of each docstring, which it may change."""
    keys = entries(bibliography)

    def process(app, what, name, thing, options, lines: list[str]) -> None:
        lines[:] = linked("\n".join(lines), keys, DOCSTRING).split("\n")

    return process
