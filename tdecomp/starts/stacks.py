"""Matrices of all weights of a group as one tensor, with the axes that an adapter names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tdecomp._xp import Array
from tdecomp.adapters import Bound
from tdecomp.decomposition import hosvd
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format, Tucker
from tdecomp.linalg import svd_auto
from tdecomp.modes import flatten
from tdecomp.statistics import Gradient

__all__ = ["compressed", "letters_of", "opened", "projected"]

_SPARE = 10
"""Directions of a mode that are kept beyond those that its factor can use."""


def letters_of(bound: Bound) -> tuple[str, ...]:
    """Site modes and weight modes of the opened stack, in order.

    Raises
    ------
    ArgumentError
        The weights do not fill the grid of the adapter's site modes.
    """
    spec, grid = bound.spec, bound.grid
    named = [mode for mode, _ in grid.modes if mode in spec.letters]
    if "site" in spec.letters:
        if named:
            raise ArgumentError(f"{spec.name!r} names 'site' and {named[0]!r}: it cannot be fitted")
        return ("site", *flatten(spec.output))
    sizes = [len(labels) for _, labels in grid.modes]
    if len(set(grid.places)) != grid.n_sites or math.prod(sizes) != grid.n_sites:
        gaps = " x ".join(f"{len(labels)} {mode}" for mode, labels in grid.modes)
        raise ArgumentError(
            f"{spec.name!r} stacks the weights of {grid.name} over {gaps or 'nothing'}, and there"
            f" are {grid.n_sites}: choose targets that fill the grid, or share=() fewer modes"
        )
    return (*(mode for mode, _ in grid.modes), *flatten(spec.output))


def opened(bound: Bound, matrices: Sequence[Gradient]) -> np.ndarray:
    """All matrices of a group as one array, its axes as `letters_of` names them."""
    letters = letters_of(bound)
    whole = [matrix.whole() for matrix in matrices]
    stack = _in_order(bound, [w.T if bound.turned else w for w in whole])  # (site, out, in)
    shape = tuple(bound.sizes.get(n, bound.grid.n_sites) for n in letters)
    if math.prod(shape) != stack.size:
        raise ArgumentError(
            f"{bound.spec.name!r} cuts off what is over of the parts {' '.join(letters)} of a"
            f" weight {bound.matrix_shape}: it cannot be fitted"
        )
    return stack.reshape(shape)


def compressed(bound: Bound, x: np.ndarray) -> Array | Format:
    """`x` in as many directions of every mode as the factor that has it can use, and some more.

    Only modes that stand in one factor without another axis of the stack are cut.
    """
    ranks = _widths(bound, x.shape)
    if not ranks:
        return x
    fit = hosvd(x, rank=tuple(ranks.values()), modes=tuple(ranks))
    return fit.tensor


def projected(bound: Bound, matrices: Sequence[Gradient]) -> Tucker | None:
    """The same of matrices that are held as columns times rows, none of which is written out.

    Returns
    -------
    Tucker or None
        The stack between the leading directions of its columns and rows; None where the adapter
        splits a side of a weight, shares none of the two, or can use most directions of it.
    """
    letters = letters_of(bound)
    pairs = [(m.left, m.right) for m in matrices if m.left is not None]
    if bound.turned or letters[-2:] != ("out", "in") or len(pairs) < len(matrices):
        return None
    sides, n = bound.grid.shape, len(letters)
    widths = _widths(
        bound, (*(bound.sizes.get(c, bound.grid.n_sites) for c in letters[:-2]), *sides)
    )
    if not {n - 2, n - 1} <= widths.keys():
        return None
    both = [(*pair, *m.triangles) for pair, m in zip(pairs, matrices, strict=True)]
    u = _leading([(left, of_rows) for left, _, _, of_rows in both], widths[n - 2])
    v = _leading([(right.T, of_columns) for _, right, of_columns, _ in both], widths[n - 1])
    cores = _in_order(bound, [(u.T @ left) @ (right @ v) for left, right in pairs])
    shape = tuple(bound.sizes.get(c, bound.grid.n_sites) for c in letters[:-2])
    core = cores.reshape(*shape, u.shape[1], v.shape[1])
    return Tucker(letters, core, (*(None for _ in shape), u, v))


def _leading(pairs: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> np.ndarray:
    """Leading left singular vectors of products side by side, ``(n, width)``.

    Each is given as its columns and the triangle of its rows (`Gradient.triangles`).
    """
    ends = np.cumsum([0, *(len(triangle) for _, triangle in pairs)])
    n, dtype = len(pairs[0][0]), np.result_type(*(columns for columns, _ in pairs))
    beside = np.empty((n, ends[-1]), dtype)
    for (columns, triangle), start, end in zip(pairs, ends[:-1], ends[1:], strict=True):
        beside[:, start:end] = columns @ triangle.T
    return np.asarray(svd_auto(beside, width)[0])


def _widths(bound: Bound, shape: Sequence[int]) -> dict[int, int]:
    """Directions to keep of every axis of the stack that is cut."""
    letters, found = letters_of(bound), {}
    for k, letter in enumerate(letters):
        holders = [o for o in bound.spec.terms[0].operands if letter in o.letters]
        if len(holders) != 1 or len(set(holders[0].letters) & set(letters)) != 1:
            continue
        usable = math.prod(bound.sizes[n] for n in holders[0].letters if n != letter)
        if usable + _SPARE < shape[k] // 2:
            found[k] = usable + _SPARE
    return found


def _in_order(bound: Bound, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """One beside the other, the last site mode fastest."""
    stack = np.stack(matrices)
    if "site" in letters_of(bound):
        return stack
    places = np.array(bound.grid.places, dtype=int).reshape(len(stack), -1)
    return stack[np.lexsort(places.T[::-1])]
