"""Gradients of the factors of a network: the equation once more, with the result in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tdecomp._plan import contract
from tdecomp._xp import Array, namespace
from tdecomp.adapters import Bound
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation, flatten

__all__ = ["Part", "factor_gradient", "gradients", "spec_gradient"]


def factor_gradient(equation: Equation | str, position: int) -> Equation:
    """Equation of ``∂⟨G, X⟩/∂F`` for one factor F of ``X = network(.., F, ..)``.

    X is linear in F, so its gradient is the network without F, contracted with ``G = ∂loss/∂X``:
    the term of F and the output change places. The arrays are those of the other factors, then G
    with its split axes opened. A name that only F has (it is summed in F alone) is not in the
    equation: along it the gradient is constant.

    Source: the chain rule; for CP the gradients of Acar, Dunlavy and Kolda [acar2011].

    >>> print(factor_gradient("out r, layer r s, s in -> layer out in", 1))
    out r, s in, layer out in -> layer r s
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    if not 0 <= position < len(equation.terms):
        raise ArgumentError(
            f"no factor {position} in '{equation}': count from 0 to {len(equation.terms) - 1}"
        )
    others = [t for k, t in enumerate(equation.terms) if k != position]
    terms = (*others, flatten(equation.output))
    known = {n for term in terms for n in flatten(term)}
    kept = tuple(n for n in flatten(equation.terms[position]) if n in known)
    return Equation(terms, kept)


def gradients(equation: Equation | str, arrays: Sequence[Array], cotangent: Array) -> list[Array]:
    """``∂⟨G, X⟩/∂F`` of every factor, each of the shape of its factor; G has the shape of X."""
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    sizes = equation.sizes([tuple(a.shape) for a in arrays])
    xp = namespace(cotangent)
    opened = xp.reshape(cotangent, tuple(sizes[n] for n in flatten(equation.output)))
    found = []
    for k, (term, array) in enumerate(zip(equation.terms, arrays, strict=True)):
        rule = factor_gradient(equation, k)
        part = contract(rule, [*(a for i, a in enumerate(arrays) if i != k), opened])
        along = tuple(sizes[n] if n in rule.output else 1 for n in flatten(term))
        found.append(xp.reshape(part, along) + 0 * array)  # constant along what only F has
    return found


class Part(NamedTuple):
    """One place where a factor stands: what its gradient gets from there.

    Attributes
    ----------
    coefficient
        Sign and scale of the term.
    equation
        Its arrays are those of the factors named in `operands`, then ``∂loss/∂ΔW`` of the weight,
        opened into its parts.
    operands
        The other factors of the term.
    """

    coefficient: float
    equation: Equation
    operands: tuple[str, ...]


def spec_gradient(bound: Bound, factor: str, step: float = 0) -> tuple[Part, ...]:
    """Gradient of a factor of an adapter at one weight: one part for each place where it stands.

    The product rule over the terms of the spec, and over the places of a tied factor in one term.
    Letters are those inside a weight: the site modes pick rows of the factors and of the gradient.

    Raises
    ------
    ArgumentError
        The adapter has a factor with a norm of 1: its gradient is no contraction.

    >>> from tdecomp.adapters import Grid, bind, method
    >>> lotr = bind(method("lotr"), Grid.full((6, 5), layer=3), 2)
    >>> [(part.coefficient, str(part.equation)) for part in spec_gradient(lotr, "core")]
    [(0.5, 'out r, s in, out in -> r s')]
    """
    if unit := [f.name for f in bound.spec.factors if f.unit]:
        raise ArgumentError(
            f"{unit[0]!r} of {bound.spec.name!r} has norm 1 wherever it stands: its gradient is no"
            " contraction of the other factors"
        )
    found = []
    for term in bound.spec.terms:
        equation = Equation(tuple(map(bound.letters, term.operands)), bound.spec.output)
        for k, operand in enumerate(term.operands):
            if operand.factor == factor:
                others = tuple(o.factor for i, o in enumerate(term.operands) if i != k)
                rule = factor_gradient(equation, k)
                found.append(Part(bound.coefficient(term, step), rule, others))
    return tuple(found)
