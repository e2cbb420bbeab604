"""Gauge groups of formats, and dimensions of the sets of tensors that they describe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import sympy

from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation, flatten
from theory.counts import stored_count
from theory.formulas import size_of
from theory.modular import PRIME, jacobian, rank_modulo

__all__ = [
    "DEFECTIVE",
    "cp_equation",
    "defect",
    "dimension",
    "gauge_dimension",
    "generic_dimension",
    "generic_rank",
]


def gauge_dimension(equation: Equation | str) -> sympy.Expr:
    """Dimension of the group that changes the factors of a tree and not its tensor.

    A rank r that joins two factors may have any invertible matrix and its inverse put in: GL(r), of
    dimension r². One that stands in k > 2 factors (CP) may have each of its r columns scaled in
    each factor, as long as the scales multiply to 1: (k - 1) r; the permutations of columns are a
    finite group besides.

    Source: for Tucker and trees Uschmajew and Vandereycken [uschmajew2013].

    >>> gauge_dimension("out r, layer r s, in s -> layer out in")
    r**2 + s**2
    >>> gauge_dimension("i r, j r, k r -> i j k")
    2*r
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    output = flatten(equation.output)
    total: sympy.Expr = sympy.Integer(0)
    bonds = 0
    for n in equation.letters:
        places = sum(n in flatten(term) for term in equation.terms)
        if n not in output:
            r = size_of(n)
            bonds += places - 1
            total += r**2 if places == 2 else (places - 1) * r
    if bonds >= len(equation.terms):
        raise ArgumentError(f"'{equation}' has a loop: its gauge is known for trees only")
    return total


def dimension(equation: Equation | str) -> sympy.Expr:
    """Dimension of the set of tensors of a tree: stored numbers less those of the gauge.

    For trees with ranks that can all be reached (of Tucker: none above its mode or above the
    product of the others), and for CP wherever it is not defective, up to the size of the tensor.

    >>> dimension("out r, r in -> out in")
    in*r + out*r - r**2
    >>> dimension("a r, r b s, s c -> a b c")
    a*r + b*r*s + c*s - r**2 - s**2
    >>> sympy.factor(dimension("i r, j r, k r -> i j k"))
    r*(i + j + k - 2)
    """
    return stored_count(Equation.parse(str(equation))) - gauge_dimension(equation)


def generic_dimension(
    equation: Equation | str, sizes: Mapping[str, int], seed: int = 0, prime: int = PRIME
) -> int:
    """Dimension as it is: the rank of the Jacobian at a random point modulo a prime.

    A lower bound in any case; above it with negligible probability, see `rank_modulo`.

    >>> generic_dimension("a r, b r, c r -> a b c", {"a": 3, "b": 3, "c": 3, "r": 4})
    26
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    rng = np.random.default_rng(seed)
    shapes = [tuple(sizes[n] for n in flatten(term)) for term in equation.terms]
    arrays = [rng.integers(1, prime, shape) for shape in shapes]
    return rank_modulo(jacobian(equation, arrays, prime), prime)


def cp_equation(order: int) -> Equation:
    """CP over modes ``m0 m1 ..`` of one rank.

    >>> print(cp_equation(3))
    m0 r, m1 r, m2 r -> m0 m1 m2
    """
    modes = [f"m{k}" for k in range(order)]
    return Equation(tuple((mode, "r") for mode in modes), tuple(modes))


def defect(shape: Sequence[int], rank: int) -> int:
    """By how much CP tensors of a rank fall short of the dimension that their numbers suggest."""
    sizes = {f"m{k}": n for k, n in enumerate(shape)} | {"r": rank}
    expected = min(math.prod(shape), rank * (sum(shape) - len(shape) + 1))
    return expected - generic_dimension(cp_equation(len(shape)), sizes)


def generic_rank(shape: Sequence[int]) -> int:
    """Rank of almost all complex tensors of a shape: the least whose CP tensors fill the space.

    Over the reals it is the smallest typical rank.

    >>> [generic_rank(shape) for shape in ((2, 2, 2), (3, 3, 3), (2, 3, 4))]
    [2, 5, 4]
    """
    rank = 1
    while True:
        sizes = {f"m{k}": n for k, n in enumerate(shape)} | {"r": rank}
        if generic_dimension(cp_equation(len(shape)), sizes) == math.prod(shape):
            return rank
        rank += 1


DEFECTIVE: Mapping[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 4), 3): "unbalanced: prod - sum of (n - 1) of the others < r < both n and that product",
    ((2, 3, 6), 5): "unbalanced",
    ((3, 3, 3), 4): "3 x n x n, n odd, r = (3 n - 1) / 2",
    ((3, 5, 5), 7): "3 x n x n, n odd, r = (3 n - 1) / 2",
    ((3, 4, 4), 5): "alone",
    ((2, 2, 2, 2), 3): "2 x 2 x n x n, r = 2 n - 1",
    ((2, 2, 3, 3), 5): "2 x 2 x n x n, r = 2 n - 1",
}
"""Shapes and ranks at which CP is defective, and the family of each.

These families are all that are known for three modes and more, and all there are up to 15,000
entries. Every matrix (two modes) of rank 2 or more is defective as well.

Source: Abo, Ottaviani and Peterson [abo2009]; Chiantini, Ottaviani and Vannieuwenhoven
[chiantini2014].
"""
