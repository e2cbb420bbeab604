"""Modules that one of a model and an adapter holds side by side and the other one by one.

Which they are is in the rows of `tdecomp.files.fusions`: q, k and v, gate and up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

from tdecomp.collections import AdapterPair
from tdecomp.files.fusions import FUSIONS, Fusion
from tdecomp.files.loaders.loader import LoaderPlace
from tdecomp.files.loaders.pair_rows import cut, joined

__all__ = ["part_of", "parts_in", "put_together"]

Find = Callable[[str], LoaderPlace | None]
"""The place that a stem means."""

_PACKED = tuple(row for row in FUSIONS if not row.experts)
_ALIKE = {"k_proj": "v_proj", "v_proj": "k_proj", "gate_proj": "up_proj", "up_proj": "gate_proj"}
"""Parts with as many rows as another."""


def part_of(stem: str, find: Find) -> tuple[str, Fusion, str] | None:
    """Stem of the module that holds a part, the row that says so, and which part it is.

    A module that the model has by itself is a part of none.
    """
    parent, _, last = stem.rpartition(".")
    for row in _PACKED:
        if last in row.parts and parent.endswith(f".{row.parent}"):
            place = find(f"{parent}.{row.fused}")
            if place is not None and place.idle is None and place.sizes:
                return place.stem, row, last
    return None


def parts_in(stem: str, pair: AdapterPair, find: Find) -> dict[str, AdapterPair]:
    """The pairs of the parts that a fused module's pair holds, by stem; empty if it holds none."""
    parent, _, last = stem.rpartition(".")
    for row in _PACKED:
        if last != row.fused or not parent.endswith(f".{row.parent}"):
            continue
        places = [find(f"{parent}.{part}") for part in row.parts]
        known = [p for p in places if p is not None and p.idle is None and p.sizes]
        sizes = [place.sizes[0] for place in known]
        columns = {in_ for _, in_ in sizes}
        if len(known) == len(row.parts) and columns == {pair.shape[1]}:
            ends = list(accumulate(out for out, _ in sizes))
            if ends[-1] == pair.shape[0]:
                starts = [0, *ends[:-1]]
                rows = [slice(i, j) for i, j in zip(starts, ends, strict=True)]
                return {p.stem: cut(pair, r) for p, r in zip(known, rows, strict=True)}
    return {}


def put_together(
    row: Fusion, parts: Mapping[str, AdapterPair], size: tuple[int, int]
) -> AdapterPair | None:
    """The pair of the module that holds some parts, (out, in); None where they do not fit."""
    out, in_ = size
    sizes = _sizes(row, {part: pair.shape[0] for part, pair in parts.items()}, out)
    if sizes is None or any(pair.shape[1] != in_ for pair in parts.values()):
        return None
    ends = dict(zip(row.parts, accumulate(sizes[part] for part in row.parts), strict=True))
    rows = [slice(ends[part] - sizes[part], ends[part]) for part in parts]
    return joined(list(parts.values()), rows, out)


def _sizes(row: Fusion, known: Mapping[str, int], out: int) -> dict[str, int] | None:
    """Rows of every part; what is not there is as its like, or shares what is left."""
    sizes = dict(known)
    for part in row.parts:
        if part not in sizes and _ALIKE.get(part) in known:
            sizes[part] = known[_ALIKE[part]]
    missing = [part for part in row.parts if part not in sizes]
    left = out - sum(sizes.values())
    if missing and (left <= 0 or left % len(missing)):
        return None
    sizes |= dict.fromkeys(missing, left // len(missing) if missing else 0)
    return sizes if sum(sizes.values()) == out else None
