"""Expected values of contractions of Gaussian tensors, by Wick's theorem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

import sympy

from theory.formulas import volume

__all__ = ["Copy", "expected"]

Copy = tuple[str, tuple[str, ...]]
"""A tensor by its name, and a letter for each of its axes."""


def expected(copies: Sequence[Copy], sizes: dict[str, str]) -> sympy.Expr:
    """Mean of the sum, over all letters, of a product of Gaussian tensors.

    Every name is one tensor of independent normal entries with mean 0 and variance 1; it may stand
    in the product several times. By Wick's (Isserlis') theorem the mean is a sum over all ways to
    pair the copies of each tensor. A pair makes the letters of both copies equal, axis by axis, and
    what is left to be summed is free: a product of sizes.

    Parameters
    ----------
    copies
        The factors of the product.
    sizes
        Name of the size of each letter.

    Notes
    -----
    Source: Isserlis [isserlis1918].

    Examples
    --------
    The squared Frobenius norm of ``A Aᵀ``, for A of n rows and r columns:

    >>> letters = {"i": "n", "j": "n", "k": "r", "l": "r"}
    >>> a = [("a", ("i", "k")), ("a", ("j", "k")), ("a", ("i", "l")), ("a", ("j", "l"))]
    >>> sympy.factor(expected(a, letters))
    n*r*(n + r + 1)
    """
    places = defaultdict(list)
    for name, letters in copies:
        places[name].append(letters)
    ways = product(*(list(_pairings(where)) for where in places.values()))
    return sympy.Add(*(_free(sum(way, []), sizes) for way in ways))


Letters = tuple[str, ...]


def _pairings(places: Sequence[Letters]) -> Iterator[list[tuple[Letters, Letters]]]:
    """Every way to put the places in pairs; none for an odd number."""
    if not places:
        yield []
        return
    first, *rest = places
    for k, other in enumerate(rest):
        for more in _pairings(rest[:k] + rest[k + 1 :]):
            yield [(first, other), *more]


def _free(pairs: Sequence[tuple[Letters, Letters]], sizes: dict[str, str]) -> sympy.Expr:
    """Product of the sizes of the letters that are left when those of every pair are equal."""
    home = {letter: letter for letter in sizes}

    def root(letter: str) -> str:
        while home[letter] != letter:
            letter = home[letter]
        return letter

    for left, right in pairs:
        for a, b in zip(left, right, strict=True):
            home[root(a)] = root(b)
    return volume(sizes[letter] for letter in home if home[letter] == letter)
