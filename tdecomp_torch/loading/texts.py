"""Texts from a file as batches of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tdecomp.errors import FileError

__all__ = ["batches_of", "read_texts"]

_LINES = 1_000_000


def read_texts(file: Path, most: int, *, seed: int) -> list[str]:
    """Lines of a file that are not empty: all, or so many at random of the first million.

    Raises
    ------
    FileError
        It cannot be read as UTF-8, or has no such line.
    """
    rng = np.random.default_rng(seed)
    found: list[str] = []
    try:
        with file.open(encoding="utf-8") as lines:
            texts = (line.strip() for line in lines if line.strip())
            for k, text in enumerate(islice(texts, _LINES)):
                if k < most:
                    found.append(text)
                elif (place := int(rng.integers(k + 1))) < most:  # each line with equal chance
                    found[place] = text
    except (OSError, UnicodeDecodeError) as error:
        why = "is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise FileError(
            f"{file} {why or 'cannot be read'}: give a file with one text a line"
        ) from None
    if not found:
        raise FileError(f"{file} has no text: give a file with one text a line")
    return found


def batches_of(
    tokens: Any, texts: Sequence[str], *, batch: int, length: int, seed: int
) -> list[dict[str, Any]]:
    """Texts in a random order as padded batches, each text cut to `length` tokens."""
    order = np.random.default_rng(seed).permutation(len(texts))
    found = []
    for start in range(0, len(order), batch):
        chosen = [texts[k] for k in order[start : start + batch]]
        padded = tokens(
            chosen, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        found.append(dict(padded))
    return found
