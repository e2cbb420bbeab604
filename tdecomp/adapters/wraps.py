"""Norms taken of ``V = W + ΔW``: how the DoRA family splits a weight in magnitude and direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tdecomp._xp import Array

__all__ = ["WRAPS", "Wrap"]

Detach = Callable[[Array], Array]


@dataclass(frozen=True)
class Wrap:
    """One way to write the adapted weight.

    Attributes
    ----------
    factors
        (name, modes, init) of its trainable arrays; ``out`` and ``in`` are whole here.
    apply
        ``apply(w, delta, factors, detach)`` gives W', ``(out, in)``; `detach` takes a norm out of
        the gradient.
    lengths
        Where W' is V with row i times ``magnitude[i] / lengths(w, delta)[i]``, and the lengths are
        out of the gradient: these lengths, ``(out,)``. V need not be formed for the product then.
    """

    factors: tuple[tuple[str, tuple[str, ...], str], ...]
    apply: Callable[[Array, Array, Mapping[str, Array], Detach], Array]
    lengths: Callable[[Array, Array], Array] | None = None


def _row_lengths(w: Array, delta: Array) -> Array:
    return _norm(w + delta, 1)


def _rows(w: Array, delta: Array, factors: Mapping[str, Array], detach: Detach) -> Array:
    """Every row of V at a length of its own (DoRA, EDoRA)."""
    gain = factors["magnitude"] / detach(_row_lengths(w, delta))
    return gain[:, None] * (w + delta)


def _both(w: Array, delta: Array, factors: Mapping[str, Array], detach: Detach) -> Array:
    """Every row of V at a length of its own, then every column of that (BoRA)."""
    v = w + delta
    v = (factors["magnitude_out"] / detach(_norm(v, 1)))[:, None] * v
    return (factors["magnitude_in"] / detach(_norm(v, 0)))[None, :] * v


def _whole(w: Array, delta: Array, factors: Mapping[str, Array], detach: Detach) -> Array:
    """W and ΔW, each of norm 1, at lengths of their own; ΔW = 0 has no direction (MAP)."""
    del detach  # these norms are part of the gradient
    w, direction = w / _norm(w, (0, 1)), delta / _norm(delta, (0, 1))
    return factors["alpha_w"] * w + factors["beta"] * direction


def _norm(x: Array, axis: int | tuple[int, ...]) -> Any:
    """Euclidean norms along an axis; 1 for zeros, which stay zeros when divided by it."""
    size = (x * x).sum(axis)
    return (size + (size == 0)) ** 0.5


WRAPS: Mapping[str, Wrap] = {
    "rows": Wrap((("magnitude", ("site", "out"), "norm"),), _rows, _row_lengths),
    "rows and columns": Wrap(
        (
            ("magnitude_out", ("site", "out"), "norm"),
            ("magnitude_in", ("site", "in"), "norm"),
        ),
        _both,
    ),
    "whole": Wrap((("alpha_w", ("site",), "norm"), ("beta", ("site",), "ones")), _whole),
}
