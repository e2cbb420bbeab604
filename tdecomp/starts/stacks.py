"""Matrices of all weights of a group as one tensor, with the axes that an adapter names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tdecomp._xp import Array
from tdecomp.adapters import Bound
from tdecomp.decomposition import hosvd
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.modes import flatten
from tdecomp.statistics import Gradient

__all__ = ["compressed", "letters_of", "opened"]

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
    stack = np.stack([w.T if bound.turned else w for w in whole])  # (site, out, in)
    order = np.lexsort(np.array(bound.grid.places, dtype=int).reshape(len(whole), -1).T[::-1])
    if "site" not in letters:
        stack = stack[order]  # the last site mode fastest
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
    letters = letters_of(bound)
    ranks = {}
    for k, letter in enumerate(letters):
        holders = [o for o in bound.spec.terms[0].operands if letter in o.letters]
        if len(holders) != 1 or len(set(holders[0].letters) & set(letters)) != 1:
            continue
        usable = math.prod(bound.sizes[n] for n in holders[0].letters if n != letter)
        if usable + _SPARE < x.shape[k] // 2:
            ranks[k] = usable + _SPARE
    if not ranks:
        return x
    fit = hosvd(x, rank=tuple(ranks.values()), modes=tuple(ranks))
    return fit.tensor
