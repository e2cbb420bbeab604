"""Command-line words, read once into checked values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from tdecomp.errors import ArgumentError
from tdecomp.stack import Selection, parse_layers, parse_targets

__all__ = [
    "check_one_of",
    "parse_budget",
    "parse_count",
    "parse_memory",
    "parse_modes",
    "parse_names",
    "parse_part",
    "parse_rank",
    "parse_selection",
    "parse_share",
]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BUDGET = re.compile(r"(\d{1,18}(?:\.\d*)?)\s*(k|M|G)?(B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_budget(text: str, dtype: str) -> int:
    """Numbers to store: ``60000``, ``60k``, ``1.5M``, or bytes at the file's dtype: ``2MB``.

    >>> parse_budget("60k", "float32"), parse_budget("2MB", "bfloat16")
    (60000, 1000000)
    """
    found = _BUDGET.fullmatch(text.strip())
    if not found:
        raise ArgumentError(
            f"--budget {shlex.quote(text)}: write numbers as 60000, 60k or 1.5M, or bytes as 2MB"
        )
    amount = float(found[1]) * _FACTOR[(found[2] or "").upper()]
    return int(amount / _BYTES.get(dtype, 4) if found[3] else amount)


def parse_count(option: str, text: str) -> int:
    """A number of things: ``50000``, ``200k``.

    >>> parse_count("--tokens", "1.5k")
    1500
    """
    found = _BUDGET.fullmatch(text.strip())
    if not found or found[3] or float(found[1]) == 0:
        raise ArgumentError(f"{option} {shlex.quote(text)}: write 50000, 200k or 1.5M")
    return max(int(float(found[1]) * _FACTOR[(found[2] or "").upper()]), 1)


def parse_part(text: str | None) -> tuple[int, int] | None:
    """Which of how many: ``3/8``.

    >>> parse_part("3/8")
    (3, 8)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ArgumentError(f"--part {shlex.quote(text)}: write 1/8 to 8/8 for eight parts")
    return int(found[1]), int(found[2])


def parse_memory(text: str | None) -> int | None:
    """Bytes of memory: ``500MB``, ``2GB``.

    >>> parse_memory("1.5GB")
    1500000000
    """
    if text is None:
        return None
    found = _BUDGET.fullmatch(text.strip())
    if not found or not found[3]:
        raise ArgumentError(f"--max-memory {shlex.quote(text)}: write 500MB or 2GB")
    return int(float(found[1]) * _FACTOR[(found[2] or "").upper()])


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
        raise ArgumentError(
            f"--rank {shlex.quote(text)}: write 16, or 64,32, or layer=4,out=64"
        ) from None
    if not named:
        return ranks[0] if len(ranks) == 1 else ranks
    if len(set(modes)) < len(modes):
        raise ArgumentError(f"--rank {shlex.quote(text)} names a mode twice")
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
        raise ArgumentError(
            f"--modes {shlex.quote(text)}: write in, or out,in, or positions such as -1"
        )
    return tuple(int(w) if re.fullmatch(r"-?\d{1,9}", w) else w for w in words)


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Names in a list: ``svd,tucker2``."""
    return None if text is None else tuple(word.strip() for word in text.split(","))


def parse_share(text: str | None) -> tuple[str, ...] | None:
    """Site modes stacked together: ``layer,proj``, or ``none``."""
    if text is None:
        return None
    if text.strip() == "none":
        return ()
    modes = tuple(mode.strip() for mode in text.split(","))
    if "" in modes:
        raise ArgumentError(f"--share {shlex.quote(text)}: write layer,proj, or head, site or none")
    return modes


def parse_selection(
    targets: str | None,
    exclude: str | None,
    layers: str | None,
    pattern: Sequence[str] | None,
    share: str | None,
) -> Selection:
    """Which sites, and how they are stacked."""
    return Selection(
        targets=None if targets is None else parse_targets(targets),
        exclude=None if exclude is None else parse_targets(exclude),
        layers=None if layers is None else parse_layers(layers),
        patterns=tuple(pattern or ()),
        share=parse_share(share),
    )


def check_one_of(options: dict[str, object]) -> None:
    """Refuse none or several of options that exclude each other."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        *others, last = options
        raise ArgumentError(
            f"give exactly one of {', '.join(others)} and {last}, "
            f"got {' and '.join(given) or 'none'}",
            tip="" if given else "add --budget 60k, for example",
        )
