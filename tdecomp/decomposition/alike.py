"""Small arrays of one shape, decomposed as one where every matrix goes by itself anyway.

A call for each of ten thousand small arrays takes longer than what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import device

from tdecomp._xp import namespace
from tdecomp.decomposition.fit import Fit, Fits, relative_error
from tdecomp.decomposition.method import Method
from tdecomp.formats import Format, LowRank
from tdecomp.passes.data import Data, open_data
from tdecomp.passes.pieces import PIECE
from tdecomp.passes.slices import Input
from tdecomp.stack import Stack

__all__ = ["Bundle", "bundles_of", "unbundled"]


@dataclass(frozen=True)
class Bundle:
    """Some inputs as one.

    Attributes
    ----------
    places
        Their positions among all inputs.
    data
        One of them, or several along a mode before all others.
    """

    places: tuple[int, ...]
    data: Data[Any]


def bundles_of(method: Method[Any], xs: Sequence[Input]) -> list[Bundle]:
    """All inputs, those alike together where the method takes them so, in the order they begin."""
    kinds: dict[Hashable, list[int]] = {}
    for i, x in enumerate(xs):
        kinds.setdefault(_kind(x) if _goes_along(method, x) else i, []).append(i)
    places = sorted(some for alike in kinds.values() for some in _within_a_piece(alike, xs))
    return [_bundle(method, [xs[i] for i in some], some, len(places)) for some in places]


def _goes_along(method: Method[Any], x: Input) -> bool:
    return not isinstance(x, Stack | Format) and method.takes_together(tuple(x.shape))


def _kind(x: Any) -> Hashable:
    return type(x), tuple(x.shape), str(x.dtype), str(device(x))


def _within_a_piece(places: list[int], xs: Sequence[Input]) -> Iterator[tuple[int, ...]]:
    """Groups of at most about a million numbers, so that a copy of one is small."""
    step = max(1, PIECE // math.prod(xs[places[0]].shape))
    yield from (tuple(places[i : i + step]) for i in range(0, len(places), step))


def _bundle(
    method: Method[Any], some: Sequence[Any], places: tuple[int, ...], n_bundles: int
) -> Bundle:
    first = open_data(some[0], method.names, keep=n_bundles == 1)
    if len(some) == 1:
        return Bundle(places, first)
    array = namespace(*some).stack(list(some))
    return Bundle(places, open_data(array, ["".join(first.modes) + "_", *first.modes]))


def unbundled(fits: Fits, bundles: Sequence[Bundle]) -> Fits:
    """One fit for each input, in their order."""
    found: dict[int, Fit] = {}
    for fit, bundle in zip(fits, bundles, strict=True):
        parts = _parts(fit, len(bundle.places)) if len(bundle.places) > 1 else [fit]
        found |= zip(bundle.places, parts, strict=True)
    return Fits(tuple(found[i] for i in sorted(found)))


def _parts(fit: Fit, n: int) -> Iterator[Fit]:
    """The fits of the `n` inputs along the first mode."""
    whole, each = fit.tensor, len(fit.residual) // n
    assert isinstance(whole, LowRank)
    ends = np.cumsum([0, *whole.ranks])
    sites = [slice(i, i + each) for i in range(0, n * each, each)]
    columns = [slice(*pair) for pair in pairwise(ends[::each].tolist())]
    for of, held in zip(sites, columns, strict=True):
        arrays = whole.u[:, held], whole.s[held], whole.vh[held, :]
        residual, energy = fit.residual[of], fit.energy[of]
        yield replace(
            fit,
            tensor=LowRank(whole.modes[1:], whole.shape[1:-2], whole.ranks[of], *arrays),
            error=relative_error(residual, energy),
            residual=residual,
            energy=energy,
            spectra={"sites": fit.spectra["sites"][of]},
        )
