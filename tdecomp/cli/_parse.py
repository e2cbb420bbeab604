"""Command-line words, read once into checked values."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from tdecomp.errors import ArgumentError

__all__ = [
    "DTYPES",
    "parse_budget",
    "parse_dtype",
    "parse_formats",
    "parse_memory",
    "parse_modes",
    "parse_rank",
    "parse_share",
]

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Storage dtypes by the name torch users know, and their safetensors codes."""

_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_BUDGET = re.compile(r"(\d{1,18}(?:\.\d*)?)\s*(k|M|G)?(B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_budget(text: str, dtype: str) -> int:
    """Numbers to store: ``60000``, ``60k``, ``1.5M``, or bytes at the file's dtype: ``2MB``.

    >>> parse_budget("60k", "F32"), parse_budget("2MB", "BF16")
    (60000, 1000000)
    """
    found = _BUDGET.fullmatch(text.strip())
    if not found:
        raise ArgumentError(
            f"--budget {text!r}: write numbers as 60000, 60k or 1.5M, or bytes as 2MB"
        )
    amount = float(found[1]) * _FACTOR[(found[2] or "").upper()]
    return int(amount / _BYTES[dtype] if found[3] else amount)


def parse_memory(text: str | None) -> int | None:
    """Bytes of memory: ``500MB``, ``2GB``; None for half of what is free, where that is known.

    >>> parse_memory("1.5GB")
    1500000000
    """
    if text is None:
        return _free_memory()
    found = _BUDGET.fullmatch(text.strip())
    if not found or not found[3]:
        raise ArgumentError(f"--max-memory {text!r}: write 500MB or 2GB")
    return int(float(found[1]) * _FACTOR[(found[2] or "").upper()])


def _free_memory() -> int | None:
    """Half of the memory that is free now, on Linux; else half of all there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(free.split()[1]) // 2
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def parse_rank(text: str) -> int | tuple[int, ...] | dict[str, int]:
    """A rank: ``16``, ``64,32`` (one per compressed mode), or ``layer=4,out=64``.

    >>> parse_rank("16"), parse_rank("64,32"), parse_rank("out=64,in=32")
    (16, (64, 32), {'out': 64, 'in': 32})
    """
    items = [item.strip() for item in text.split(",")]
    named = all("=" in item for item in items)
    pairs = [item.split("=", 1) if named else ("", item) for item in items]
    modes = [mode.strip() for mode, _ in pairs]
    try:
        ranks = tuple(int(value) for _, value in pairs)
    except ValueError:
        raise ArgumentError(f"--rank {text!r}: write 16, or 64,32, or layer=4,out=64") from None
    if not named:
        return ranks[0] if len(ranks) == 1 else ranks
    if len(set(modes)) < len(modes):
        raise ArgumentError(f"--rank {text!r} names a mode twice")
    return dict(zip(modes, ranks, strict=True))


def parse_modes(text: str | None) -> tuple[str | int, ...] | None:
    """Modes to compress, names or positions: ``in``, ``out,in``, ``-1``.

    >>> parse_modes("out, in"), parse_modes("-1")
    (('out', 'in'), (-1,))
    """
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if "" in words:
        raise ArgumentError(f"--modes {text!r}: write in, or out,in, or positions such as -1")
    return tuple(int(w) if re.fullmatch(r"-?\d{1,9}", w) else w for w in words)


def parse_formats(text: str | None, known: Collection[str]) -> tuple[str, ...] | None:
    """Some of the known formats: ``svd,tucker2``."""
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            raise ArgumentError(f"--formats {text!r}: choose some of {', '.join(known)}")
    return words


def parse_share(text: str | None) -> tuple[str, ...] | None:
    """Site modes stacked together: ``layer,proj``, or ``none``."""
    if text is None:
        return None
    if text.strip() == "none":
        return ()
    modes = tuple(mode.strip() for mode in text.split(","))
    if "" in modes:
        raise ArgumentError(f"--share {text!r}: write layer,proj, or head, site or none")
    return modes


def parse_dtype(text: str | None) -> str | None:
    """Safetensors code of a dtype name."""
    if text is None:
        return None
    if text not in DTYPES:
        raise ArgumentError(f"--dtype {text!r}: choose {', '.join(DTYPES)}")
    return DTYPES[text]
