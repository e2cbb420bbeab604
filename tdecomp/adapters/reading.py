"""What an adapter is read from: equations such as ``"b: site out r, a: site r in"``, and inits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

from tdecomp._nearest import nearest
from tdecomp.adapters.expressions import Expression
from tdecomp.adapters.inits import Init
from tdecomp.adapters.terms import Factor, Operand, Term
from tdecomp.errors import ArgumentError
from tdecomp.modes import Axis, flatten, parse_modes

__all__ = ["check_words", "read_equation", "read_factors"]

_OPERAND = re.compile(r"(?P<frozen>\*?)\s*(?:(?P<name>[A-Za-z]\w*)\s*:)?(?P<letters>[\w\s]*)")
_SIGN = re.compile(r"([+-])")
_WORD = re.compile(r"[^\W\d]\w*")
_MOST_WORDS = 512
_LONGEST_WORD = 100


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
    terms: list[Term] = []
    stars: dict[str, tuple[bool, tuple[str, ...]]] = {}
    for sign, piece in zip(pieces[::2], pieces[1::2], strict=True):
        operands = tuple(_operand(text, equation, stars) for text in piece.split(","))
        terms.append(Term(operands, 1 if sign == "+" else -1))
    frozen = {name for name, (star, _) in stars.items() if star}
    return tuple(terms), frozen, axes  # pyright: ignore[reportReturnType] - checked by the spec


def _operand(text: str, equation: str, seen: dict[str, tuple[bool, tuple[str, ...]]]) -> Operand:
    """One operand; `seen` has the star and the letters of every factor before it."""
    found = _OPERAND.fullmatch(text.strip())
    letters = _read_letters(found["letters"], equation) if found else ()
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


def _read_letters(text: str, equation: str) -> tuple[str, ...]:
    """The axes of one factor."""
    axes = parse_modes(text)
    if any(not isinstance(axis, str) for axis in axes):
        raise ArgumentError(f"brackets stand in the output only, not in {text!r} of {equation!r}")
    return flatten(axes)


def read_factors(
    name: str,
    equation: str,
    terms: Sequence[Term],
    frozen: Collection[str],
    init: str | Sequence[str] | Mapping[str, str],
    *,
    modes: Mapping[str, str] | None,
    freeze: Mapping[str, str] | None,
    across: Sequence[str],
    clusters: Mapping[str, str] | None,
    unit: Mapping[str, str] | None,
) -> tuple[Factor, ...]:
    """The factors of an equation that was read; parameters as in `Spec.parse`."""
    names = dict.fromkeys(o.factor for term in terms for o in term.operands)
    inits = _by_factor(init, names)
    by_factor = {
        "modes": modes,
        "freeze": freeze,
        "across": across,
        "clusters": clusters,
        "unit": unit,
    }
    for what, given in by_factor.items():
        if unknown := sorted(set(given or ()) - names.keys()):
            raise ArgumentError(
                f"{what} names {unknown[0]!r}{nearest(unknown[0], names)}: the factors of"
                f" {name!r} are {', '.join(names)}"
            )
    axes = {o.factor: o.letters for term in reversed(terms) for o in reversed(term.operands)}
    axes |= {f: _read_letters(text, equation) for f, text in (modes or {}).items()}
    return tuple(
        Factor(
            name=f,
            modes=axes[f],
            init=Init.parse(inits[f]),
            trainable=f not in frozen,
            freeze=_formula(freeze, f),
            across=f in across,
            clusters=_formula(clusters, f),
            unit=_read_letters(unit[f], equation) if unit and f in unit else (),
        )
        for f in names
    )


def _formula(texts: Mapping[str, str] | None, factor: str) -> Expression | None:
    return Expression(texts[factor]) if texts and factor in texts else None


def _by_factor(
    init: str | Sequence[str] | Mapping[str, str], names: Mapping[str, None]
) -> dict[str, str]:
    """`init` as a text for every factor."""
    if isinstance(init, str):
        return dict.fromkeys(names, init)
    given = dict(init) if isinstance(init, Mapping) else dict(zip(names, init, strict=False))
    if not isinstance(init, Mapping) and len(init) != len(names):
        raise ArgumentError(f"{len(init)} inits for the {len(names)} factors {', '.join(names)}")
    if missing := [name for name in names if name not in given]:
        raise ArgumentError(f"no init for the factor {missing[0]!r}: say how it starts")
    if unknown := sorted(given.keys() - names.keys()):
        raise ArgumentError(
            f"init names {unknown[0]!r}{nearest(unknown[0], names)}: the factors are"
            f" {', '.join(names)}"
        )
    return given


def check_words(plain: Any) -> None:
    """Refuse a description with so many names that comparing them would take long."""
    words = {word for text in _texts(plain) for word in _WORD.findall(text)}
    if len(words) > _MOST_WORDS or any(len(word) > _LONGEST_WORD for word in words):
        raise ArgumentError(
            f"this is not a description of an adapter: it has {len(words)} names, {_MOST_WORDS} of"
            f" {_LONGEST_WORD} characters are the most"
        )


def _texts(plain: Any) -> Iterator[str]:
    """Every text in plain values, those that name others included."""
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, Mapping):
        for key, value in cast("Mapping[Any, Any]", plain).items():
            yield from (str(key), *_texts(value))
    elif isinstance(plain, list | tuple):
        for value in cast("Sequence[Any]", plain):
            yield from _texts(value)
