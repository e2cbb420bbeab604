"""What `als` is asked for, checked: the terms of all addends and the size of every name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats.equations import write_axis
from tdecomp.modes import Axis, Equation, flatten, parse_modes

__all__ = ["Ansatz", "parse", "positions_of"]


@dataclass(frozen=True)
class Ansatz:
    """A sum of networks over one output.

    Attributes
    ----------
    addends
        Their equations. A mode that an addend lacks has a term of its own at its end: ones.
    n_terms
        How many terms of each addend were written; the others are ones.
    """

    addends: tuple[Equation, ...]
    n_terms: tuple[int, ...]

    @property
    def output(self) -> tuple[Axis, ...]:
        """Axes of the array."""
        return self.addends[0].output

    @property
    def terms(self) -> tuple[tuple[str, ...], ...]:
        """Names of all terms, over all addends."""
        return tuple(flatten(term) for e in self.addends for term in e.terms)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the terms of each addend."""
        found, start = [], 0
        for equation in self.addends:
            found.append(tuple(range(start, start + len(equation.terms))))
            start += len(equation.terms)
        return tuple(found)

    @property
    def written(self) -> tuple[int, ...]:
        """Position of every term that was written, in order; `frozen` and `tied` count these."""
        return tuple(
            k for block, n in zip(self.blocks, self.n_terms, strict=True) for k in block[:n]
        )

    @property
    def letters(self) -> tuple[str, ...]:
        """Rank names, in order of appearance."""
        modes = flatten(self.output)
        return tuple(dict.fromkeys(n for term in self.terms for n in term if n not in modes))

    def __str__(self) -> str:
        sides = [str(e).partition(" -> ") for e in self.addends]
        return f"{' + '.join(left for left, _, _ in sides)} -> {sides[0][2]}"

    def sizes(
        self, shape: Sequence[int], given: Mapping[str, int], frozen: Mapping[int, Array]
    ) -> dict[str, int]:
        """Size of every mode, and of the ranks that `given` or a frozen array fixes."""
        known = set(flatten(self.output)) | set(self.letters)
        if unknown := [n for n in given if n not in known]:
            raise ArgumentError(f"sizes names {unknown[0]!r}, which is not in '{self}'")
        for name, n in given.items():
            if not _is_count(n):
                raise ArgumentError(f"sizes[{name!r}]={n!r} must be a whole number, 1 or more")
        if len(shape) != len(self.output):
            raise DataError(
                f"an array of shape {tuple(shape)} has {len(shape)} modes, the output of '{self}'"
                f" has {len(self.output)}"
            )
        size = {n: int(given[n]) for n in self.letters if n in given}
        for axis, n in zip(self.output, shape, strict=True):
            size |= _split(axis, n, given)
        for k, array in frozen.items():
            term = self.terms[k]
            if len(array.shape) != len(term):
                raise ArgumentError(
                    f"the frozen array of shape {tuple(array.shape)} does not fit the term"
                    f" '{' '.join(term)}'"
                )
            for name, n in zip(term, array.shape, strict=True):
                if size.setdefault(name, n) != n:
                    raise ArgumentError(
                        f"the frozen array of the term '{' '.join(term)}' has the shape"
                        f" {tuple(array.shape)}, but {name!r} has size {size[name]}"
                    )
        return size

    def reach(self, letter: str, sizes: Mapping[str, int], infinite: int) -> int:
        """Size of a rank above which nothing is gained, given the sizes of the other names.

        Known for a name between two terms: the sides of the matrix product over it.
        """
        most = 0
        for equation in self.addends:
            having = [set(flatten(term)) for term in equation.terms if letter in flatten(term)]
            if len(having) > 2:
                return infinite
            if having:
                a, b = having
                sides = [math.prod(sizes.get(n, infinite) for n in side) for side in (a - b, b - a)]
                most = max(most, min(sides))
        return min(most, infinite)


def parse(equation: str | Equation) -> Ansatz:
    """Read ``"term, term + term, term -> output"``."""
    text = str(equation)
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ArgumentError(f"no '->' in the equation {text!r}")
    output = parse_modes(right)
    modes = flatten(output)
    addends, counts = [], []
    for addend in left.split("+"):
        terms = tuple(parse_modes(term) for term in addend.split(","))
        _check_terms(terms, modes, text)
        names = {n for term in terms for n in flatten(term)}
        addends.append(terms + tuple((n,) for n in modes if n not in names))
        counts.append(len(terms))
    written = {n for terms, k in zip(addends, counts, strict=True) for t in terms[:k] for n in t}
    if missing := [n for n in modes if n not in written]:
        raise ArgumentError(f"{missing[0]!r} is in the output but in no factor of '{text}'")
    return Ansatz(tuple(Equation(terms, output) for terms in addends), tuple(counts))


def positions_of(ansatz: Ansatz, given: Iterable[int], what: str) -> list[int]:
    """Positions among all terms of those that were given by number."""
    found = []
    for k in given:
        if not (isinstance(k, int) and 0 <= k < len(ansatz.written)):
            raise ArgumentError(
                f"{what} names the term {k!r}; '{ansatz}' has the terms 0 to"
                f" {len(ansatz.written) - 1}, counted over all addends"
            )
        found.append(ansatz.written[k])
    return found


def _check_terms(terms: Sequence[tuple[Axis, ...]], modes: Sequence[str], text: str) -> None:
    flat = [flatten(term) for term in terms]
    for term, names in zip(terms, flat, strict=True):
        if not names:
            raise ArgumentError(f"an empty term in the equation {text!r}")
        if any(not isinstance(axis, str) for axis in term):
            raise ArgumentError(
                f"'{' '.join(map(write_axis, term))}': only the output of '{text}' can have ( )"
            )
        if len(set(names)) != len(names):
            raise ArgumentError(f"a name is twice in the term '{' '.join(names)}' of '{text}'")
    for name in dict.fromkeys(n for names in flat for n in names):
        if name not in modes and sum(name in names for names in flat) == 1:
            raise ArgumentError(
                f"{name!r} is in one factor of '{text}' only and not in the output: it adds"
                " nothing, so leave it out"
            )


def _split(axis: Axis, n: int, given: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the parts of an axis of size `n`; at most one part may be left out of `given`."""
    parts = flatten((axis,))
    open_ = [p for p in parts if p not in given]
    known = math.prod(int(given[p]) for p in parts if p in given)
    if len(open_) > 1:
        raise ArgumentError(
            f"the axis {write_axis(axis)} of size {n} needs the sizes of all its parts but one,"
            f" as in sizes={{{open_[0]!r}: 8}}"
        )
    if n % known or (not open_ and known != n):
        raise ArgumentError(
            f"sizes={dict(given)!r} do not divide the axis {write_axis(axis)} of size {n}"
        )
    return {p: int(given.get(p, n // known)) for p in parts}


def _is_count(n: object) -> bool:
    return isinstance(n, int | np.integer) and bool(n >= 1)
