"""How many numbers a format stores, as formulas derived from its equation."""

from __future__ import annotations

import math

import sympy

from tdecomp.adapters import Spec
from tdecomp.adapters.bound import wrap_factors
from tdecomp.modes import Equation, flatten

__all__ = ["break_even_rank", "dense_count", "size_of", "stored_count", "trainable_count"]


def size_of(name: str) -> sympy.Symbol:
    """Symbol for the size of a mode or rank."""
    return sympy.Symbol(name, positive=True, integer=True)


def stored_count(equation: Equation | str) -> sympy.Expr:
    """Numbers stored by the factors of an equation: the sum over terms of the product of sizes.

    >>> stored_count("out r, layer r s, in s -> layer out in")
    in*s + layer*r*s + out*r
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    terms = [math.prod(size_of(n) for n in flatten(term)) for term in equation.terms]
    return sympy.Add(*terms)


def dense_count(equation: Equation | str) -> sympy.Expr:
    """Numbers in the dense result of an equation.

    >>> dense_count("out r, layer r s, in s -> layer out in")
    in*layer*out
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    return sympy.Mul(*(size_of(n) for n in flatten(equation.output)))


def trainable_count(spec: Spec) -> sympy.Expr:
    """Numbers that an adapter trains: the sum over its trainable factors of their sizes.

    A factor that several terms use counts once, and so do those of a norm wrap.

    >>> from tdecomp.adapters import method
    >>> trainable_count(method("tenslora_qkv_depth"))
    in*r + layer*v + out*s + proj*u + r*s*u*v
    >>> trainable_count(method("vera"))
    out*site + r*site
    """
    factors = (*spec.factors, *wrap_factors(spec))
    return sympy.Add(*(math.prod(map(size_of, f.modes)) for f in factors if f.trainable))


def break_even_rank(shared: str, separate: str, rank: str = "r") -> sympy.Basic:
    """Rank of `separate` that stores as many numbers as `shared`.

    Both equations give the same dense tensor; the count of `separate` is linear in its rank. The
    answer in the sizes and ranks of `shared` says what sharing has to beat: independent factors of
    that rank.

    >>> lora = "layer out k, layer k in -> layer out in"
    >>> break_even_rank("out r, layer r s, in s -> layer out in", lora, "k")
    (in*s + layer*r*s + out*r)/(layer*(in + out))
    """
    unknown = size_of(rank)
    (answer,) = sympy.solve(sympy.Eq(stored_count(shared), stored_count(separate)), unknown)
    return sympy.factor(answer)
