"""One line for an object that holds arrays: what it is and how large, no number of it read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "brief",
    "brief_array",
    "brief_count",
    "brief_dtypes",
    "brief_list",
    "brief_modes",
    "brief_ranks",
]

_DTYPE = re.compile(r"(b?)(float|int|uint|complex)(\d.*)")
_LETTER = {"float": "f", "int": "i", "uint": "u", "complex": "c"}
_MODES = 10  # more are cut out of the middle
_RANKS = 8  # more, one per site, are summed up


def brief(kind: type | str, *parts: str) -> str:
    """``Kind(part; part)``, parts that are empty left out.

    >>> brief("Tucker", "out 64, in 48", "", "905 numbers")
    'Tucker(out 64, in 48; 905 numbers)'
    """
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{name}({'; '.join(filter(None, parts))})"


def brief_array(x: Any) -> str:
    """Dtype and shape of an array: ``f32[64,4]``; anything else by its type.

    >>> import numpy as np
    >>> brief_array(np.zeros((64, 4), np.float32)), brief_array(np.float64(1)), brief_array(None)
    ('f32[64,4]', 'f64[]', 'NoneType')
    """
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        return type(x).__name__
    return f"{brief_dtype(x.dtype)}[{','.join(map(str, x.shape))}]"


def brief_dtype(dtype: Any) -> str:
    """A dtype of any library by letter and bits: ``f32``, ``bf16``, ``c64``; ``bool`` as it is."""
    name = getattr(dtype, "name", None) or str(dtype).rsplit(".", 1)[-1]
    found = _DTYPE.fullmatch(name)
    return f"{found[1]}{_LETTER[found[2]]}{found[3]}" if found else name


def brief_dtypes(arrays: Iterable[Any]) -> str:
    """Every dtype among arrays, in order of appearance: ``f32``, or ``f32, f64``."""
    return ", ".join(dict.fromkeys(brief_dtype(x.dtype) for x in arrays))


def brief_modes(modes: Sequence[str], sizes: Sequence[int]) -> str:
    """Names and sizes of modes: ``layer 8, out 64, in 48``."""
    written = [f"{mode} {n}" for mode, n in zip(modes, sizes, strict=True)]
    return ", ".join(brief_list(written, most=_MODES))


def brief_list(items: Sequence[str], *, most: int) -> list[str]:
    """The items, those in the middle counted instead where there are more than `most`.

    >>> brief_list(["a", "b", "c", "d", "e"], most=4)
    ['a', '.. 3 more ..', 'e']
    """
    if len(items) <= most:
        return list(items)
    front, back = most // 2 - 1, (most - 1) // 2
    left = len(items) - front - back
    return [*items[:front], f".. {left} more ..", *items[len(items) - back :]]


def brief_ranks(ranks: int | Sequence[int], *, per_site: bool = False) -> str:
    """``rank 2,4,4``; of many sites with a rank each their range and their sum.

    >>> brief_ranks((2, 4, 4)), brief_ranks(range(3, 33), per_site=True)
    ('rank 2,4,4', 'ranks 3 to 32, 525 in all')
    """
    if isinstance(ranks, int):
        return f"rank {ranks}"
    if not ranks:
        return ""
    if per_site and len(ranks) > _RANKS:
        least, most = min(ranks), max(ranks)
        spread = f"rank {least} each" if least == most else f"ranks {least} to {most}"
        return f"{spread}, {sum(ranks):,} in all"
    return f"rank {','.join(brief_list([*map(str, ranks)], most=2 * _MODES))}"


def brief_count(n: int, what: str = "number") -> str:
    """A count with its noun: ``905 numbers``, ``1 site``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
