"""How many numbers a format or an adapter stores, as formulas derived from its equation."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from tdecomp.adapters import Spec
from tdecomp.adapters.bound import wrap_factors
from tdecomp.modes import Equation, flatten
from theory.formulas import at, formula, size_of, volume

__all__ = [
    "break_even_rank",
    "dense_count",
    "letter_sizes",
    "size_of",
    "stored_count",
    "trainable_count",
]


def stored_count(equation: Equation | str) -> sympy.Expr:
    """Numbers stored by the factors of an equation: the sum over terms of the product of sizes.

    >>> stored_count("out r, layer r s, in s -> layer out in")
    in*s + layer*r*s + out*r
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    return sympy.Add(*(volume(flatten(term)) for term in equation.terms))


def dense_count(equation: Equation | str) -> sympy.Expr:
    """Numbers in the dense result of an equation.

    >>> dense_count("out r, layer r s, in s -> layer out in")
    in*layer*out
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    return volume(flatten(equation.output))


def trainable_count(spec: Spec, *, resolve: bool = False) -> sympy.Expr:
    """Numbers that an adapter trains: the sum over its trainable factors of their sizes.

    A factor that several terms use counts once, and so do those of a norm wrap. With `resolve` the
    letters whose size follows from others are written out, see `letter_sizes`.

    >>> from tdecomp.adapters import method
    >>> trainable_count(method("tenslora_qkv_depth"))
    in*r + layer*v + out*s + proj*u + r*s*u*v
    >>> trainable_count(method("vera"))
    out*site + r*site
    >>> trainable_count(method("miss"), resolve=True)
    out*r*site
    >>> trainable_count(method("c3a"), resolve=True)
    in*out*site/divisor(gcd(out, in), 256)
    """
    factors = [f for f in (*spec.factors, *wrap_factors(spec)) if f.trainable]
    count = sympy.Add(*(volume(f.modes) for f in factors))
    return at(count, letter_sizes(spec)) if resolve else count


def letter_sizes(spec: Spec) -> dict[str, sympy.Expr]:
    """Sizes of the letters that follow from those of the weights and from the open ranks.

    ``long`` and ``short`` are the larger and the smaller side, ``site`` stays the number of
    weights. Of a side that is split, the part without a rule is what the others leave.

    >>> from tdecomp.adapters import method
    >>> letter_sizes(method("lorta"))["hd"]
    out/head
    """
    rules = {n: formula(text) for n, text in spec.where}
    for axis, side in spec.axes:
        free = [n for n in flatten((axis,)) if n != side and _is_free(spec, n)]
        if len(free) == 1:
            left = size_of(side) / volume(n for n in flatten((axis,)) if n not in free)
            rules[free[0]] = sympy.ceiling(left) if side in spec.crop else left
    sides = [size_of(n) for n in ("out", "in")]
    known = {"long": sympy.Max(*sides), "short": sympy.Min(*sides)}
    return known | {n: at(_written_out(rule, rules), known) for n, rule in rules.items()}


def _is_free(spec: Spec, letter: str) -> bool:
    """Whether a part of a side has neither a rule nor a size that the user gives."""
    return letter not in {"head", *dict(spec.where), *spec.open_ranks(("head",))}


def _written_out(rule: sympy.Expr, rules: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """A rule in which no other rule is used any more; rules do not go in circles."""
    while {str(symbol) for symbol in rule.free_symbols} & rules.keys():
        rule = at(rule, rules)
    return rule


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
