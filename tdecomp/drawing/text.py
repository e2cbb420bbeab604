"""Widths of text in a font whose letters are equally wide, and text that fits a width."""

from __future__ import annotations

import unicodedata

__all__ = ["FONT", "clean", "cut", "width", "wrap"]

FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_LETTER = 0.62  # width over size, that of the widest of these fonts


def clean(text: str) -> str:
    r"""The text in one line, without what no XML file can hold.

    >>> clean("a\x00b\nc")
    'a�b c'
    """
    line = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn") else c for c in line)


def cut(text: str, most: int = 24) -> str:
    """The text in one line, its end left out where there are more letters than `most`."""
    line = clean(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def width(text: str, size: float) -> float:
    """Width in pixels; East Asian letters count two."""
    letters = sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
    return letters * size * _LETTER


def wrap(text: str, most: float, size: float) -> list[str]:
    """Lines no wider than `most`, broken between words, or inside a word that is wider."""
    lines = [""]
    for word in clean(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if width(longer, size) <= most:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if width(lines[-1] + letter, size) > most:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
