"""Networks over one tensor space: products and sums without the dense tensor."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

from array_api_compat import device

from tdecomp._plan import contract
from tdecomp._xp import Array, double, float64_scope, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.equations import fresh, rename
from tdecomp.formats.slices import owners, take
from tdecomp.modes import Axis, Equation, flatten, words, write_axis
from tdecomp.tensor import promoted

__all__ = [
    "Summand",
    "block_sum",
    "blocks",
    "elementwise",
    "inner",
    "kronecker",
    "norm",
    "normalised",
    "refined",
    "times_power",
    "unit",
]

BareNetwork = tuple[Equation, Sequence[Array]]
"""An equation and the arrays of its terms."""


class Summand(NamedTuple):
    """One of the networks that add up to a tensor.

    Where `ranks` are given, the arrays are ``(out, R)``, ``(R,)``, ``(R, in)``, every column
    belongs to one site, ``ranks[site]`` neighbours to each; the first terms of the equation are the
    `owners` of the columns, which need not be formed where sites are taken one by one.
    """

    equation: Equation
    arrays: Sequence[Array]
    sites: tuple[int, ...] = ()
    ranks: tuple[int, ...] | None = None

    @property
    def pair(self) -> BareNetwork:
        if self.ranks is None:
            return self.equation, self.arrays
        return self.equation, [*owners(self.sites, self.ranks, self.arrays[0]), *self.arrays]

    def meets_by_site(self, other: Summand) -> bool:
        """Whether both have columns of their own for every site of one tensor space."""
        return (
            (self.ranks is not None and other.ranks is not None)
            and (self.equation.output, self.sites) == (other.equation.output, other.sites)
            and self.arrays[0].shape[0] == other.arrays[0].shape[0]
            and self.arrays[2].shape[1] == other.arrays[2].shape[1]
        )


def inner(a: Sequence[Summand], b: Sequence[Summand]) -> Array:
    """``Σ conj(a) b`` over all entries of two sums of networks, 0-d in float64 (complex128)."""
    with float64_scope(*a[0].arrays):
        left, right = normalised(a), normalised(b)
        return times_power(_products(left[0], right[0]), left[1] + right[1])


def norm(a: Sequence[Summand]) -> Array:
    """``‖a‖`` as the root of the inner product, which is never formed at its own scale.

    Below 1e-8 of the largest part it is rounding; see `tdecomp.formats.norms`.
    """
    with float64_scope(*a[0].arrays):
        parts, exponent = normalised(a)
        square = _products(parts, parts)
        xp = namespace(square)
        if xp.isdtype(square.dtype, "complex floating"):
            square = xp.real(square)
        return times_power(xp.sqrt(xp.clip(square, min=0.0)), exponent)


def _products(a: Sequence[Summand], b: Sequence[Summand]) -> Array:
    """``Σ conj(a) b``: over all pairs of summands."""
    left = [part._replace(arrays=[_conj(x) for x in part.arrays]) for part in a]
    return reduce(operator.add, (_product(x, y) for x in left for y in b))


def _product(a: Summand, b: Summand) -> Array:
    """``Σ a b``, along one plan or, where both have columns of their own sites, site by site."""
    if not a.meets_by_site(b):
        equation, arrays = elementwise(a.pair, b.pair)
        return contract(Equation(equation.terms, ()), arrays)
    widths = list(zip(a.ranks or (), b.ranks or (), strict=True))
    alike: dict[tuple[int, int], list[int]] = {}
    for site, width in enumerate(widths):
        alike.setdefault(width, []).append(site)
    terms = [
        contract(_BLOCKS, [*blocks(a, sites), *blocks(b, sites)])
        for width, sites in alike.items()
        if 0 not in width
    ]
    u = a.arrays[0]
    zero = namespace(u).zeros((), dtype=u.dtype, device=device(u))
    return reduce(operator.add, terms, zero)


_BLOCKS = Equation.parse("out site r, site r, site r in, out site q, site q, site q in ->")


def blocks(a: Summand, sites: Sequence[int]) -> list[Array]:
    """The columns of sites of one rank: ``(out, site, r)``, ``(site, r)``, ``(site, r, in)``."""
    assert a.ranks is not None
    ends = [0, *accumulate(a.ranks)]
    columns = [k for site in sites for k in range(ends[site], ends[site + 1])]
    if columns[-1] - columns[0] + 1 == len(columns):
        columns = range(columns[0], columns[-1] + 1)  # a view, no copy
    u, s, vh = (take(x, axis, columns) for x, axis in zip(a.arrays, (1, 0, 0), strict=True))
    xp, shape = namespace(u), (len(sites), a.ranks[sites[0]])
    return [
        xp.reshape(u, (u.shape[0], *shape)),
        xp.reshape(s, shape),
        xp.reshape(vh, (*shape, vh.shape[1])),
    ]


def normalised(networks: Sequence[Summand]) -> tuple[Sequence[Summand], Array]:
    """Networks in double precision, divided by one power of 2, and its exponent.

    Every array is brought to a largest entry in [1, 2), so that no product of them overflows;
    powers of 2 change no digit.
    """
    scaled, exponents = [], []
    for part in networks:
        pairs = [unit(double(x)) for x in part.arrays]
        scaled.append(part._replace(arrays=[x for x, _ in pairs]))
        exponents.append(reduce(operator.add, (k for _, k in pairs)))
    xp = namespace(exponents[0])
    top = reduce(xp.maximum, exponents)
    if len(scaled) > 1:
        scaled = [
            part._replace(arrays=[*part.arrays[:-1], times_power(part.arrays[-1], k - top)])
            for part, k in zip(scaled, exponents, strict=True)
        ]
    return scaled, top


def unit(x: Array) -> tuple[Array, Array]:
    """`x` over the power of 2 below its largest magnitude, and the exponent, -1000 for zeros."""
    xp = namespace(x)
    if 0 in x.shape:
        return x, xp.asarray(0.0, dtype=xp.float64, device=device(x))
    largest = xp.max(xp.abs(x))
    zero = largest == 0
    one = xp.ones_like(largest)
    exponent = xp.floor(xp.log2(xp.where(zero, one, largest)))  # no gradient flows through floor
    exponent = xp.where(zero, -1000.0 * one, exponent)
    return times_power(x, -exponent), exponent


def times_power(x: Array, exponent: Array) -> Array:
    """``x · 2^exponent``, in two halves: each is finite where the power itself may overflow."""
    xp = namespace(x, exponent)
    half = xp.floor(0.5 * exponent)
    two = xp.ones_like(exponent) * 2.0
    return x * xp.pow(two, half) * xp.pow(two, exponent - half)


def elementwise(a: BareNetwork, b: BareNetwork) -> tuple[Equation, list[Array]]:
    """The entrywise product as one network: the factors of both over the modes of `a`."""
    a, b = refined(a, b), refined(b, a)
    _check_axes(a, b)
    mine, theirs = a[0], b[0]
    shared = dict(zip(flatten(theirs.output), flatten(mine.output), strict=True))
    ranks = [n for n in _names(theirs) if n not in shared]
    shared |= dict(zip(ranks, fresh(ranks, [*_names(mine), *shared.values()]), strict=True))
    terms = tuple(rename(term, shared) for term in theirs.terms)
    return Equation((*mine.terms, *terms), mine.output), promoted([*a[1], *b[1]])


def block_sum(equation: Equation, a: Sequence[Array], b: Sequence[Array]) -> list[Array] | None:
    """Arrays of the sum of two networks of one equation: blocks along every rank.

    A name that is summed over gets the sum of both sizes; every array holds that of `a` in the
    first block and that of `b` in the last. No product mixes the blocks, because every term has a
    rank and the ranks connect all terms.

    Returns
    -------
    list or None
        None if some term has no rank or the terms fall apart, or if the splits of the axes differ:
        then the sum is not a network of this equation.
    """
    sizes, others = _sizes((equation, a)), _sizes((equation, b))
    kept = flatten(equation.output)
    if any(sizes[n] != others[n] for n in kept):
        return None
    terms = [flatten(term) for term in equation.terms]
    if len(terms) == 1 and sizes == others:
        return [x + y for x, y in zip(a, b, strict=True)]
    uses = Counter(n for term in terms for n in term)
    ranks = {n for n in sizes if n not in kept and (uses[n] > 1 or sizes[n] != others[n])}
    if not _connected([set(term) & ranks for term in terms]):
        return None
    arrays = promoted([*a, *b])
    pairs = zip(terms, arrays[: len(terms)], arrays[len(terms) :], strict=True)
    return [_block(x, y, _where(term, ranks)) for term, x, y in pairs]


def _where(term: Sequence[str], names: Collection[str]) -> list[int]:
    return [k for k, n in enumerate(term) if n in names]


def kronecker(equation: Equation, a: Sequence[Array], b: Sequence[Array]) -> list[Array] | None:
    """Arrays of the entrywise product of two networks of one equation.

    ``z[i, (r s)] = x[i, r] · y[i, s]``: Kronecker products along every name that is summed over,
    entrywise ones along the modes; all ranks multiply. None if the modes differ in size.
    """
    sizes, others = _sizes((equation, a)), _sizes((equation, b))
    kept = flatten(equation.output)
    if any(sizes[n] != others[n] for n in kept):
        return None
    arrays = promoted([*a, *b])
    pairs = zip(equation.terms, arrays[: len(a)], arrays[len(a) :], strict=True)
    outer: list[Array] = []
    for term, x, y in pairs:
        entrywise = [n in kept for n in flatten(term)]
        outer.append(_outer(x, y, entrywise))
    return outer


def _outer(x: Array, y: Array, entrywise: Sequence[bool]) -> Array:
    """Product of two arrays along the marked axes, all pairs along the others."""
    xp = namespace(x, y)
    shape = tuple(
        m if same else m * n for m, n, same in zip(x.shape, y.shape, entrywise, strict=True)
    )
    # axes of one are left out: arrays of many modes would get more axes than their library has
    along = [t for t in zip(x.shape, y.shape, entrywise, strict=True) if t[:2] != (1, 1)]
    both = [(m, n, same or 1 in (m, n)) for m, n, same in along]
    left = xp.reshape(x, tuple(k for m, _, same in both for k in ((m,) if same else (m, 1))))
    right = xp.reshape(y, tuple(k for _, n, same in both for k in ((n,) if same else (1, n))))
    return xp.reshape(left * right, shape)


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
    return namespace(x).zeros(shape, dtype=x.dtype, device=device(x))


def _connected(terms: Sequence[set[str]]) -> bool:
    """Whether shared names lead from the first term to all others; no term may be empty."""
    reached, left = set(terms[0]), list(terms[1:])
    while near := [t for t in left if t & reached]:
        left = [t for t in left if not t & reached]
        reached = reached.union(*near)
    return bool(terms[0]) and not left


def refined(a: BareNetwork, b: BareNetwork) -> BareNetwork:
    """`a` with every plain axis split where `b` splits it: the arrays are only reshaped."""
    equation, arrays = a
    sizes, inner = _sizes(a), _sizes(b)
    for mine, split in zip(equation.output, b[0].output, strict=False):
        if isinstance(mine, str) and not isinstance(split, str):
            parts = tuple(inner[n] for n in split)
            if math.prod(parts) == sizes[mine]:
                equation, arrays = _split(equation, arrays, mine, split, parts)
    return equation, arrays


def _split(
    equation: Equation,
    arrays: Sequence[Array],
    name: str,
    parts: tuple[str, ...],
    sizes: tuple[int, ...],
) -> BareNetwork:
    """The axis `name` split in `sizes`; a joined axis of these parts is what it was before."""
    if name != write_axis(parts):
        (stem,) = fresh([name], ())
        parts = tuple(f"{stem}{k}" for k in range(len(sizes)))
    names = tuple(fresh(parts, [n for n in _names(equation) if n != name]))

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


def _check_axes(a: BareNetwork, b: BareNetwork) -> None:
    mine, theirs = a[0].output, b[0].output
    extents = _extents(a), _extents(b)
    named = all(
        x == y
        for x, y in zip(mine, theirs, strict=False)
        if isinstance(x, str) and isinstance(y, str) and {x} | {y} == words((x, y))
    )
    if extents[0] != extents[1] or not named:
        first, second = _written(mine, extents[0]), _written(theirs, extents[1])
        raise ArgumentError(
            f"the modes ({first}) and ({second}) differ: permute or slice one of the tensors,"
            " and split an axis of both in the same way"
        )


def _extents(network: BareNetwork) -> list[tuple[int, ...]]:
    """Sizes of the parts of every output axis; one size where it is not split."""
    sizes = _sizes(network)
    return [tuple(sizes[n] for n in flatten((axis,))) for axis in network[0].output]


def _written(axes: Sequence[Axis], extents: Sequence[tuple[int, ...]]) -> str:
    sizes = map(math.prod, extents)
    return ", ".join(f"{write_axis(axis)} {n}" for axis, n in zip(axes, sizes, strict=True))


def _names(equation: Equation) -> Mapping[str, None]:
    return dict.fromkeys(n for term in equation.terms for n in flatten(term))


def _sizes(pair: BareNetwork) -> dict[str, int]:
    equation, arrays = pair
    return equation.sizes([tuple(x.shape) for x in arrays])


def _conj(x: Array) -> Array:
    xp = namespace(x)
    return xp.conj(x) if xp.isdtype(x.dtype, "complex floating") else x
