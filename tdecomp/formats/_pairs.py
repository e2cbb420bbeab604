"""Two networks over one tensor space: products and sums without the dense tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tdecomp._xp import Array, double, float64_scope, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats._equations import fresh, rename, write_axis
from tdecomp.modes import Equation, flatten
from tdecomp.plan import contract

__all__ = ["block_sum", "elementwise", "inner", "promoted"]

Pair = tuple[Equation, Sequence[Array]]
"""An equation and the arrays of its terms."""


def inner(a: Pair, b: Pair) -> Array:
    """``Σ conj(a) b`` over all entries, as a 0-d array in float64 (complex128)."""
    with float64_scope(*a[1]):
        wide = (a[0], [_conj(_wide(x)) for x in a[1]]), (b[0], [_wide(x) for x in b[1]])
        equation, arrays = elementwise(*wide)
        return contract(Equation(equation.terms, ()), arrays)


def elementwise(a: Pair, b: Pair) -> tuple[Equation, list[Array]]:
    """The entrywise product as one network: the factors of both over the modes of `a`."""
    a, b = _refined(a, b), _refined(b, a)
    _check_axes(a, b)
    mine, theirs = a[0], b[0]
    shared = dict(zip(flatten(theirs.output), flatten(mine.output), strict=True))
    ranks = [n for n in _names(theirs) if n not in shared]
    shared |= dict(zip(ranks, fresh(ranks, [*_names(mine), *shared.values()]), strict=True))
    terms = tuple(rename(term, shared) for term in theirs.terms)
    return Equation((*mine.terms, *terms), mine.output), promoted([*a[1], *b[1]])


def block_sum(equation: Equation, a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    """Arrays of the sum of two networks of one equation: blocks along every rank.

    A name that is summed over gets the sum of both sizes; every array holds that of `a` in the
    first block and that of `b` in the last. No product mixes the blocks, because every term has a
    rank and the ranks connect all terms.

    Raises
    ------
    ArgumentError
        If some term has no rank or the terms fall apart: then the sum is no such network.
    """
    sizes, others = _sizes((equation, a)), _sizes((equation, b))
    kept = flatten(equation.output)
    if any(sizes[n] != others[n] for n in kept):
        raise ArgumentError(
            f"the splits of '{equation}' differ in size, so the two cannot be added"
        )
    terms = [flatten(term) for term in equation.terms]
    if len(terms) == 1 and sizes == others:
        return [x + y for x, y in zip(a, b, strict=True)]
    ranks = {n for n in sizes if n not in kept}
    ranks -= {n for n in ranks if sum(n in t for t in terms) == 1 and sizes[n] == others[n]}
    if not _connected([set(term) & ranks for term in terms]):
        raise ArgumentError(
            f"a sum of two networks '{equation}' is no such network: its terms are not all"
            " connected by ranks; add the dense tensors"
        )
    arrays = promoted([*a, *b])
    pairs = zip(terms, arrays[: len(terms)], arrays[len(terms) :], strict=True)
    return [_block(x, y, [k for k, n in enumerate(term) if n in ranks]) for term, x, y in pairs]


def promoted(arrays: Sequence[Array]) -> list[Array]:
    """`arrays` in the dtype that all of them fit in."""
    xp = namespace(*arrays)
    dtype = xp.result_type(*arrays)
    return [x if x.dtype == dtype else xp.astype(x, dtype) for x in arrays]


def _block(x: Array, y: Array, axes: Sequence[int]) -> Array:
    xp = namespace(x, y)
    if len(axes) == 1:
        return xp.concat([x, y], axis=axes[0])
    before, after = tuple(x.shape), tuple(y.shape)
    for k in axes:
        x = xp.concat([x, _zeros(x, k, after[k])], axis=k)
        y = xp.concat([_zeros(y, k, before[k]), y], axis=k)
    return x + y


def _zeros(x: Array, axis: int, n: int) -> Array:
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    return namespace(x).zeros(shape, dtype=x.dtype, device=x.device)


def _connected(terms: Sequence[set[str]]) -> bool:
    """Whether shared names lead from the first term to all others; no term may be empty."""
    reached, left = set(terms[0]), list(terms[1:])
    while near := [t for t in left if t & reached]:
        left = [t for t in left if not t & reached]
        reached = reached.union(*near)
    return bool(terms[0]) and not left


def _refined(a: Pair, b: Pair) -> Pair:
    """`a` with every plain axis split where `b` splits it: the arrays are only reshaped."""
    equation, arrays = a
    sizes, inner = _sizes(a), _sizes(b)
    for mine, split in zip(equation.output, b[0].output, strict=False):
        if isinstance(mine, str) and not isinstance(split, str):
            parts = tuple(inner[n] for n in split)
            if math.prod(parts) == sizes[mine]:
                equation, arrays = _split(equation, arrays, mine, parts)
    return equation, arrays


def _split(equation: Equation, arrays: Sequence[Array], name: str, sizes: tuple[int, ...]) -> Pair:
    names = tuple(fresh([f"{name}{k}" for k in range(len(sizes))], _names(equation)))

    def opened(axes, each, parts):
        return tuple(
            p for a, n in zip(axes, each, strict=True) for p in (parts if a == name else (n,))
        )

    split = [
        namespace(x).reshape(x, opened(term, x.shape, sizes))
        for term, x in zip(equation.terms, arrays, strict=True)
    ]
    terms = tuple(opened(term, term, names) for term in equation.terms)
    return Equation(terms, tuple(names if a == name else a for a in equation.output)), split


def _check_axes(a: Pair, b: Pair) -> None:
    mine, theirs = a[0].output, b[0].output
    sizes = [_sizes(a), _sizes(b)]
    extents = [
        [tuple(size[n] for n in flatten((axis,))) for axis in output]
        for size, output in zip(sizes, (mine, theirs), strict=True)
    ]
    named = all(x == y for x, y in zip(mine, theirs, strict=False) if isinstance(x, str))
    if extents[0] != extents[1] or not named:
        write = [
            ", ".join(f"{write_axis(x)} {math.prod(n)}" for x, n in zip(o, e, strict=True))
            for o, e in zip((mine, theirs), extents, strict=True)
        ]
        raise ArgumentError(
            f"the modes ({write[0]}) and ({write[1]}) differ: permute or slice one of the tensors,"
            " and split an axis of both in the same way"
        )


def _names(equation: Equation) -> Mapping[str, None]:
    return dict.fromkeys(n for term in equation.terms for n in flatten(term))


def _sizes(pair: Pair) -> dict[str, int]:
    equation, arrays = pair
    return equation.sizes([tuple(x.shape) for x in arrays])


def _wide(x: Array) -> Array:
    xp = namespace(x)
    if xp.isdtype(x.dtype, "complex floating"):
        return xp.astype(x, xp.complex128)
    return double(x)


def _conj(x: Array) -> Array:
    xp = namespace(x)
    return xp.conj(x) if xp.isdtype(x.dtype, "complex floating") else x
