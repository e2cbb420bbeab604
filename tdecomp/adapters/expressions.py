"""Arithmetic over named sizes, as text: ``"ceil(short / r)"``, ``"alpha / sqrt(r)"``.

What an adapter says of its sizes and of its scale is a formula. It is kept as text, so that it can
be stored and read, and evaluated exactly: division of whole numbers gives a fraction.
"""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from tdecomp._nearest import nearest
from tdecomp.errors import ArgumentError

__all__ = ["Expression"]

Number = int | float | Fraction

_KEYWORD = re.compile(rf"\b({'|'.join(keyword.kwlist)})\b")
_BITS = 1000
"""Longest whole number, numerator or denominator of a step."""
_LARGEST = 1 << 40
"""Largest number that is looked through for its divisors."""
_PARTS = 64
_PLACES = 300
_LONGEST = 1000
"""Characters of a formula."""
_DEEPEST = 100
"""Steps inside each other, those of a long sum included."""


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise ZeroDivisionError("division by zero")
    return Fraction(a) / Fraction(b) if _is_exact(a) and _is_exact(b) else a / b


def _floor_divide(a: Number, b: Number) -> Number:
    return a // b


def _is_exact(x: Number) -> bool:
    return isinstance(x, int | Fraction)


def _power(a: Number, b: Number) -> Number:
    if _is_exact(a) and _is_exact(b) and abs(b) * math.log2(abs(a) + 2) > _BITS:
        raise ValueError(f"{a} ** {b} is too large")
    found = a**b
    if isinstance(found, complex):
        raise ValueError(f"{a} ** {b} is not a real number")
    return found


def _bounded(x: Any) -> Any:
    """A number as it is, if it is no longer than `_BITS`."""
    parts = (x.numerator, x.denominator) if isinstance(x, int | Fraction) else ()
    if any(part.bit_length() > _BITS for part in parts):
        raise ValueError(f"a number of more than {_BITS} bits")
    return x


def _whole(x: Number) -> int:
    if x != int(x):
        raise ValueError(f"{x} is not whole")
    return int(x)


def _gcd(a: Number, b: Number) -> int:
    return math.gcd(_whole(a), _whole(b))


def _sqrt(x: Number) -> Number:
    root = math.isqrt(int(x))
    return root if root * root == x else math.sqrt(x)


def _round(x: Number, places: Number | None = None) -> Number:
    if places is None:
        return round(x)
    if abs(places) > _PLACES:
        raise ValueError(f"{places} places are too many to round to")
    return round(x, _whole(places))


def _part(n: Number, parts: Number, k: Number) -> int:
    """Factor number `k` (from 1, ascending) of `n` written as `parts` factors of near-equal size.

    The prime factors, largest first, each go to the smallest product so far.
    """
    if not 1 <= n <= _LARGEST or not 1 <= k <= parts <= _PARTS:
        raise ValueError(f"part {k} of {parts} of {n}: count the parts from 1 to at most {_PARTS}")
    products = [1] * _whole(parts)
    for prime in reversed(_primes(_whole(n))):
        products[products.index(min(products))] *= prime
    return sorted(products)[_whole(k) - 1]


@lru_cache(maxsize=1)
def _small_primes() -> np.ndarray:
    """Every prime up to the root of `_LARGEST`."""
    end = math.isqrt(_LARGEST) + 1
    prime = np.ones(end, dtype=bool)
    prime[:2] = False
    for p in range(2, math.isqrt(end) + 1):
        if prime[p]:
            prime[p * p :: p] = False
    return np.flatnonzero(prime)


@lru_cache(maxsize=4096)
def _primes(n: int) -> tuple[int, ...]:
    """Prime factors, ascending."""
    found: list[int] = []
    small = _small_primes()
    for p in map(int, small[n % small == 0]):
        while n % p == 0:
            found.append(p)
            n //= p
    return (*found, n) if n > 1 else tuple(found)


def _divisor(n: Number, limit: Number) -> int:
    """Largest divisor of `n` that is no larger than `limit`."""
    if not 1 <= n <= _LARGEST or limit < 1:
        raise ValueError(f"{n} has no divisor up to {limit}")
    found = {1}
    for p in _primes(_whole(n)):
        found |= {d * p for d in found}
    return max(d for d in found if d <= limit)


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: _floor_divide,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "sqrt": _sqrt,
    "ceil": math.ceil,
    "floor": math.floor,
    "round": _round,
    "gcd": _gcd,
    "part": _part,
    "divisor": _divisor,
}


@dataclass(frozen=True)
class Expression:
    """A formula over named numbers.

    ``+ - * / // % **``, brackets and the functions ``min max sqrt ceil floor round gcd``;
    ``part(n, 3, 1)`` is the first of three near-equal factors of n, in ascending order;
    ``divisor(n, m)`` the largest divisor of n up to m.

    Parameters
    ----------
    text
        The formula.

    Examples
    --------
    >>> Expression("ceil(in / r)").size({"in": 10, "r": 4}, "g")
    3
    >>> [Expression(f"part(768, 3, {k})").size({}, "o") for k in (1, 2, 3)]
    [8, 8, 12]
    """

    text: str

    def __post_init__(self):
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", str(self.text))
        self.names  # noqa: B018 - reads the text

    def __str__(self) -> str:
        return self.text

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            if len(self.text) > _LONGEST:
                raise ArgumentError(
                    f"the formula {self.text[:20]!r}.. has {len(self.text)} characters, more than"
                    f" {_LONGEST}"
                )
            return ast.parse(_KEYWORD.sub(r"\1_", self.text.strip()), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ArgumentError(f"cannot read the formula {self.text!r}") from None

    @cached_property
    def names(self) -> frozenset[str]:
        """The numbers that it needs."""
        return frozenset(self._names(self._tree))

    def _names(self, node: ast.expr, depth: int = 0) -> list[str]:
        if depth > _DEEPEST:
            raise ArgumentError(
                f"the formula {self.text[:20]!r}.. has more than {_DEEPEST} steps inside each other"
            )
        depth += 1
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return []
        if isinstance(node, ast.Name):
            return [_name(node)]
        if isinstance(node, ast.BinOp) and type(node.op) in (*_OPERATORS, ast.Div):
            return self._names(node.left, depth) + self._names(node.right, depth)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._names(node.operand, depth)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id not in FUNCTIONS:
                raise ArgumentError(
                    f"no function {node.func.id!r} in the formula {self.text!r}"
                    f"{nearest(node.func.id, FUNCTIONS)}: there are {', '.join(FUNCTIONS)}"
                )
            return [name for a in node.args for name in self._names(a, depth)]
        raise ArgumentError(f"cannot read {ast.unparse(node)!r} in the formula {self.text!r}")

    def __call__(self, values: Mapping[str, Any]) -> Number:
        """Evaluate it."""
        if missing := sorted(self.names - values.keys()):
            raise ArgumentError(
                f"the formula {self.text!r} needs {missing[0]!r}{nearest(missing[0], values)}:"
                f" given are {', '.join(sorted(values)) or 'no numbers'}"
            )
        try:
            return self._value(self._tree, values)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ArgumentError(f"the formula {self.text!r} has no value: {error}") from None

    def _value(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        """Value of a step; none is longer than a few machine words, whatever the formula says."""
        return _bounded(self._step(node, values))

    def _step(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return values[_name(node)]
            case ast.UnaryOp():
                return _OPERATORS[type(node.op)](self._value(node.operand, values))
            case ast.BinOp():
                apply = _OPERATORS.get(type(node.op), _divide)
                return apply(self._value(node.left, values), self._value(node.right, values))
            case ast.Call(func=ast.Name(id=name)):
                return FUNCTIONS[name](*(self._value(a, values) for a in node.args))
            case _:
                raise AssertionError(node)

    def size(self, values: Mapping[str, Any], name: str) -> int:
        """Evaluate it to the size of `name`: a positive whole number."""
        value = self(values)
        if not math.isfinite(value) or value != int(value) or value < 1:
            used = ", ".join(f"{n} = {values[n]}" for n in sorted(self.names))
            shown = float(value) if isinstance(value, Fraction) else value
            raise ArgumentError(
                f"the size {name} = {self.text} is {shown}{f' for {used}' if used else ''}: it must"
                " be a positive whole number"
            )
        return int(value)


def _name(node: ast.Name) -> str:
    plain = node.id.removesuffix("_")
    return plain if keyword.iskeyword(plain) else node.id
