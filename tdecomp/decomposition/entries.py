"""Weights of the entries, and masks of those observed: checked, applied, and measured with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tdecomp._xp import Array, double, namespace, working
from tdecomp.decomposition.fit import Fit, Rounding, Trace
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.passes.pieces import pieces_of
from tdecomp.passes.residual import relative, squares
from tdecomp.passes.slices import dense
from tdecomp.stack import Stack

__all__ = ["checked_weights", "observed", "weighted_fit"]


def checked_weights(weights: Array, x: Array | Stack) -> Array:
    """Weights of the entries in float64, the largest 1.

    Raises
    ------
    ArgumentError
        Another shape than `x`, negative or infinite weights, or all 0.
    """
    xp = namespace(weights)
    if len(x.shape) < 2:
        raise ArgumentError("weights need an array of two or more modes")
    if tuple(weights.shape) != tuple(x.shape):
        raise ArgumentError(
            f"weights has the shape {tuple(weights.shape)}, the array {tuple(x.shape)}"
        )
    if xp.isdtype(weights.dtype, "complex floating"):
        raise ArgumentError(f"weights must be real, not {weights.dtype}")
    entries = xp.astype(weights, xp.float64)
    largest = float(xp.max(entries))
    if not (float(xp.min(entries)) >= 0 and 0 < largest < math.inf):
        raise ArgumentError("weights must be finite and 0 or more, and not all 0")
    return entries / largest


def observed(x: Array | Stack, entries: Array) -> Array:
    """The array in working precision, 0 where the weight is 0."""
    array = working(x.dense() if isinstance(x, Stack) else x)
    xp = namespace(array, entries)
    return dense(xp.where(entries > 0, array, xp.zeros_like(array)))


def weighted_fit(
    x: Array,
    entries: Array,
    tensor: Format,
    rounding: Rounding | None,
    trace: Trace,
    spectra: Mapping[str, np.ndarray],
) -> Fit:
    """`make_fit` with all squares multiplied by the weights of the entries."""
    if rounding is not None:
        tensor = tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})
    xp = namespace(x)
    roots = xp.reshape(xp.sqrt(entries), (-1, *x.shape[-2:]))
    parts = []
    for piece, block in pieces_of(x):
        root, wide = roots[piece.sites, ...], double(block)
        found = tensor[piece.index] if piece.index else tensor
        found = found.with_arrays({name: double(a) for name, a in found.arrays.items()})
        difference = wide - xp.reshape(found.to_dense(), tuple(block.shape))
        parts.append((squares(root * difference), squares(root * wide)))
    residual, energy = (np.concatenate(part) for part in zip(*parts, strict=True))
    error = relative(float(residual.sum()), float(energy.sum()))
    return Fit(tensor, error, residual, energy, spectra, trace)
