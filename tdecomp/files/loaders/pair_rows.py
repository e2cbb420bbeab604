"""Pairs of modules that are held side by side: put together, and taken apart; exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdecomp._xp import to_numpy
from tdecomp.collections import AdapterPair

__all__ = ["cut", "gate_and_up", "joined", "widened", "zero"]


def zero(size: tuple[int, int]) -> AdapterPair:
    """A pair of rank 1 that changes nothing, (out, in)."""
    out, in_ = size
    return AdapterPair(b=np.zeros((out, 1), np.float32), a=np.zeros((1, in_), np.float32))


def gate_and_up(out: int, *, interleaved: bool) -> tuple[slice, slice]:
    """Rows of gate and of up in a fused matrix of so many; they alternate, or gate comes first."""
    if interleaved:
        return slice(0, out, 2), slice(1, out, 2)
    return slice(0, out // 2), slice(out // 2, out)


def cut(pair: AdapterPair, rows: slice) -> AdapterPair:
    """The part of ΔW with these rows, of the same A."""
    return replace(pair, b=np.ascontiguousarray(to_numpy(pair.b)[rows]))


def joined(pairs: Sequence[AdapterPair], rows: Sequence[slice], out: int) -> AdapterPair:
    """The pair whose ΔW holds those of others: as wide as all, and at scale 1 where theirs differ.

    Parameters
    ----------
    pairs
        ``(out_i, in)``.
    rows
        Where the rows of each come.
    out
        Rows of the whole; those of no pair are zero.
    """
    if len({pair.scale for pair in pairs}) > 1:
        pairs = [replace(p, b=to_numpy(p.b) * p.scale, scale=1.0) for p in pairs]
    b = np.zeros((out, sum(p.rank for p in pairs)), to_numpy(pairs[0].b).dtype)
    start = 0
    for pair, place in zip(pairs, rows, strict=True):
        b[place, start : start + pair.rank] = to_numpy(pair.b)
        start += pair.rank
    a = np.concatenate([to_numpy(pair.a) for pair in pairs])
    return replace(pairs[0], b=b, a=a)


def widened(pair: AdapterPair, rank: int, scale: float) -> AdapterPair:
    """The same ΔW at another scale, filled up with zeros to a rank."""
    b, a = to_numpy(pair.b), to_numpy(pair.a)
    if pair.scale != scale:
        b = b * (pair.scale / scale)
    extra = rank - pair.rank
    b, a = np.pad(b, ((0, 0), (0, extra))), np.pad(a, ((0, extra), (0, 0)))
    return replace(pair, b=b, a=a, scale=scale)
