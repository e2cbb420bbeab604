"""What may have been meant by a name that nobody knows, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["among", "nearest"]

_FEW = 12  # names that are written out
_NEAREST = 3


def nearest(word: str, known: Iterable[object]) -> str:
    """Suggest what may have been meant: ``", did you mean 'layer'?"``, or nothing."""
    near = difflib.get_close_matches(word, sorted(map(str, known)), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def among(word: str, known: Iterable[object], *, most: int = _FEW) -> str:
    """The known names, joined: all of a few, of many the three nearest and how many more.

    >>> among("in", ["out", "in"])
    'out, in'
    >>> among("lotrr", ["lora", "lotr", "dora", "vera", "tlora"], most=4)
    'lotr, lora, tlora and 2 more'
    """
    names = list(map(str, known))
    if len(names) <= most:
        return ", ".join(names)
    near = difflib.get_close_matches(word, names, n=_NEAREST, cutoff=0.0)
    return f"{', '.join(near)} and {len(names) - len(near)} more"
