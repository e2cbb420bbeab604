"""What contractions cost, as polynomials in the sizes."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from tdecomp._plan import Plan, plan
from tdecomp.adapters import Spec
from tdecomp.adapters.terms import SITE_MODES
from tdecomp.modes import Equation, flatten
from theory.formulas import volume

__all__ = ["applied", "flop_count", "plan_flops"]


def plan_flops(order: Plan) -> sympy.Expr:
    """Flops of a contraction order: over its steps, the product of the sizes of all letters.

    Once for the multiplication of two operands, and once more for the additions where a letter is
    summed: ``(m, k)`` times ``(k, n)`` counts ``2 m k n``. The count of `Plan.flops` at all sizes.

    >>> sizes = {"token": 100, "out": 8, "r": 2, "in": 8}
    >>> plan_flops(plan("token in, r in, out r -> token out", sizes))
    2*in*r*token + 2*out*r*token
    """
    name = dict(order.names)
    total: sympy.Expr = sympy.Integer(0)
    for _, symbols in order.steps:
        left, output = symbols.split("->")
        operands = left.split(",")
        letters = set().union(*operands)
        work = (len(operands) > 1) + (letters > set(output))
        total += work * volume(name[c] for c in letters)
    return total


def flop_count(equation: Equation | str, sizes: Mapping[str, int]) -> sympy.Expr:
    """Flops of an equation in the order that is planned at some sizes.

    The order may be another one at other sizes: the smallest count is the minimum over orders of
    such polynomials.

    >>> few, many = {"o": 9, "r": 2, "i": 9, "x": 1}, {"o": 9, "r": 9, "i": 9, "x": 99}
    >>> flop_count("o r, r i, x i -> x o", few)
    2*i*r*x + 2*o*r*x
    >>> flop_count("o r, r i, x i -> x o", many)
    2*i*o*r + 2*i*o*x
    """
    return plan_flops(plan(equation, sizes))


def applied(spec: Spec) -> tuple[Equation, ...]:
    """Every term of ``ΔW x`` for one weight and some tokens, as an equation; the last term is x.

    >>> from tdecomp.adapters import method
    >>> [str(equation) for equation in applied(method("lotr"))]
    ['out r, r s, s in, token in -> token out']
    """
    out, inp = (flatten((axis,)) for axis in spec.output)
    sites = {*SITE_MODES} - {*spec.weight_modes}
    return tuple(
        Equation(
            (
                *(tuple(n for n in o.letters if n not in sites) for o in term.operands),
                ("token", *inp),
            ),
            ("token", *out),
        )
        for term in spec.terms
    )
