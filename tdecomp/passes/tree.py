"""Sums whose bits do not depend on the order in which their terms arrive, or on who adds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from tdecomp._xp import Array
from tdecomp.tasks import sendable

__all__ = ["Addable", "TreeSum", "added"]

_TOGETHER = 64  # terms


class Addable(Protocol):
    """What adds up to the same, in whatever order."""

    def __add__(self, other: Self, /) -> Self: ...


Addend = TypeVar("Addend", bound=Addable)


def added(terms: Iterable[Addend]) -> Addend:
    """The sum of one or more terms, some that are near first: each addition copies what it adds.

    >>> added([[1], [2], [3]])
    [1, 2, 3]
    """
    sums: list[Addend] = []  # of all before, of those that are near
    for n, term in enumerate(terms):
        if n % _TOGETHER == 0:
            sums = [*_one(sums), term]
        else:
            sums[-1] = sums[-1] + term
    (total,) = _one(sums)
    return total


def _one(sums: list[Addend]) -> list[Addend]:
    return [sums[0] + sums[1]] if len(sums) > 1 else sums


@sendable
@dataclass(frozen=True)
class TreeSum:
    """The sum of some terms, numbered from 0, as far as they are there.

    Terms 0 and 1 are added to each other, 2 and 3, then what 0 to 3 gave to what 4 to 7 did, always
    in pairs. Of neighbours in a row no more are held than their number has binary digits.

    Attributes
    ----------
    nodes
        ``(level, i)`` -> the sum of the ``2^level`` terms from ``i 2^level`` on.

    Examples
    --------
    >>> terms = [TreeSum.of(i, 10.0**-i) for i in range(5)]
    >>> there = terms[3] + terms[0] + terms[4]
    >>> (terms[1] + there + terms[2]).value == (terms[2] + (terms[1] + there)).value
    True
    """

    nodes: Mapping[tuple[int, int], Array] = field(default_factory=dict)

    @classmethod
    def of(cls, i: int, term: Array) -> TreeSum:
        """The i-th term alone."""
        return cls({(0, i): term})

    def __add__(self, other: TreeSum) -> TreeSum:
        nodes = dict(self.nodes)
        for (level, i), value in other.nodes.items():
            while (level, i ^ 1) in nodes:
                near = nodes.pop((level, i ^ 1))
                value = value + near if i % 2 == 0 else near + value
                level, i = level + 1, i // 2
            nodes[level, i] = value
        return TreeSum(nodes)

    @property
    def value(self) -> Array:
        """The sum."""
        first, *rest = (self.nodes[key] for key in sorted(self.nodes, reverse=True))
        for value in rest:
            first = first + value
        return first
