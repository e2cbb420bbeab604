"""Pairs of experts from one layout into the other: exact, rank by rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tdecomp._xp import to_numpy
from tdecomp.collections import AdapterPair

__all__ = ["apart", "side_by_side", "widened", "zero"]


def zero(size: tuple[int, int]) -> AdapterPair:
    """A pair of rank 1 that changes nothing, (out, in)."""
    out, in_ = size
    return AdapterPair(b=np.zeros((out, 1), np.float32), a=np.zeros((1, in_), np.float32))


def apart(pair: AdapterPair, *, interleaved: bool) -> tuple[AdapterPair, AdapterPair]:
    """Gate and up of a fused pair, which share its A.

    Parameters
    ----------
    pair
        ``(2 F, in)``.
    interleaved
        Rows of gate and up alternate, else those of gate come first.
    """
    b = to_numpy(pair.b)
    half = len(b) // 2
    gate, up = (b[::2], b[1::2]) if interleaved else (b[:half], b[half:])
    return replace(pair, b=np.ascontiguousarray(gate)), replace(pair, b=np.ascontiguousarray(up))


def side_by_side(gate: AdapterPair, up: AdapterPair, *, interleaved: bool) -> AdapterPair:
    """The fused pair of gate and up: as wide as both, and at scale 1 where theirs differ."""
    if gate.scale != up.scale:
        gate, up = (replace(p, b=to_numpy(p.b) * p.scale, scale=1.0) for p in (gate, up))
    left, right = to_numpy(gate.b), to_numpy(up.b)
    b = np.zeros((len(left) + len(right), left.shape[1] + right.shape[1]), left.dtype)
    of_gate = slice(None, None, 2) if interleaved else slice(0, len(left))
    of_up = slice(1, None, 2) if interleaved else slice(len(left), None)
    b[of_gate, : left.shape[1]] = left
    b[of_up, left.shape[1] :] = right
    a = np.concatenate([to_numpy(gate.a), to_numpy(up.a)])
    return replace(gate, b=b, a=a)


def widened(pair: AdapterPair, rank: int, scale: float) -> AdapterPair:
    """The same ΔW at another scale, filled up with zeros to a rank."""
    b, a = to_numpy(pair.b), to_numpy(pair.a)
    if pair.scale != scale:
        b = b * (pair.scale / scale)
    extra = rank - pair.rank
    b, a = np.pad(b, ((0, 0), (0, extra))), np.pad(a, ((0, extra), (0, 0)))
    return replace(pair, b=b, a=a, scale=scale)
