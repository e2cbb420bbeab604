"""Formulas of adapters, ``"ceil(in / r)"``, as sympy expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
from sympy.parsing.sympy_parser import parse_expr, rationalize, standard_transformations

from tdecomp.adapters.expressions import Expression

__all__ = ["at", "formula", "size_of", "volume"]


def size_of(name: str) -> sympy.Symbol:
    """Symbol for the size of a mode or rank."""
    return sympy.Symbol(name, positive=True, integer=True)


def volume(names: Iterable[str]) -> sympy.Expr:
    """Product of the sizes of some modes: how many numbers an array of them has.

    >>> volume(["out", "r"])
    out*r
    """
    return sympy.Mul(*map(size_of, names))


def at(expression: sympy.Expr, sizes: Mapping[str, Any]) -> sympy.Expr:
    """An expression with some sizes replaced, by numbers or by other expressions.

    >>> at(volume(["out", "r"]), {"out": 8})
    8*r
    """
    found: Any = expression.xreplace({size_of(n): sympy.sympify(v) for n, v in sizes.items()})
    return found


class _Arithmetic(sympy.Function):
    """A function of whole numbers: it stays as it is until all its arguments are numbers."""

    @classmethod
    def eval(cls, *args: Any) -> Any:
        """Its value, by the rule of `Expression`."""
        if not all(a.is_Integer for a in args):
            return None
        names = [f"x{k}" for k in range(len(args))]
        values = {name: int(a) for name, a in zip(names, args, strict=True)}
        return sympy.Integer(int(Expression(f"{cls.__name__}({', '.join(names)})")(values)))


class nearest(sympy.Function):  # noqa: N801 - the name under which it is printed
    """The nearest whole number, of two the even one."""

    @classmethod
    def eval(cls, *args: Any) -> Any:
        """Its value where the argument is a number."""
        (x,) = args
        if not x.is_number:
            return None
        up = sympy.floor(x + sympy.Rational(1, 2))
        tie = up == x + sympy.Rational(1, 2)
        return up - 1 if tie and up % 2 else up


_KEPT = {name: type(name, (_Arithmetic,), {}) for name in ("gcd", "part", "divisor")}
_FUNCTIONS = {
    **_KEPT,
    # divisors are whole: what a limit has beyond its floor does not count
    "divisor": lambda n, limit: _KEPT["divisor"](n, sympy.floor(limit)),
    "round": nearest,
    "min": sympy.Min,
    "max": sympy.Max,
    "sqrt": sympy.sqrt,
    "ceil": sympy.ceiling,
    "floor": sympy.floor,
}


def formula(text: Expression | str) -> sympy.Expr:
    """A formula over named sizes, with floors, minima and divisors as functions.

    >>> formula("ceil(in / r) * min(out, 4)")
    ceiling(in/r)*Min(4, out)
    >>> at(formula("part(out, 3, 1)"), {"out": 768})
    8
    """
    text = str(text)
    names = sorted(Expression(text).names)
    stand_in = {name: f"size_{k}" for k, name in enumerate(names)}  # `in` is a word of Python
    written = re.sub(r"[A-Za-z_]\w*", lambda word: stand_in.get(word[0], word[0]), text)
    values = {stand_in[name]: size_of(name) for name in names}
    known: dict[str, Any] = {**_FUNCTIONS, **values}
    return parse_expr(written, known, (*standard_transformations, rationalize))
