"""Single entries of a network: the rows of its arrays at each index, contracted entry by entry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from opt_einsum import get_symbol

from tdecomp._plan import contract_two
from tdecomp._xp import Array, namespace, to_numpy
from tdecomp.errors import ArgumentError
from tdecomp.formats.slices import take
from tdecomp.modes import Equation, flatten

__all__ = ["IndexColumns", "entries_of_network", "is_whole", "read_indices"]

IndexColumns = tuple[np.ndarray, ...]
"""For each mode the index in it of every entry, 0 or more: ``(entry,)``."""

_BLOCK = 1 << 22  # numbers gathered at a time


def is_whole(index: Any) -> bool:
    """Whether this is one index: a whole number, not True or False."""
    return hasattr(index, "__index__") and not isinstance(index, bool | np.bool_)


def read_indices(indices: Any, modes: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    """Indices ``(.., mode)`` as whole numbers from 0 on, each within its mode."""
    host = to_numpy(indices) if hasattr(indices, "dtype") else np.asarray(indices)
    if host.dtype.kind not in "iu" or host.ndim == 0 or host.shape[-1] != len(modes):
        raise ArgumentError(
            f"entries takes whole numbers of shape (.., {len(modes)}), an index for each of the"
            f" modes {' '.join(modes)}; got {host.dtype} of shape {host.shape}"
        )
    found = host.astype(np.int64)
    for k, (mode, n) in enumerate(zip(modes, shape, strict=True)):
        column = found[..., k]
        if column.size and not (-n <= column.min() and column.max() < n):
            worst = column.max() if column.max() >= n else column.min()
            raise ArgumentError(f"no index {worst} in the mode {mode!r} of size {n}")
    return np.where(found < 0, found + np.asarray(shape, dtype=np.int64), found)


def entries_of_network(equation: Equation, arrays: Sequence[Array], index: IndexColumns) -> Array:
    """Entries of a network: ``(entry,)``.

    The terms are taken in one after the other, each by a rank it shares with those before: along a
    chain every entry is a product of a row and a matrix for each core.
    """
    sizes = equation.sizes([tuple(x.shape) for x in arrays])
    places: dict[str, np.ndarray] = {}
    for axis, rows in zip(equation.output, index, strict=True):
        names = flatten((axis,))
        places |= zip(names, np.unravel_index(rows, [sizes[n] for n in names]), strict=True)
    terms = [flatten(term) for term in equation.terms]
    widest = max(math.prod(sizes[n] for n in term if n not in places) for term in terms)
    n_entries, block = len(index[0]), max(1, _BLOCK // max(1, widest))
    parts = []
    for start in range(0, max(1, n_entries), block):
        here = {name: rows[start : start + block] for name, rows in places.items()}
        gathered = [_gathered(term, x, here) for term, x in zip(terms, arrays, strict=True)]
        parts.append(_contracted(gathered))
    return parts[0] if len(parts) == 1 else namespace(*parts).concat(parts, axis=0)


_ENTRY = "entry of"  # no name of a mode has a space outside parentheses
Gathered = tuple[tuple[str, ...], Array]


def _gathered(term: tuple[str, ...], x: Array, places: dict[str, np.ndarray]) -> Gathered:
    """The rows of an array at every index: ``(entry, ranks)``; unchanged without modes."""
    xp = namespace(x)
    own, ranks = [n for n in term if n in places], [n for n in term if n not in places]
    if not own:
        return term, x
    x = xp.permute_dims(x, tuple(term.index(n) for n in (*own, *ranks)))
    sizes = x.shape[: len(own)]
    x = xp.reshape(x, (math.prod(sizes), *x.shape[len(own) :]))
    rows = np.ravel_multi_index([places[n] for n in own], sizes)
    return (_ENTRY, *ranks), take(x, 0, rows)


def _contracted(waiting: list[Gathered]) -> Array:
    """All terms, one after the other; the first that shares a rank comes next."""
    waiting, uses = list(waiting), Counter(n for names, _ in waiting for n in names)
    first = next(k for k, (names, _) in enumerate(waiting) if _ENTRY in names)
    names, x = waiting.pop(first)
    uses.subtract(names)
    while waiting:
        near = (k for k, (other, _) in enumerate(waiting) if set(other) & set(names) - {_ENTRY})
        other, y = waiting.pop(next(near, 0))
        uses.subtract(other)
        every = dict.fromkeys((*names, *other))
        letter = {n: get_symbol(k) for k, n in enumerate(every)}
        left = tuple(n for n in every if n == _ENTRY or uses[n])
        write = lambda names, letter=letter: "".join(letter[n] for n in names)
        x = contract_two(f"{write(names)},{write(other)}->{write(left)}", [x, y])
        names = left
    ranks = tuple(k for k, n in enumerate(names) if n != _ENTRY)
    return namespace(x).sum(x, axis=ranks) if ranks else x
