"""Whether a tensor in factors is what an adapter computes, and its arrays as factors of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from tdecomp._brief import brief
from tdecomp._xp import Array
from tdecomp.adapters import Bound, Spec
from tdecomp.adapters.terms import SITE_MODES
from tdecomp.formats import Format
from tdecomp.modes import Equation, flatten

__all__ = ["AlikeRow", "alike", "padded"]

_MOST_RANKS = 6
"""Ranks whose names are tried in every order."""

_Term = tuple[tuple[str, ...], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AlikeRow:
    """Arrays of a tensor under the names of an adapter's factors.

    Attributes
    ----------
    arrays
        By factor name, axes as the adapter names them.
    ranks
        Size of every rank of the adapter that they need.
    """

    arrays: Mapping[str, np.ndarray]
    ranks: Mapping[str, int]

    def __repr__(self) -> str:
        return brief(type(self), ", ".join(f"{name}={n}" for name, n in self.ranks.items()))


def alike(spec: Spec, tensor: Format) -> AlikeRow | None:
    """The factors of an adapter whose equation is that of a tensor over site modes, out and in.

    Ranks may have other names, and site modes that stand in one array together may be the adapter's
    ``site``; weights of a CP tensor go into one of its factors.

    Returns
    -------
    AlikeRow or None
        None where the two equations differ.
    """
    network = tensor.to_network()
    if len(spec.terms) != 1 or set(flatten(spec.output)) != set(network.modes[-2:]):
        return None
    terms = _terms(network.equation, network.arrays.values())
    sites = network.modes[:-2]
    if "site" in spec.letters and (joined := _joined(terms, sites)) is not None:
        terms, sites = joined, ("site",)
    operands = spec.terms[0].operands
    fixed = {*sites, *network.modes[-2:]}
    theirs = list(dict.fromkeys(n for letters, _ in terms for n in letters if n not in fixed))
    ours = list(dict.fromkeys(n for o in operands for n in o.letters if n not in fixed))
    if {*ours} & {*SITE_MODES} or (len(operands), len(ours)) != (len(terms), len(theirs)):
        return None
    if len(ours) > _MOST_RANKS:
        return None
    by_letters = {frozenset(letters): (letters, array) for letters, array in terms}
    for order in permutations(theirs):
        called = dict(zip(ours, order, strict=True))
        wanted = [tuple(called.get(n, n) for n in o.letters) for o in operands]
        if all(frozenset(letters) in by_letters for letters in wanted):
            found = [by_letters[frozenset(letters)] for letters in wanted]
            arrays = {
                o.factor: array.transpose([own.index(n) for n in letters])
                for o, letters, (own, array) in zip(operands, wanted, found, strict=True)
            }
            sizes = {n: k for own, array in terms for n, k in zip(own, array.shape, strict=True)}
            return AlikeRow(arrays=arrays, ranks={n: sizes[called[n]] for n in ours})
    return None


def padded(
    bound: Bound, arrays: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays of smaller ranks as factors of an adapter: the same product, and all can be trained.

    Parameters
    ----------
    bound
        The adapter, its ranks no smaller.
    arrays
        By factor name.
    own
        The adapter's own start: in the ranks beyond, one factor is zero, the others are these.
    """
    operands = bound.spec.terms[0].operands
    zero = next((o for o in operands if not own[o.factor].any()), operands[0])
    found: dict[str, np.ndarray] = {}
    for o in operands:
        array, shape = arrays[o.factor], bound.shapes[o.factor]
        within = tuple(map(slice, array.shape))
        beyond = [n for n, k, m in zip(o.letters, array.shape, shape, strict=True) if k < m]
        alive = o != zero and all(n in zero.letters for n in beyond)
        whole = own[o.factor].copy() if alive else np.zeros(shape)
        whole[within] = array
        found[o.factor] = whole
    return found


def _terms(equation: Equation, arrays: Iterable[Array]) -> list[_Term]:
    """Letters and arrays, those of one letter multiplied into another that has it."""
    found = [
        (flatten(term), np.asarray(array, dtype=np.float64))
        for term, array in zip(equation.terms, arrays, strict=True)
    ]
    terms = [(letters, array) for letters, array in found if len(letters) != 1]
    for (letter,), vector in ((letters, array) for letters, array in found if len(letters) == 1):
        k = next((k for k, (letters, _) in enumerate(terms) if letter in letters), None)
        if k is None:
            return found
        letters, array = terms[k]
        shape = [-1 if n == letter else 1 for n in letters]
        terms[k] = letters, array * vector.reshape(shape)
    return terms


def _joined(terms: Sequence[_Term], sites: tuple[str, ...]) -> list[_Term] | None:
    """The site modes as one, first in its array; None where several arrays have some of them."""
    holders = [k for k, (letters, _) in enumerate(terms) if set(letters) & set(sites)]
    if len(holders) != 1 or not set(sites) <= set(terms[holders[0]][0]):
        return None
    letters, array = terms[holders[0]]
    rest = tuple(n for n in letters if n not in sites)
    array = array.transpose([letters.index(n) for n in (*sites, *rest)])
    n_sites = math.prod(array.shape[: len(sites)])
    joined = ("site", *rest), array.reshape(n_sites, *array.shape[len(sites) :])
    return [joined if k == holders[0] else term for k, term in enumerate(terms)]
