"""Contraction plans: opt_einsum chooses the order once, the array's own library runs the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import opt_einsum

from tdecomp._xp import Array, namespace
from tdecomp.modes import Equation

__all__ = ["Plan", "contract", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """An order of pairwise contractions, as data.

    Attributes
    ----------
    steps
        ``(positions, "ab,bc->ac")``: take the operands at these positions out of the list,
        contract, append the result.
    flops
        Multiply-adds counted as two, summed over the steps.
    peak
        Numbers in the largest intermediate result.
    """

    steps: tuple[tuple[tuple[int, ...], str], ...]
    flops: int
    peak: int

    def run(self, arrays: Sequence[Array]) -> Array:
        """Contract `arrays` in this order."""
        operands = list(arrays)
        for where, symbols in self.steps:
            taken = [operands.pop(i) for i in sorted(where, reverse=True)]
            operands.append(_step(symbols, taken))
        return operands[0]


@lru_cache(maxsize=1024)
def make_plan(symbols: str, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """Best contraction order for an einsum in letters and the shapes of its operands."""
    _, info = opt_einsum.contract_path(symbols, *shapes, shapes=True, optimize="auto")
    steps = tuple((tuple(step[0]), step[2]) for step in info.contraction_list)
    return Plan(steps, int(info.opt_cost), int(info.largest_intermediate))


def contract(equation: Equation, arrays: Sequence[Array]) -> Array:
    """Dense result of an equation over its factors.

    >>> import numpy as np
    >>> contract(Equation.parse("out r, r in -> out in"), [np.ones((2, 3)), np.ones((3, 4))]).shape
    (2, 4)
    """
    shapes = tuple(tuple(a.shape) for a in arrays)
    sizes = equation.sizes(shapes)
    dense = make_plan(equation.symbols, shapes).run(arrays)
    return namespace(dense).reshape(dense, equation.shape(sizes))


def _step(symbols: str, operands: list[Array]) -> Array:
    """One contraction as permute, reshape and batched matmul."""
    left, output = symbols.split("->")
    terms = left.split(",")
    if len(terms) == 1:
        return _arrange(*_sum_out(terms[0], operands[0], output), output)
    a, b = (
        _sum_out(terms[0], operands[0], output + terms[1]),
        _sum_out(terms[1], operands[1], output + terms[0]),
    )
    return _matmul(a, b, output)


def _sum_out(term: str, x: Array, needed: str) -> tuple[str, Array]:
    """Sum over the letters of `term` that nothing else needs."""
    gone = tuple(i for i, letter in enumerate(term) if letter not in needed)
    if not gone:
        return term, x
    return "".join(c for c in term if c in needed), namespace(x).sum(x, axis=gone)


def _arrange(term: str, x: Array, order: str) -> Array:
    return x if term == order else namespace(x).permute_dims(x, tuple(term.index(c) for c in order))


def _matmul(left: tuple[str, Array], right: tuple[str, Array], output: str) -> Array:
    (ta, a), (tb, b) = left, right
    xp = namespace(a, b)
    size = dict(zip(ta + tb, (*a.shape, *b.shape), strict=True))
    batch = "".join(c for c in ta if c in tb and c in output)
    inner = "".join(c for c in ta if c in tb and c not in output)
    rows = "".join(c for c in ta if c not in tb)
    columns = "".join(c for c in tb if c not in ta)

    def block(term: str, x: Array, *groups: str) -> Array:
        return xp.reshape(_arrange(term, x, "".join(groups)), tuple(_prod(size, g) for g in groups))

    product = block(ta, a, batch, rows, inner) @ block(tb, b, batch, inner, columns)
    found = batch + rows + columns
    return _arrange(found, xp.reshape(product, tuple(size[c] for c in found)), output)


def _prod(size: dict[str, int], letters: str) -> int:
    n = 1
    for letter in letters:
        n *= size[letter]
    return n
