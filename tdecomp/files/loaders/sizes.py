"""Sizes of a pair from the shape of a weight."""

from __future__ import annotations

import math

from tdecomp.files.loaders.model_names import Shape

__all__ = ["size_of"]


def size_of(shape: Shape) -> tuple[tuple[int, int], ...]:
    """The one (out, in) that a pair may have; none where the shape is not known.

    >>> size_of((8, 3, 2, 2)), size_of(None)
    (((8, 12),), ())
    """
    if shape is None or len(shape) < 2:
        return ()
    return ((shape[0], math.prod(shape[1:])),)
