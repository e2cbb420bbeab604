"""Slicing a network by slicing the arrays that carry a mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from array_api_compat import device

from tdecomp._xp import Array, namespace
from tdecomp.modes import Axis, Equation, flatten, write_axis

__all__ = ["gathered", "owners", "restricted", "take"]

Positions = Sequence[int] | np.ndarray


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


def gathered(
    equation: Equation, arrays: Sequence[Array], position: int, rows: range
) -> tuple[Equation, tuple[Array, ...]]:
    """A network cut so that only `rows` of a split axis are left; the axis is then one mode.

    Every array that carries parts of the axis holds, for each row, its numbers at that row's place:
    ``h r, d r -> (h d)`` becomes ``p r, p r -> p`` with ``p`` over the rows.
    """
    axis = flatten((equation.output[position],))
    name = write_axis(axis)
    sizes = equation.sizes([tuple(x.shape) for x in arrays])
    places = dict(zip(axis, np.unravel_index(rows, [sizes[n] for n in axis]), strict=True))
    terms, cut = [], []
    for term, x in zip(map(flatten, equation.terms), arrays, strict=True):
        own, others = [n for n in axis if n in term], [n for n in term if n not in axis]
        if own:
            xp = namespace(x)
            x = xp.permute_dims(x, tuple(term.index(n) for n in (*others, *own)))
            x = xp.reshape(x, (*(sizes[n] for n in others), -1))
            flat = np.ravel_multi_index([places[n] for n in own], [sizes[n] for n in own])
            x, term = take(x, len(others), flat), (*others, name)
        terms.append(term)
        cut.append(x)
    output = (*equation.output[:position], name, *equation.output[position + 1 :])
    return Equation(tuple(terms), output), tuple(cut)


def take(x: Array, axis: int, rows: Positions) -> Array:
    """Some rows of an axis: a view where they are neighbours."""
    if isinstance(rows, range) and rows.step == 1:
        return x[(slice(None),) * axis + (slice(rows.start, rows.stop), ...)]
    xp = namespace(x)
    return xp.take(x, _whole(rows, x), axis=axis)


def _indicator(rows: Positions, n: int, like: Array) -> Array:
    """1 where a row is the one named: ``(len(rows), n)``, in the dtype of `like`."""
    xp = namespace(like)
    match = _whole(rows, like)[:, None] == _whole(range(n), like)[None, :]
    return xp.astype(match, like.dtype)


def owners(sites: Sequence[int], ranks: Sequence[int], like: Array) -> tuple[Array, ...]:
    """For each site mode 1 where a column belongs to a row: ``(n, R)``, in the dtype of `like`.

    The columns of a site are neighbours, the sites follow in C order.
    """
    owner = np.repeat(np.arange(len(ranks)), ranks)
    index = np.unravel_index(owner, tuple(sites)) if sites else ()
    return tuple(_indicator(own, n, like).T for own, n in zip(index, sites, strict=True))


def _whole(rows: Positions, like: Array) -> Array:
    """Whole numbers as an array of the library and device of `like`."""
    return namespace(like).asarray(np.asarray(rows, dtype=np.int64), device=device(like))
