"""Names inside equations: new ones that clash with nothing, and the two sides of a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import product
from math import prod

from tdecomp.modes import Axis, Equation, flatten, words, write_axis

__all__ = ["fresh", "narrowest_cut", "rename", "write_axis"]

_ENUMERATED = 12  # terms; longer networks are cut only between neighbours


def fresh(names: Iterable[str], taken: Collection[str]) -> list[str]:
    """`names`, each with underscores appended until `taken` does not have it.

    A joined axis becomes a single word.

    >>> fresh(["r", "s", "(o1 o2)"], ("r", "(s out)"))
    ['r_', 's_', 'o1_o2']
    """
    used, found = words(taken), []
    for name in names:
        name = name.strip("()").replace(" ", "_")
        while name in used or name in found:
            name += "_"
        found.append(name)
    return found


def rename(axes: Sequence[Axis], names: dict[str, str]) -> tuple[Axis, ...]:
    """`axes` with every name looked up in `names`."""
    return tuple(
        names[axis] if isinstance(axis, str) else tuple(names[n] for n in axis) for axis in axes
    )


@lru_cache(maxsize=1024)
def narrowest_cut(
    equation: Equation, shapes: tuple[tuple[int, ...], ...], right: Axis
) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    """Split a network in two where the fewest columns run across.

    Parameters
    ----------
    equation, shapes
        The network.
    right
        The output axis of the right part; all others belong to the left part.

    Returns
    -------
    tuple or None
        Positions of the terms of the right part, and the names that the two parts share; the
        product of their sizes is the rank. None where some term has output modes of both parts.

    Notes
    -----
    Every split is tried up to 12 terms, beyond that only those between neighbouring terms.
    """
    sizes = equation.sizes(shapes)
    names = [frozenset(flatten(term)) for term in equation.terms]
    ours = frozenset(flatten((right,)))
    others = frozenset(flatten(equation.output)) - ours
    best, width = None, 0
    for sides in _splits(len(names)):
        a = frozenset().union(*(n for n, side in zip(names, sides, strict=True) if not side))
        b = frozenset().union(*(n for n, side in zip(names, sides, strict=True) if side))
        if a & ours or b & others:
            continue
        cut = prod(sizes[n] for n in a & b)
        if best is None or cut < width:
            where = tuple(k for k, side in enumerate(sides) if side)
            best, width = (where, tuple(sorted(a & b))), cut
    return best


def _splits(n: int) -> Iterable[tuple[bool, ...]]:
    if n <= _ENUMERATED:
        return product((False, True), repeat=n)
    fronts = [tuple(k >= i for k in range(n)) for i in range(n + 1)]
    return fronts + [tuple(not side for side in front) for front in fronts]
