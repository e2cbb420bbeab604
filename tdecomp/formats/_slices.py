"""Slicing a network by slicing the arrays that carry a mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from array_api_compat import device

from tdecomp._xp import Array, namespace
from tdecomp.modes import Axis, Equation, flatten

__all__ = ["indicator", "restricted", "take"]


def restricted(
    equation: Equation, arrays: Mapping[str, Array], axis: Axis, rows: range
) -> dict[str, Array] | None:
    """`arrays` cut so that only `rows` of an output axis are left.

    A single row of a split axis is one row of each of its modes. More rows of a split axis are no
    slices of its modes: None.
    """
    names = flatten((axis,))
    if len(names) == 1:
        kept = {names[0]: rows}
    elif len(rows) == 1:
        sizes = equation.sizes([tuple(a.shape) for a in arrays.values()])
        place = np.unravel_index(rows[0], tuple(sizes[n] for n in names))
        kept = {n: range(int(i), int(i) + 1) for n, i in zip(names, place, strict=True)}
    else:
        return None
    cut = dict(arrays)
    for (key, x), term in zip(arrays.items(), equation.terms, strict=True):
        for name in kept.keys() & set(flatten(term)):
            x = take(x, term.index(name), kept[name])
        cut[key] = x
    return cut


def take(x: Array, axis: int, rows: Sequence[int]) -> Array:
    """Some rows of an axis: a view where they are neighbours."""
    if isinstance(rows, range) and rows.step == 1:
        return x[(slice(None),) * axis + (slice(rows.start, rows.stop), ...)]
    xp = namespace(x)
    return xp.take(x, _whole(rows, x), axis=axis)


def indicator(rows: Sequence[int], n: int, like: Array) -> Array:
    """1 where a row is the one named: ``(len(rows), n)``, in the dtype of `like`."""
    xp = namespace(like)
    match = _whole(rows, like)[:, None] == _whole(range(n), like)[None, :]
    return xp.astype(match, like.dtype)


def _whole(rows: Sequence[int], like: Array) -> Array:
    """Whole numbers as an array of the library and device of `like`."""
    return namespace(like).asarray(np.asarray(rows, dtype=np.int64), device=device(like))
