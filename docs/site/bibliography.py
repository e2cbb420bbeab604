"""The bibliography as a page, from docs/references.bib."""

from __future__ import annotations

import re
from pathlib import Path
from unicodedata import normalize
from urllib.parse import quote

_ENTRY = re.compile(r"@\w+\{(\w+),(.*?)\n\}", re.S)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*?)\},?\s*$", re.M | re.S)
_ACCENT = re.compile(r"\\([`'^\"~]|[kcv](?=\{))\{?(\w)\}?")
_MARKS = dict(zip("`'^\"~kcv", "\u0300\u0301\u0302\u0308\u0303\u0328\u0327\u030c", strict=True))
_SIGNS = {r"\ldots": "...", r"\times": "×", r"\sqrt": "√", "--": "-", "$": ""}


def bibliography_page(path: Path) -> str:
    """Every entry under its key, the keys in the order of the alphabet."""
    lines = [
        "# Bibliography",
        "",
        "Keys stand in brackets in the docstrings and pages, `[halko2011]`. The file is"
        " [references.bib](references.bib). The link at the end is the record by which an entry was"
        " verified; a few were found in the reference lists of others only, and what was found"
        " nowhere is marked as unverified.",
        "",
    ]
    for key, body in sorted(entries(path).items()):
        lines += [f"({key})=", f"**[{key}]** {_entry(body)}", ""]
    return "\n".join(lines)


def entries(path: Path) -> dict[str, str]:
    """The fields of every entry, as written, by its key."""
    return dict(_ENTRY.findall(path.read_text(encoding="utf-8")))


def _entry(body: str) -> str:
    written = {name.lower(): " ".join(text.split()) for name, text in _FIELD.findall(body)}
    fields = {name: _plain(text) for name, text in written.items()}
    authors = [_turned(name) for name in fields.get("author", "").split(" and ") if name]
    place = [fields.get(k, "") for k in ("journal", "booktitle", "publisher", "year")]
    parts = [", ".join(authors), f"*{fields['title']}*" if "title" in fields else "", *place]
    return ". ".join([*filter(None, parts), _verified(written)]) + "."


def _verified(written: dict[str, str]) -> str:
    """The record that was seen, as a link; or that none was."""
    kind, _, name = written.get("verified", "").partition(":")
    match kind:
        case "doi":
            return f"[doi:{_plain(name)}](https://doi.org/{quote(name)})"
        case "arxiv":
            return f"[arXiv:{name}](https://arxiv.org/abs/{name})"
        case "url":
            return f"[Record]({name})"
        case "reference lists":
            return "Verified in reference lists"
    preprint = f"arXiv {written['eprint']}, " if "eprint" in written else ""
    return f"{preprint}**unverified**"


def _turned(name: str) -> str:
    last, comma, first = name.partition(", ")
    return f"{first} {last}" if comma else name


def _plain(text: str) -> str:
    """Without the marks of TeX; what Markdown would read as marks is escaped."""
    text = _ACCENT.sub(lambda found: normalize("NFC", found[2] + _MARKS[found[1]]), text)
    for written, sign in _SIGNS.items():
        text = text.replace(written, sign)
    return re.sub(r"([*_<\[\]])", r"\\\1", re.sub(r"[{}]", "", text))
