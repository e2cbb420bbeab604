"""The text of an equation: ``"b: site out r, *a: site r in - c: out k, d: k in"``."""

from __future__ import annotations

import re

from tdecomp.adapters.terms import Operand, Term
from tdecomp.errors import ArgumentError
from tdecomp.modes import Axis, flatten, parse_modes

__all__ = ["read_equation", "read_letters"]

_OPERAND = re.compile(r"(?P<frozen>\*?)\s*(?:(?P<name>[A-Za-z]\w*)\s*:)?(?P<letters>[\w\s]*)")
_SIGN = re.compile(r"([+-])")


def read_equation(equation: str) -> tuple[tuple[Term, ...], set[str], tuple[Axis, Axis]]:
    """Terms, names of the frozen factors and the output axes of an equation as text."""
    left, arrow, right = equation.partition("->")
    axes = parse_modes(right) if arrow else ("out", "in")
    pieces = ["+", *_SIGN.split(left)]
    if not pieces[1].strip() and len(pieces) > 2:  # a sign before the first term
        pieces = pieces[2:]
    if not all(text.strip() for text in pieces[1::2]):
        raise ArgumentError(
            f"a term of the equation {equation!r} has no factors: write 'out r, r in'"
        )
    terms, stars = [], {}
    for sign, piece in zip(pieces[::2], pieces[1::2], strict=True):
        operands = tuple(_operand(text, equation, stars) for text in piece.split(","))
        terms.append(Term(operands, 1 if sign == "+" else -1))
    frozen = {name for name, (star, _) in stars.items() if star}
    return tuple(terms), frozen, axes  # pyright: ignore[reportReturnType] - checked by the spec


def _operand(text: str, equation: str, seen: dict[str, tuple[bool, tuple[str, ...]]]) -> Operand:
    """One operand; `seen` has the star and the letters of every factor before it."""
    found = _OPERAND.fullmatch(text.strip())
    letters = read_letters(found["letters"], equation) if found else ()
    if found is None or not letters:
        raise ArgumentError(
            f"cannot read the factor {text.strip()!r} in {equation!r}: write its modes, as in"
            " 'out r', with a name 'b: out r', and '*' before a frozen one"
        )
    name = found["name"] or "_".join(letters)
    star, first = seen.setdefault(name, (bool(found["frozen"]), letters))
    if star != bool(found["frozen"]):
        raise ArgumentError(
            f"the factor {name!r} of {equation!r} is frozen in one place and trained in another:"
            " write '*' at every use, or give two factors two names"
        )
    if not found["name"] and first != letters:
        raise ArgumentError(
            f"'{' '.join(letters)}' and '{' '.join(first)}' of {equation!r} would both be named"
            f" {name!r}: name one of them, as in 'b: {' '.join(letters)}'"
        )
    return Operand(name, letters)


def read_letters(text: str, equation: str) -> tuple[str, ...]:
    """The axes of one factor."""
    axes = parse_modes(text)
    if any(not isinstance(axis, str) for axis in axes):
        raise ArgumentError(f"brackets stand in the output only, not in {text!r} of {equation!r}")
    return flatten(axes)
