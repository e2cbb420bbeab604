"""Factors of which only the direction counts: divided by their norm wherever they stand."""

from __future__ import annotations

from collections.abc import Sequence

from tdecomp._xp import Array, namespace

__all__ = ["LEAST_NORM", "unit_along"]

LEAST_NORM = 1e-4
"""Divided by where a norm is smaller, so that what starts as zeros acts as zeros and has a
gradient; as in PEFT's DeLoRA."""


def unit_along(array: Array, axes: Sequence[int]) -> Array:
    """An array divided by its norm over some axes, or by `LEAST_NORM` where that is more.

    Parameters
    ----------
    array
        Of numpy or of any library of the array API.
    axes
        At least one.

    Returns
    -------
    Array
        Of the same shape: ``x / max(‖x‖, 1e-4)``.

    Examples
    --------
    >>> import numpy as np
    >>> unit_along(np.array([[3.0, 0.0], [4.0, 1e-5]]), [0])
    array([[0.6, 0. ],
           [0.8, 0.1]])
    """
    xp = namespace(array)
    norm = xp.linalg.vector_norm(array, axis=tuple(axes), keepdims=True)
    return array / xp.clip(norm, min=LEAST_NORM)
