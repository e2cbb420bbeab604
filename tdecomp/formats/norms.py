"""Norms by orthogonal steps: no square is formed, so that what cancels is seen to rounding.

``(a - b).norm()`` of nearly equal tensors is about 1e-16 of ``a.norm()``; the square root of
``<a, a> - 2 <a, b> + <b, b>`` would stop at 1e-8.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import NamedTuple

from array_api_compat import device
from opt_einsum import get_symbol

from tdecomp._plan import contract_two
from tdecomp._xp import Array, double, float64_scope, namespace
from tdecomp.formats.pairs import Summand, blocks, normalised, refined, times_power, unit
from tdecomp.modes import flatten
from tdecomp.tensor import promoted

__all__ = ["MOST_FLOPS", "norm_of_sites", "orthogonal_norm"]

MOST_FLOPS = 4e9  # about a second; above it the norm is the root of an inner product
_MOST_NUMBERS = 1 << 25  # of one array on the way

Wire = int | tuple[int, str]
"""A mode by its number, common to all parts; a rank by its part and name."""


class _Node(NamedTuple):
    names: tuple[Wire, ...]
    array: Array


def orthogonal_norm(parts: Sequence[Summand]) -> Array | None:
    """``‖Σ parts‖`` of networks over one tensor space; None where that costs too much.

    The modes are taken in one after the other, those of all parts together: what the parts have
    taken in so far stands side by side, ``(modes, ranks that lead on)``, and QR leaves only the
    triangle of it. For a chain these are the QR steps of its canonical form ([oseledets2011],
    Algorithm 2). The error is that of QR: 1e-16 of the largest part, times a modest power of the
    sizes.
    """
    with float64_scope(*parts[0].arrays):
        scaled, exponent = normalised(parts)
        held = [part for part in scaled if not any(0 in x.shape for x in part.arrays)]
        if not held:
            like = scaled[0].arrays[0]
            return namespace(like).zeros((), dtype=double(like[:0]).dtype, device=device(like))
        if len(held) == 1 and held[0].ranks is not None:
            return times_power(_of_blocks(held[0]), exponent)
        found = _swept(held)
        return None if found is None else times_power(found[0], exponent + found[1])


def norm_of_sites(pairs: Iterable[tuple[Array, Array]]) -> Array:
    """Norm of a stack of matrices ``left @ right``, from their factors."""
    norms = []
    for pair in pairs:
        with float64_scope(*pair):
            (left, k), (right, q) = (unit(double(x)) for x in pair)
            xp = namespace(left, right)
            left = xp.linalg.qr(left, mode="reduced")[1]
            right = xp.linalg.qr(right.T, mode="reduced")[1]
            norms.append(times_power(_length(left @ right.T), k + q))
    with float64_scope(*norms):
        return _length(namespace(*norms).stack(norms))


def _of_blocks(part: Summand) -> Array:
    """Norm of matrices with columns of their own: QR of both sides of every one."""
    assert part.ranks is not None
    alike: dict[int, list[int]] = defaultdict(list)
    for site, rank in enumerate(part.ranks):
        alike[rank].append(site)
    lengths = []
    for rank in alike.keys() - {0}:
        u, s, vh = blocks(part, alike[rank])  # (out, site, r), (site, r), (site, r, in)
        xp = namespace(u)
        left = xp.linalg.qr(xp.permute_dims(u, (1, 0, 2)), mode="reduced")[1]
        right = xp.linalg.qr(xp.permute_dims(vh, (0, 2, 1)), mode="reduced")[1]
        core = (left * s[:, None, :]) @ xp.permute_dims(right, (0, 2, 1))
        lengths.append(_length(core))
    return _length(namespace(*lengths).stack(lengths))


def _length(x: Array) -> Array:
    """Norm of an array, whatever its scale."""
    xp = namespace(x)
    size, exponent = unit(xp.abs(x))
    return times_power(xp.sqrt(xp.sum(size * size)), exponent)


def _swept(parts: Sequence[Summand]) -> tuple[Array, Array] | None:
    """Norm of the sum over a power of 2, and its exponent."""
    networks, n_modes = _over_one_space(parts)
    networks = _in_joint_bases(networks, n_modes)
    sizes = {n: s for terms in networks for t in terms for n, s in _sized(t)}
    orders = {_order(terms) for terms in networks}
    plans = [[_schedule(terms, order) for terms in networks] for order in sorted(orders)]
    costs = [_cost(networks, plan, sizes) for plan in plans]
    least = min(range(len(plans)), key=lambda k: costs[k])
    return _sweep(networks, plans[least]) if costs[least] <= MOST_FLOPS else None


def _over_one_space(parts: Sequence[Summand]) -> tuple[list[list[_Node]], int]:
    """The terms of every part, modes by number, without axes of size 1."""
    pairs = [part.pair for part in parts]
    for split in list(pairs):
        pairs = [refined(pair, split) for pair in pairs]
    networks = []
    for i, (equation, arrays) in enumerate(pairs):
        number = {name: k for k, name in enumerate(flatten(equation.output))}
        terms = []
        for term, x in zip(equation.terms, arrays, strict=True):
            kept = [(n, s) for n, s in zip(flatten(term), x.shape, strict=True) if s != 1]
            names = tuple(number.get(n, (i, n)) for n, _ in kept)
            terms.append(_Node(names, namespace(x).reshape(x, tuple(s for _, s in kept))))
        networks.append(terms)
    return networks, len(flatten(pairs[0][0].output))


def _in_joint_bases(networks: list[list[_Node]], n_modes: int) -> list[list[_Node]]:
    """Every mode that one term of each part carries, in an orthonormal basis of all of them."""
    networks = [list(terms) for terms in networks]
    carriers: dict[Wire, list[tuple[int, int]]] = defaultdict(list)
    for i, terms in enumerate(networks):
        for j, term in enumerate(terms):
            for name in term.names:
                carriers[name].append((i, j))
    for mode in range(n_modes):
        where = carriers[mode]
        if [i for i, _ in where] != list(range(len(networks))):
            continue
        unfolded = [_rows_first(networks[i][j], mode) for i, j in where]
        widths = [rows.shape[1] for _, rows, _ in unfolded]
        if sum(widths) >= unfolded[0][1].shape[0]:
            continue
        r = _triangle([rows for _, rows, _ in unfolded])
        for (i, j), (names, _, shape), own in zip(where, unfolded, _cut(r, widths), strict=True):
            xp = namespace(own)
            networks[i][j] = _Node((mode, *names), xp.reshape(own, (own.shape[0], *shape)))
    return networks


def _rows_first(term: _Node, mode: int) -> tuple[tuple[Wire, ...], Array, tuple[int, ...]]:
    """The other names, the array as a matrix with the mode as rows, and the other sizes."""
    k, x = term.names.index(mode), term.array
    shape = (*x.shape[:k], *x.shape[k + 1 :])
    xp = namespace(x)
    rows = xp.reshape(xp.moveaxis(x, k, 0), (x.shape[k], math.prod(shape)))
    return (*term.names[:k], *term.names[k + 1 :]), rows, shape


def _triangle(matrices: Sequence[Array]) -> Array:
    """R of the QR of matrices side by side."""
    both = promoted(list(matrices))
    xp = namespace(*both)
    return xp.linalg.qr(xp.concat(both, axis=1), mode="reduced")[1]


def _cut(x: Array, widths: Sequence[int]) -> list[Array]:
    """Columns of the given widths."""
    return [x[:, a:b] for a, b in pairwise(accumulate(widths, initial=0))]


def _sized(term: _Node) -> Iterable[tuple[Wire, int]]:
    return zip(term.names, term.array.shape, strict=True)


def _order(terms: Sequence[_Node]) -> tuple[int, ...]:
    """The modes as the terms name them: along a chain."""
    return tuple(dict.fromkeys(n for term in terms for n in term.names if isinstance(n, int)))


class _Intake(NamedTuple):
    """A mode, and for each term taken in with it its position and what is still needed after it."""

    mode: int
    taken: tuple[tuple[int, tuple[Wire, ...]], ...]


def _schedule(terms: Sequence[_Node], order: Sequence[int]) -> list[_Intake]:
    """For each mode the terms that carry it, then those nearby that bring no new mode."""
    carriers: dict[Wire, set[int]] = defaultdict(set)
    for j, term in enumerate(terms):
        for name in term.names:
            carriers[name].add(j)
    done: set[Wire] = set()
    names: dict[Wire, None] = {}  # of what is taken in, in order
    left, steps = set(range(len(terms))), []
    for mode in order:
        taken, waiting = [], sorted(carriers[mode] & left)
        done.add(mode)
        while waiting:
            j = waiting.pop(0)
            left.remove(j)
            names |= dict.fromkeys(terms[j].names)
            names = {n: None for n in names if isinstance(n, int) or carriers[n] & left}
            taken.append((j, tuple(names)))
            ready = {t for n in names for t in carriers[n] & left if _brings_none(terms[t], done)}
            waiting = [t for t in waiting if t in left] + sorted(ready - set(waiting))
        names.pop(mode, None)
        steps.append(_Intake(mode, tuple(taken)))
    return steps


def _brings_none(term: _Node, done: set[Wire]) -> bool:
    return all(n in done for n in term.names if isinstance(n, int))


def _cost(
    networks: Sequence[Sequence[_Node]],
    plans: Sequence[Sequence[_Intake]],
    sizes: Mapping[Wire, int],
) -> float:
    """Flops of a sweep; infinite where an array on the way would be too large."""
    rows, flops = 1, 0.0
    held: list[tuple[Wire, ...]] = [()] * len(networks)
    size = lambda names: math.prod(sizes[n] for n in names)
    for steps in zip(*plans, strict=True):
        width = 0
        for i, step in enumerate(steps):
            for j, names in step.taken:
                flops += 2.0 * rows * size({*held[i], *networks[i][j].names})
                held[i] = names
                if rows * size(names) > _MOST_NUMBERS:
                    return math.inf
            held[i] = tuple(n for n in held[i] if n != step.mode)
            width += size(held[i])
        rows *= sizes[steps[0].mode]
        if rows * width > _MOST_NUMBERS:
            return math.inf
        if rows > width:
            flops += 2.0 * rows * width**2
            rows = width
    return flops


def _sweep(
    networks: Sequence[Sequence[_Node]], plans: Sequence[Sequence[_Intake]]
) -> tuple[Array, Array]:
    """Take in mode after mode; what is left at the end is a vector of the norm of the sum."""
    like = networks[0][0].array
    xp = namespace(like)
    one = xp.ones((1,), dtype=like.dtype, device=device(like))
    held = [_Node((), one) for _ in networks]  # arrays (rows, *names)
    exponent = xp.zeros((), dtype=xp.float64, device=device(like))
    for steps in zip(*plans, strict=True):
        matrices, rests = [], []
        for i, step in enumerate(steps):
            for j, names in step.taken:
                held[i] = _taken_in(held[i], networks[i][j], names)
            names, x = held[i]
            k = names.index(step.mode) + 1
            rest = tuple(n for n in names if n != step.mode)
            x = xp.moveaxis(x, k, 1)
            rests.append((rest, x.shape[2:]))
            matrices.append(xp.reshape(x, (x.shape[0] * x.shape[1], math.prod(x.shape[2:]))))
        widths = [m.shape[1] for m in matrices]
        joint = xp.concat(promoted(matrices), axis=1)
        if joint.shape[0] > joint.shape[1]:
            joint = xp.linalg.qr(joint, mode="reduced")[1]
        joint, power = unit(joint)
        exponent = exponent + power
        held = [
            _Node(rest, xp.reshape(own, (own.shape[0], *shape)))
            for (rest, shape), own in zip(rests, _cut(joint, widths), strict=True)
        ]
    whole = [_whole(*each) for each in zip(held, networks, plans, strict=True)]
    ends = promoted([term.array for term in whole])
    return _length(reduce(operator.add, ends)), exponent


def _taken_in(held: _Node, term: _Node, names: Sequence[Wire]) -> _Node:
    """The contraction of ``(rows, ..)`` with one more term; `names` stay."""
    letter = {
        n: get_symbol(k) for k, n in enumerate(dict.fromkeys((*held.names, *term.names)), start=1)
    }
    row = get_symbol(0)
    before, own, after = (
        "".join(map(letter.__getitem__, n)) for n in (*held[:1], *term[:1], names)
    )
    symbols = f"{row}{before},{own}->{row}{after}"
    return _Node(tuple(names), contract_two(symbols, [held.array, term.array]))


def _whole(held: _Node, terms: Sequence[_Node], plan: Sequence[_Intake]) -> _Node:
    """With the terms that no mode leads to: numbers, and networks of them."""
    left = set(range(len(terms))) - {j for step in plan for j, _ in step.taken}
    for j in sorted(left):
        left.remove(j)
        later = {n for k in left for n in terms[k].names}
        every = dict.fromkeys((*held.names, *terms[j].names))
        held = _taken_in(held, terms[j], [n for n in every if n in later])
    return held
