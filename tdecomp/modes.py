"""Named modes of a tensor and the einsum over them, parsed once into a checked object.

*Site modes* (``layer``, ``proj``, ``head``, ...) say which weight, *weight modes* (``out``, ``in``)
index inside it, every other name in an equation is a rank.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import SupportsIndex

from opt_einsum import get_symbol

from tdecomp.errors import ArgumentError

__all__ = ["Equation", "name_modes", "parse_modes", "positions", "write_axis"]

_NAME = re.compile(r"[A-Za-z_]\w*")
_TOKEN = re.compile(r"[A-Za-z_]\w*|[()]|\S")
_MODE = re.compile(rf"{_NAME.pattern}|\({_NAME.pattern}( {_NAME.pattern})*\)")

Axis = str | tuple[str, ...]
"""One axis of an array: a mode name, or the names a split axis is made of, slowest first.

A split axis that is joined again keeps its written form as its name: ``"(head hd)"`` is one mode
like ``"out"``, its parts cannot be reached.
"""


def parse_modes(text: str) -> tuple[Axis, ...]:
    """Axes of an array written as names; parentheses make one axis of several modes.

    >>> parse_modes("layer (head hd) in")
    ('layer', ('head', 'hd'), 'in')
    """
    axes: list[Axis] = []
    split: list[str] | None = None
    for token in _TOKEN.findall(text):
        if token == "(" and split is None:
            split = []
        elif token == ")" and split:
            axes.append(tuple(split))
            split = None
        elif _NAME.fullmatch(token):
            (axes if split is None else split).append(token)
        else:
            raise ArgumentError(f"cannot read {token!r} in the modes {text!r}: write names and ( )")
    if split is not None:
        raise ArgumentError(f"unclosed ( in the modes {text!r}")
    return tuple(axes)


def write_axis(axis: Axis) -> str:
    """An axis as text: ``"out"``, or ``"(head hd)"`` for a split one."""
    return axis if isinstance(axis, str) else f"({' '.join(axis)})"


def flatten(axes: Iterable[Axis]) -> tuple[str, ...]:
    """Names of all modes in `axes`, splits opened."""
    return tuple(n for axis in axes for n in ((axis,) if isinstance(axis, str) else axis))


def name_modes(order: int, names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Mode names of a bare array of the given order: those given, else ``m0 m1 ...``.

    >>> name_modes(3, None), name_modes(3, "layer (head hd) in")
    (('m0', 'm1', 'm2'), ('layer', '(head hd)', 'in'))
    """
    if names is None:
        return tuple(f"m{k}" for k in range(order))
    if not isinstance(names, Sequence):
        raise ArgumentError(f"names={names!r} must be text, or one name per mode")
    axes = parse_modes(names) if isinstance(names, str) else names
    given = tuple(map(write_axis, axes))
    check_names(given)
    if len(given) != order:
        raise ArgumentError(
            f"names={' '.join(given)!r} must be {order} different names, one per mode"
        )
    return given


def words(names: Iterable[str]) -> set[str]:
    """Every word in the names: joined axes are opened."""
    return {word for name in names for word in _NAME.findall(name)}


@lru_cache(maxsize=4096)
def _is_name(text: str) -> bool:
    return _MODE.fullmatch(text) is not None


def check_names(names: Iterable[str]) -> None:
    """Refuse names that no equation can be written with, and a name that is there twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ArgumentError(f"the mode {name!r} is named twice: give every mode its own name")
        seen.add(name)
        if not _is_name(name):
            raise ArgumentError(
                f"{name!r} cannot name a mode: write a word, or (word word ..) for a joined axis"
            )


def positions(modes: Sequence[str], chosen: Iterable[str | int]) -> tuple[int, ...]:
    """Axis positions of `chosen` modes, given as names or 0-based positions."""
    found = []
    for mode in chosen:
        if isinstance(mode, str) and mode in modes:
            found.append(modes.index(mode))
        elif isinstance(mode, SupportsIndex) and -len(modes) <= operator.index(mode) < len(modes):
            found.append(operator.index(mode) % len(modes))
        else:
            raise ArgumentError(f"no mode {mode!r}: this tensor has the modes {' '.join(modes)}")
    if len(set(found)) != len(found):
        raise ArgumentError(f"a mode is named twice in {list(chosen)!r}")
    return tuple(found)


@dataclass(frozen=True, repr=False)
class Equation:
    """An einsum over named modes: ``"out r, layer r s, in s -> layer out in"``.

    Attributes
    ----------
    terms
        The axes of each factor, each a name; ``"(head hd)"`` is the name of one axis too.
    output
        The axes of the result; a split axis ``("head", "hd")`` is one axis of the array.
    """

    terms: tuple[tuple[Axis, ...], ...]
    output: tuple[Axis, ...]

    @classmethod
    def parse(cls, text: str) -> Equation:
        """Read ``"term, term -> output"``.

        In the output ``(head hd)`` is an axis split over two names of the terms; where a term says
        ``(head hd)`` too, it is the name of that whole axis.

        >>> str(Equation.parse("out r,layer r s,  in s->layer out in"))
        'out r, layer r s, in s -> layer out in'
        """
        left, arrow, right = text.partition("->")
        if not arrow:
            raise ArgumentError(f"no '->' in the equation {text!r}")
        terms = [tuple(map(write_axis, parse_modes(term))) for term in left.split(",")]
        whole = {axis for term in terms for axis in term}
        output = (write_axis(a) if write_axis(a) in whole else a for a in parse_modes(right))
        return cls(tuple(terms), tuple(output))

    def __post_init__(self):
        known = {name for term in self.terms for name in flatten(term)}
        check_names({*known, *map(write_axis, self.output)})
        names = flatten(self.output)
        whole = [name for name in known if name[0] == "("]
        joined = {part: name for name in whole for part in words([name])}
        if any(len(set(flatten(term))) != len(flatten(term)) for term in self.terms):
            raise ArgumentError(
                f"a term of '{self}' cannot have a name twice: take the diagonal first"
            )
        if both := sorted(joined.keys() & {*known, *names}):
            raise ArgumentError(
                f"{both[0]!r} is a name of its own and a part of the axis {joined[both[0]]} in"
                f" '{self}': split that axis (reshape its array), or rename one of them"
            )
        if missing := [n for n in names if n not in known]:
            raise ArgumentError(f"{missing[0]!r} is in the output but in no factor of '{self}'")
        if len(set(names)) != len(names):
            raise ArgumentError(f"a mode is twice in the output of '{self}'")

    def __repr__(self) -> str:
        return f"Equation({self})"

    def __str__(self) -> str:
        return f"{', '.join(map(_write, self.terms))} -> {_write(self.output)}"

    @cached_property
    def letters(self) -> dict[str, str]:
        """A letter for each name, however many, in order of appearance."""
        names = dict.fromkeys(n for term in self.terms for n in flatten(term))
        return {name: get_symbol(k) for k, name in enumerate(names)}

    @cached_property
    def symbols(self) -> str:
        """One letter per name, as einsum libraries take it: ``"ab,cbd,ed->cae"``."""
        write = lambda axes: "".join(self.letters[n] for n in flatten(axes))
        return f"{','.join(map(write, self.terms))}->{write(self.output)}"

    def sizes(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """Size of every name, from the factors' shapes; checks that they agree."""
        if len(shapes) != len(self.terms):
            raise ArgumentError(f"'{self}' has {len(self.terms)} factors, got {len(shapes)} arrays")
        size: dict[str, int] = {}
        for term, shape in zip(self.terms, shapes, strict=True):
            if len(term) != len(shape) or not all(isinstance(axis, str) for axis in term):
                raise ArgumentError(f"the factor '{_write(term)}' cannot have the shape {shape}")
            for name, n in zip(flatten(term), shape, strict=True):
                if size.setdefault(name, n) != n:
                    raise ArgumentError(f"{name!r} is both {size[name]} and {n} in '{self}'")
        return size

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(math.prod(sizes[n] for n in flatten((axis,))) for axis in self.output)


def _write(axes: Iterable[Axis]) -> str:
    return " ".join(map(write_axis, axes))
