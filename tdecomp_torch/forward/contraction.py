"""Pairwise contractions of torch tensors, worked out once: permute, reshape, multiply.

A `PairwiseStep` says everything about one product in plain numbers, so that running it needs
neither planning nor parsing. One letter may have any size: that of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdecomp._plan import make_plan
from tdecomp.modes import Equation

__all__ = ["TOKEN", "Contraction", "Letters", "PairwiseStep", "added_to", "compiled"]

TOKEN = "token"
"""The letter whose size is not fixed."""

Letters = tuple[str, ...]
_TRAFFIC = 32.0


@dataclass(frozen=True)
class Arrangement:
    """How an array is brought into shape; None where nothing has to be done."""

    summed: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    def lay(self, x: Tensor) -> Tensor:
        """Sum, permute and reshape."""
        if self.summed is not None:
            x = x.sum(self.summed)  # the letters that are kept
        if self.order is not None:
            x = x.permute(self.order)  # (*batch, *rows, *inner)
        return x if self.shape is None else x.reshape(self.shape)  # (*batch, rows, inner)


@dataclass(frozen=True, kw_only=True)
class PairwiseStep:
    """One product: operands `left` and `right` leave the list, the result goes to its end."""

    left: int
    right: int
    left_as: Arrangement
    right_as: Arrangement
    entrywise: bool
    shape: tuple[int, ...] | None

    def take(self, operands: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The two operands, laid out and taken out of the list."""
        a, b = operands[self.left], operands[self.right]
        for i in sorted((self.left, self.right), reverse=True):
            del operands[i]
        return self.left_as.lay(a), self.right_as.lay(b)

    def run(self, operands: list[Tensor]) -> None:
        """Multiply."""
        a, b = self.take(operands)
        product = a * b if self.entrywise else torch.matmul(a, b)
        operands.append(product if self.shape is None else product.reshape(self.shape))


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A whole contraction.

    Attributes
    ----------
    steps
        Products in order.
    last
        Lays out the result.
    costs
        Of every product: flops, and 32 more (about what writing and reading takes) for every number
        that is formed.
    columns
        Width of the last product where it is one of two matrices, (tokens .., columns), else 0.
    """

    steps: tuple[PairwiseStep, ...]
    last: Arrangement
    costs: tuple[float, ...]
    columns: int = 0

    @property
    def cost(self) -> float:
        """Of all products."""
        return sum(self.costs)

    def run(self, operands: Sequence[Tensor], *, done: int = 0) -> Tensor:
        """Contract; `operands` may be what is left after the first `done` steps."""
        left = list(operands)
        for step in self.steps[done:]:
            step.run(left)
        return self.last.lay(left[0])

    def run_onto(
        self, operands: Sequence[Tensor], base: Tensor, scale: float | Tensor, *, done: int = 0
    ) -> Tensor:
        """``base + scale * result`` for a base of (tokens, ...); the last product adds at once."""
        if isinstance(scale, Tensor) or not self.columns or done == len(self.steps):
            return added_to(base, self.run(operands, done=done), scale)
        left = list(operands)
        for step in self.steps[done:-1]:
            step.run(left)
        a, b = self.steps[-1].take(left)
        onto = base.reshape(-1, self.columns)  # (token *rows, columns)
        return torch.addmm(onto, a, b, alpha=scale).reshape(base.shape)  # (token, ...)


def added_to(base: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
    """``base + scale * x`` for a number, or a tensor without axes."""
    if isinstance(scale, Tensor):
        return base + (scale * x).to(base.dtype)
    return torch.add(base, x, alpha=scale)


def compiled(
    terms: Sequence[Letters], output: Sequence[str], sizes: Mapping[str, int]
) -> Contraction:
    """Best order for a product of operands, worked out down to the shapes.

    Parameters
    ----------
    terms
        Letters of every operand.
    output
        Letters of the result. Where `TOKEN` is the first of them, the others are joined to one
        axis: ``(token, out)``.
    sizes
        Size of every letter; that of `TOKEN` is the number planned for.
    """
    equation = Equation(tuple(terms), tuple(output))
    shapes = tuple(tuple(sizes[n] for n in term) for term in terms)
    path = [where for where, _ in make_plan(equation.symbols, shapes).steps if len(where) > 1]
    planned = _along(path, terms, output, sizes)
    if TOKEN not in terms[0] or len(terms) < 4:  # in which no other order is cheaper
        return planned
    chained = _along(_one_by_one(terms, output, sizes), terms, output, sizes)
    return min((planned, chained), key=lambda own: own.cost)


def _one_by_one(
    terms: Sequence[Letters], output: Sequence[str], sizes: Mapping[str, int]
) -> list[tuple[int, int]]:
    """The tokens times one operand after the other, always the one that costs least.

    For a few tokens this is cheapest more often than the plan of a long product finds it.
    """
    now, left, path = {*terms[0]}, [*range(1, len(terms))], []
    while left:
        made, costs = {}, {}
        for k in left:
            needed = {*output}.union(*(terms[j] for j in left if j != k))
            made[k] = (now | {*terms[k]}) & needed
            work = math.prod(sizes[n] for n in now | {*terms[k]})
            costs[k] = work + _TRAFFIC * math.prod(sizes[n] for n in made[k])
        best = min(costs, key=lambda k, costs=costs: costs[k])
        at = left.index(best)
        path.append((at, len(left)) if path else (0, at + 1))  # products stand behind what is left
        now = made[best]
        left.remove(best)
    return path


def _along(
    path: Sequence[tuple[int, ...]],
    terms: Sequence[Letters],
    output: Sequence[str],
    sizes: Mapping[str, int],
) -> Contraction:
    """The products of a path, down to the shapes."""
    operands, steps, costs = list(map(tuple, terms)), [], []
    final, columns = tuple(output), ()
    for where in _token_first(path, len(terms)) if TOKEN in operands[0] else path:
        i, j = sorted(where, key=lambda k: (TOKEN not in operands[k], k))
        a, b = operands[i], operands[j]
        operands = [term for k, term in enumerate(operands) if k not in where]
        needed = {*final}.union(*operands)
        step, result, columns = _step((i, j), a, b, needed, sizes, () if operands else final)
        steps.append(step)
        operands.append(result)
        work = math.prod(sizes[n] for n in {*a, *b}) * (1 if step.entrywise else 2)
        costs.append(work + _TRAFFIC * math.prod(sizes[n] for n in result))
    joined = final[:1] == (TOKEN,) and len(final) != 2
    last = Arrangement(
        *_arranged(operands[0], final),
        shape=(-1, math.prod(sizes[n] for n in final[1:])) if joined else None,
    )
    onto = final[:1] == (TOKEN,) and operands[0] == final and columns
    width = math.prod(sizes[n] for n in columns) if onto else 0
    return Contraction(steps=tuple(steps), last=last, costs=tuple(costs), columns=width)


def _token_first(path: Sequence[tuple[int, ...]], n: int) -> list[tuple[int, int]]:
    """The same products in another order: that of the tokens comes first where it can.

    It can where its partner is an operand and not itself a product. Sites that read the same tokens
    then share it.
    """
    numbers, products = list(range(n)), []
    for where in path:
        a, b = (numbers[k] for k in sorted(where))
        numbers = [k for k in numbers if k not in (a, b)] + [n + len(products)]
        products.append((a, b, numbers[-1]))
    products.sort(key=lambda p: 0 if p[0] == 0 and p[1] < n else 1)
    left, found = list(range(n)), []
    for a, b, new in products:
        found.append((left.index(a), left.index(b)))
        left = [k for k in left if k not in (a, b)] + [new]
    return found


def _step(
    where: tuple[int, int],
    a: Letters,
    b: Letters,
    needed: set[str],
    sizes: Mapping[str, int],
    final: Letters,
) -> tuple[PairwiseStep, Letters, Letters]:
    """One product, the letters of its result, and of its columns if it is one of matrices.

    The last product takes rows and columns in the order of `final`: turning a factor is cheaper
    than turning the result.
    """
    a_ = tuple(n for n in a if n in needed or n in b)  # the others are summed over first
    b_ = tuple(n for n in b if n in needed or n in a)
    place = {n: k for k, n in enumerate(final)}
    ordered = lambda letters: tuple(sorted(letters, key=lambda n: place.get(n, 0)))
    inner = tuple(n for n in a_ if n in b_ and n not in needed)
    batch = tuple(n for n in a_ if n in b_ and n in needed)
    rows = ordered(n for n in a_ if n not in b_)
    columns = ordered(n for n in b_ if n not in a_)
    if not inner:
        step = _entrywise(where, (a, a_), (b, b_), columns, sizes)
        return step, (*a_, *columns), ()
    step = _matmul(where, a, b, (batch, rows, inner, columns), sizes)
    return step, (*batch, *rows, *columns), () if batch else columns


def _entrywise(
    where: tuple[int, int],
    left: tuple[Letters, Letters],
    right: tuple[Letters, Letters],
    columns: Letters,
    sizes: Mapping[str, int],
) -> PairwiseStep:
    """A product without a sum; of each operand its letters, and those that are kept."""
    (a, a_), (b, b_) = left, right
    result = (*a_, *columns)
    spread = tuple(_size((n,), sizes) if n in b_ else 1 for n in result)
    right_order = tuple(n for n in result if n in b_)
    return PairwiseStep(
        left=where[0],
        right=where[1],
        left_as=Arrangement(*_arranged(a, a_), shape=_sized(a_, sizes, ones=len(columns))),
        right_as=Arrangement(*_arranged(b, right_order), shape=spread),
        entrywise=True,
        shape=None,
    )


def _matmul(
    where: tuple[int, int],
    a: Letters,
    b: Letters,
    groups: tuple[Letters, Letters, Letters, Letters],
    sizes: Mapping[str, int],
) -> PairwiseStep:
    """``(*batch, rows, inner)`` times ``(*batch, inner, columns)``; the groups in this order."""
    batch, rows, inner, columns = groups
    n_rows, n_inner, n_columns = (_size(group, sizes) for group in (rows, inner, columns))
    lead = tuple(_size((n,), sizes) for n in batch)
    product = (*lead, n_rows, n_columns)
    shape = tuple(_size((n,), sizes) for n in (*batch, *rows, *columns))
    return PairwiseStep(
        left=where[0],
        right=where[1],
        left_as=_laid(a, (*batch, *rows, *inner), (*lead, n_rows, n_inner), sizes),
        right_as=_laid(b, (*batch, *inner, *columns), (*lead, n_inner, n_columns), sizes),
        entrywise=False,
        shape=None if product == shape else shape,
    )


def _size(letters: Letters, sizes: Mapping[str, int]) -> int:
    return -1 if TOKEN in letters else math.prod(sizes[n] for n in letters)


def _sized(letters: Letters, sizes: Mapping[str, int], ones: int) -> tuple[int, ...] | None:
    """Shape with axes of size 1 at the end; None where nothing changes."""
    return (*(_size((n,), sizes) for n in letters), *(1,) * ones) if ones else None


def _laid(
    term: Letters, to: Letters, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> Arrangement:
    same = shape == tuple(_size((n,), sizes) for n in to)
    return Arrangement(*_arranged(term, to), shape=None if same else shape)


def _arranged(term: Letters, to: Letters) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Axes of `term` that are summed over, and the order of the rest."""
    gone = tuple(k for k, n in enumerate(term) if n not in to)
    kept = tuple(n for n in term if n in to)
    return gone or None, None if kept == to else tuple(kept.index(n) for n in to)
