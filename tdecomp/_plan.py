"""Contraction plans: opt_einsum chooses the order once, the array's own library runs the steps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from opt_einsum.paths import auto, dynamic_programming

from tdecomp._brief import brief, brief_count, brief_list
from tdecomp._xp import Array, namespace
from tdecomp.drawing import Diagram, Drawable, DrawnProduct, DrawnTensor, Panel
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation, flatten

__all__ = ["Optimizer", "Plan", "contract", "contract_two", "make_plan", "plan"]

_AXES = 32  # letters, from which on those of size 1 are left out
_WRITTEN = 12  # steps below a picture
_LOOKED_AT = 1 << 26  # numbers: smaller arrays are formed without a look at the memory

Optimizer = Callable[..., Iterable[Iterable[int]]]
"""``optimizer(inputs, output, sizes, memory_limit)``: sets of letters, sizes by letter -> path.

The path is opt_einsum's: positions to take out of the list of operands, the result goes to its end.
Path optimizer objects of opt_einsum and of cotengra are such callables.
"""


@dataclass(frozen=True, repr=False, kw_only=True)
class Plan(Drawable):
    """An order of pairwise contractions, as data.

    Attributes
    ----------
    steps
        ``(positions, "ab,bc->ac")``: take the operands at these positions out of the list,
        contract, append the result.
    flops
        Summed over the steps: the product of the sizes of all letters of a step, once for the
        multiplication of two operands and once more for the additions if a letter is summed. A
        product of ``(m, k)`` with ``(k, n)`` counts ``2 m k n``, reordering axes nothing.
    peak
        Numbers in the largest array that is formed, the result included; inputs are not formed.
    operands
        Letters and shape of every array that the plan is made for.
    names
        Name of each letter, where the plan was made from names.
    """

    steps: tuple[tuple[tuple[int, ...], str], ...]
    flops: int
    peak: int
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    names: tuple[tuple[str, str], ...] = ()

    def run(self, arrays: Sequence[Array]) -> Array:
        """Contract `arrays` in this order.

        An `ArgumentError` where these are not the arrays that the plan is made for, in number and
        in shape, or where an array on the way would be larger than the whole memory.
        """
        operands = list(arrays)
        self._check(operands)
        size = getattr(operands[0].dtype, "itemsize", 8)
        if self.peak > _LOOKED_AT and self.peak * size > _memory():
            raise ArgumentError(
                f"an array of {self.peak:.3g} numbers ({self.peak * size / 1e9:.3g} GB) would have"
                f" to be formed, which is more than the memory of {_memory() / 1e9:.3g} GB: ask for"
                " slices of the tensor, for norm or inner, or decompose the factors as they are"
            )
        for where, symbols in self.steps:
            taken = [operands.pop(i) for i in sorted(where, reverse=True)]
            operands.append(contract_two(symbols, taken))
        return operands[0]

    def _check(self, arrays: Sequence[Array]) -> None:
        """Refuse arrays of another number or shape than those planned with."""
        if len(arrays) != len(self.operands):
            terms = ", ".join(self._written(letters) for letters, _ in self.operands)
            raise ArgumentError(
                f"this plan contracts {len(self.operands)} arrays ({terms}), got {len(arrays)}:"
                " give one array for each term, in this order"
            )
        for k, ((letters, planned), array) in enumerate(zip(self.operands, arrays, strict=True)):
            shape = getattr(array, "shape", None)
            if shape is None or tuple(shape) != planned:
                given = (
                    f"a {type(array).__name__}" if shape is None else f"the shape {tuple(shape)}"
                )
                raise ArgumentError(
                    f"array {k} of this plan, '{self._written(letters)}', has the shape {planned},"
                    f" got {given}: make a plan for the new sizes, or reorder the arrays"
                )

    def _written(self, letters: str) -> str:
        return " ".join(self._named(letters))

    def _named(self, letters: str) -> tuple[str, ...]:
        name = dict(self.names)
        return tuple(name.get(c, c) for c in letters)

    def __repr__(self) -> str:
        """One line; `str` writes out the steps."""
        return brief(type(self), brief_count(len(self.steps), "step"), *self._costs)

    def __str__(self) -> str:
        """Steps, one per line, then the costs."""
        lines = []
        for _, symbols in self.steps:
            left, output = symbols.split("->")
            terms = ", ".join(map(self._written, left.split(",")))
            lines.append(f"{terms} -> {self._written(output)}")
        return "\n".join([*lines, ", ".join(self._costs)])

    def diagram(self) -> Diagram:
        """What `td.draw` draws: the arrays by their numbers, and the steps below."""
        sizes = {
            name: str(n)
            for letters, shape in self.operands
            for name, n in zip(self._named(letters), shape, strict=True)
        }
        product = DrawnProduct(
            nodes=tuple(
                DrawnTensor(str(k), self._named(letters))
                for k, (letters, _) in enumerate(self.operands)
            ),
            output=self._named(self.steps[-1][1].partition("->")[2]),
            sizes=sizes,
        )
        notes = brief_list(str(self).split("\n"), most=_WRITTEN)
        return Diagram((Panel(title="Plan", products=(product,), notes=tuple(notes)),))

    @property
    def _costs(self) -> tuple[str, str]:
        return f"flops {self.flops:.3g}", f"peak {self.peak:.3g} numbers"


def plan(
    equation: Equation | str,
    sizes: Mapping[str, int] | Sequence[Sequence[int]],
    *,
    memory_limit: int | None = None,
    optimizer: Optimizer | None = None,
) -> Plan:
    """Contraction order of an equation over named modes, with its cost; nothing is computed.

    Parameters
    ----------
    equation
        ``"out r, layer r s, s in -> layer out in"``.
    sizes
        Size of every name, or the shape of every term.
    memory_limit
        Most numbers that any array formed on the way may have, the result included.
    optimizer
        Finds the order, see `Optimizer`. By default opt_einsum's ``auto``: optimal up to 4 terms,
        branching up to 14, greedy beyond; under a memory limit that it misses, dynamic programming.

    Raises
    ------
    ArgumentError
        If no order was found within the limit, or the optimizer's path cannot be used.

    Examples
    --------
    >>> sizes = {"out": 512, "in": 512, "layer": 6, "r": 4, "s": 4}
    >>> print(plan("out r, layer r s, s in -> layer out in", sizes))
    layer r s, out r -> layer s out
    layer s out, s in -> layer out in
    flops 1.27e+07, peak 1.57e+06 numbers
    """
    equation = Equation.parse(equation) if isinstance(equation, str) else equation
    if not isinstance(equation, Equation):
        raise ArgumentError(f"plan takes an equation and then sizes, got {equation!r} first")
    terms = [flatten(term) for term in equation.terms]
    if isinstance(sizes, Mapping):
        if missing := sorted({n for term in terms for n in term} - set(sizes)):
            raise ArgumentError(f"no size for {', '.join(missing)} of '{equation}'")
        sizes = [tuple(sizes[n] for n in term) for term in terms]
    shapes = tuple(tuple(int(n) for n in shape) for shape in sizes)
    equation.sizes(shapes)
    found = make_plan(equation.symbols, shapes, memory_limit=memory_limit, optimizer=optimizer)
    return replace(found, names=tuple((letter, name) for name, letter in equation.letters.items()))


def make_plan(
    symbols: str,
    shapes: tuple[tuple[int, ...], ...],
    *,
    memory_limit: int | None = None,
    optimizer: Optimizer | None = None,
) -> Plan:
    """Best contraction order for an einsum in letters and the shapes of its operands.

    Made once for the same arguments; an `optimizer` is known again by being equal, one that cannot
    be hashed is asked every time.
    """
    find = _cached if isinstance(optimizer, Hashable) else _planned
    return find(symbols, shapes, memory_limit, optimizer)


def contract(
    equation: Equation,
    arrays: Sequence[Array],
    *,
    memory_limit: int | None = None,
    optimizer: Optimizer | None = None,
) -> Array:
    """Dense result of an equation over its factors; `memory_limit` and `optimizer` as in `plan`.

    >>> import numpy as np
    >>> contract(Equation.parse("out r, r in -> out in"), [np.ones((2, 3)), np.ones((3, 4))]).shape
    (2, 4)
    """
    shapes = tuple(tuple(a.shape) for a in arrays)
    sizes, symbols = equation.sizes(shapes), equation.symbols
    if len(equation.letters) > _AXES:
        symbols, arrays = _without_ones(symbols, arrays)
        shapes = tuple(tuple(a.shape) for a in arrays)
    order = make_plan(symbols, shapes, memory_limit=memory_limit, optimizer=optimizer)
    dense = order.run(arrays)
    return namespace(dense).reshape(dense, equation.shape(sizes))


def _without_ones(symbols: str, arrays: Sequence[Array]) -> tuple[str, list[Array]]:
    """The same contraction without letters of size 1: arrays have at most 32 or 64 axes."""
    terms = symbols.split("->")[0].split(",")
    ones = {
        c
        for t, a in zip(terms, arrays, strict=True)
        for c, n in zip(t, a.shape, strict=True)
        if n == 1
    }
    kept = symbols.translate(dict.fromkeys(map(ord, ones)))
    return kept, [_squeezed(a) for a in arrays]


def _squeezed(x: Array) -> Array:
    """`x` without its axes of size 1."""
    return namespace(x).reshape(x, tuple(n for n in x.shape if n != 1))


def _memory() -> float:
    """Bytes of memory that the machine has; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _planned(
    symbols: str,
    shapes: tuple[tuple[int, ...], ...],
    memory_limit: int | None,
    optimizer: Optimizer | None,
) -> Plan:
    if not (memory_limit is None or isinstance(memory_limit, int)):
        raise ArgumentError(f"memory_limit={memory_limit!r} must be a whole number of numbers")
    left, output = symbols.split("->")
    terms = left.split(",")
    sizes = {
        c: n for t, shape in zip(terms, shapes, strict=True) for c, n in zip(t, shape, strict=True)
    }
    least = math.prod(sizes[c] for c in output)
    if memory_limit is not None and least > memory_limit:
        raise ArgumentError(
            f"the result of '{symbols}' has {least} numbers, more than memory_limit={memory_limit}"
        )
    found = []
    for search in (auto, dynamic_programming) if optimizer is None else (optimizer,):
        path = _path(search, terms, output, sizes, memory_limit)
        if path is not None:
            steps = _steps(_pairwise(path, len(terms)), terms, output)
            flops, peak = _costs(steps, sizes)
            operands = tuple(zip(terms, shapes, strict=True))
            found.append(Plan(steps=steps, flops=flops, peak=peak, operands=operands))
            if memory_limit is None or found[-1].peak <= memory_limit:
                return found[-1]
    peak = min((p.peak for p in found), default=None)
    raise ArgumentError(
        f"no order of contracting '{symbols}' was found within memory_limit={memory_limit}"
        + (f": the best one forms an array of {peak} numbers" if peak is not None else "")
        + "; raise the limit or contract a slice at a time"
    )


_cached = lru_cache(maxsize=1024)(_planned)


def _path(
    search: Optimizer, terms: list[str], output: str, sizes: dict[str, int], limit: int | None
) -> list[tuple[int, ...]] | None:
    """What the optimizer says, checked; None where opt_einsum's own finds nothing in the limit."""
    if not callable(search):
        raise ArgumentError(
            f"optimizer={search!r} must be a function of (inputs, output, sizes, memory_limit),"
            " such as opt_einsum.RandomGreedy()"
        )
    if len(terms) == 1:
        return [(0,)]
    inputs = [frozenset(term) for term in terms]
    try:
        answer = search(inputs, frozenset(output), dict(sizes), limit)
    except RuntimeError:
        if search is not dynamic_programming:
            raise
        return None  # its way of saying that the limit is too small
    path, left = [], len(terms)
    try:
        for step in answer:
            where = tuple(int(i) for i in step)
            if not where or len(set(where)) != len(where) or not all(0 <= i < left for i in where):
                raise ValueError(f"step {where} of {left} operands")
            path.append(where)
            left += 1 - len(where)
        if left != 1:
            raise ValueError(f"{left} operands are left at its end")
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the optimizer's path for '{','.join(terms)}->{output}' cannot be used ({error}):"
            " expected tuples of positions, the result of each step going to the end of the list"
        ) from error
    return path


def _pairwise(path: list[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
    """The same path with steps of more than two operands taken two at a time."""
    pairs, left = [], n
    for step in path:
        waiting = sorted(step)
        while len(waiting) > 2:
            pairs.append((waiting[0], waiting[1]))
            waiting = [i - 2 for i in waiting[2:]]  # both stood before all the others
            left -= 1
            waiting.append(left - 1)
        pairs.append(tuple(waiting))
        left += 1 - len(waiting)
    return pairs


def _steps(
    path: list[tuple[int, ...]], terms: list[str], output: str
) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Every step written as an einsum of its own."""
    operands, steps = list(terms), []
    for where in path:
        taken = [operands.pop(i) for i in sorted(where, reverse=True)]
        needed = set(output).union(*operands)
        kept = "".join(c for c in dict.fromkeys("".join(taken)) if c in needed)
        result = kept if operands else output
        operands.append(result)
        steps.append((where, f"{','.join(taken)}->{result}"))
    return tuple(steps)


def _costs(
    steps: tuple[tuple[tuple[int, ...], str], ...], sizes: dict[str, int]
) -> tuple[int, int]:
    """Flops and the largest array of the steps, as `Plan` counts them."""
    flops, peak = 0, 0
    for _, symbols in steps:
        left, result = symbols.split("->")
        letters = set(left) - {","}
        work = math.prod(sizes[c] for c in letters)
        flops += work * (("," in left) + (letters > set(result)))
        peak = max(peak, math.prod(sizes[c] for c in result))
    return flops, peak


def contract_two(symbols: str, operands: list[Array]) -> Array:
    """One or two arrays contracted, ``"abc,bd->acd"``, as permute, reshape and batched matmul."""
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
    if a.dtype != b.dtype:  # torch multiplies no mixed matrices
        dtype = xp.result_type(a, b)
        a, b = xp.astype(a, dtype), xp.astype(b, dtype)
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
