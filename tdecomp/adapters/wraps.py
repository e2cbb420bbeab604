"""Norms taken of ``V = W + ΔW``: how the DoRA family splits a weight in magnitude and direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tdecomp._xp import Array

__all__ = ["WRAPS", "RowGain", "Wrap"]

Detach = Callable[[Array], Array]
Own = Mapping[str, Array]
"""The arrays of a wrap that belong to one site, by name."""


@dataclass(frozen=True)
class RowGain:
    """W' is V with every row times a number: V need not be formed for the product with tokens.

    Attributes
    ----------
    measure
        ``measure(w, delta)``: what the numbers need to know of V, ``(out,)``; out of the gradient.
    gain
        ``gain(measured, own)``: the numbers, ``(out,)``.
    """

    measure: Callable[[Array, Array], Any]
    gain: Callable[[Array, Own], Any]

    def apply(self, w: Array, delta: Array, own: Own, detach: Detach) -> Any:
        """W', ``(out, in)``."""
        gain = self.gain(detach(self.measure(w, delta)), own)  # (out,)
        return gain[:, None] * (w + delta)


@dataclass(frozen=True, kw_only=True)
class Wrap:
    """One way to write the adapted weight.

    Attributes
    ----------
    factors
        (name, modes, init) of its trainable arrays; ``out`` and ``in`` are whole here.
    apply
        ``apply(w, delta, own, detach)`` gives W', ``(out, in)``; `detach` takes a norm out of the
        gradient.
    rows
        Where W' is V with its rows at other lengths: how long. None: W' is formed whole.
    """

    factors: tuple[tuple[str, tuple[str, ...], str], ...]
    apply: Callable[[Array, Array, Own, Detach], Any]
    rows: RowGain | None = None


def _both(w: Array, delta: Array, own: Own, detach: Detach) -> Any:
    """Every row of V at a length of its own, then every column of that (BoRA)."""
    v = w + delta
    v = (own["magnitude_out"] / detach(_norm(v, 1)))[:, None] * v  # (out, in)
    return (own["magnitude_in"] / detach(_norm(v, 0)))[None, :] * v


def _whole(w: Array, delta: Array, own: Own, detach: Detach) -> Any:
    """W and ΔW, each of norm 1, at lengths of their own; ΔW = 0 has no direction (MAP)."""
    del detach  # these norms are part of the gradient
    w, direction = w / _norm(w, (0, 1)), delta / _norm(delta, (0, 1))
    return own["alpha_w"] * w + own["beta"] * direction


def _norm(x: Array, axis: int | tuple[int, ...]) -> Any:
    """Euclidean norms along an axis; 1 for zeros, which stay zeros when divided by it."""
    size = (x * x).sum(axis)
    return (size + (size == 0)) ** 0.5


_DORA = RowGain(
    measure=lambda w, delta: _norm(w + delta, 1),
    gain=lambda lengths, own: own["magnitude"] / lengths,
)
"""Every row of V at a length of its own (DoRA, EDoRA)."""

WRAPS: Mapping[str, Wrap] = {
    "rows": Wrap(factors=(("magnitude", ("site", "out"), "norm"),), apply=_DORA.apply, rows=_DORA),
    "rows and columns": Wrap(
        factors=(
            ("magnitude_out", ("site", "out"), "norm"),
            ("magnitude_in", ("site", "in"), "norm"),
        ),
        apply=_both,
    ),
    "whole": Wrap(
        factors=(("alpha_w", ("site",), "norm"), ("beta", ("site",), "ones")), apply=_whole
    ),
}
"""By the name that a row gives."""
