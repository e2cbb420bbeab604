"""What formats are made of, read once: names as text or tuples, arrays, sizes and ranks."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from tdecomp._xp import Array
from tdecomp.errors import ArgumentError
from tdecomp.modes import Axis, parse_modes, write_axis

__all__ = ["read_array", "read_arrays", "read_axes", "read_names", "read_sizes"]


def read_names(field: str, given: Any) -> tuple[str, ...]:
    """Names of modes from text, ``"layer out in"``, or from names one by one.

    >>> read_names("modes", "layer (o1 o2) in"), read_names("modes", ["out", "in"])
    (('layer', '(o1 o2)', 'in'), ('out', 'in'))
    """
    return tuple(map(write_axis, read_axes(field, given)))


def read_axes(field: str, given: Any) -> tuple[Axis, ...]:
    """Axes from text, ``"(o1 i1) (o2 i2)"``, or from names and tuples of names.

    >>> read_axes("axes", "(o1 i1) out"), read_axes("axes", [["o1", "i1"], "out"])
    ((('o1', 'i1'), 'out'), (('o1', 'i1'), 'out'))
    """
    if isinstance(given, str):
        return parse_modes(given)
    if not isinstance(given, Sequence):
        raise ArgumentError(f"{field}={given!r} must be text, or a tuple of names")
    return tuple(_axis(field, axis) for axis in given)


def _axis(field: str, axis: Any) -> Axis:
    if isinstance(axis, str):
        return axis
    if isinstance(axis, Sequence) and all(isinstance(name, str) for name in axis):
        return tuple(axis)
    raise ArgumentError(f"{field}: {axis!r} is not the name of a mode, nor a tuple of names")


def read_arrays(field: str, given: Any, *, optional: bool = False) -> tuple[Any, ...]:
    """A tuple of arrays from a tuple or list of them; where `optional`, None stays None."""
    if not isinstance(given, tuple | list):
        raise ArgumentError(f"{field} must be a tuple of arrays, got a {type(given).__name__}")
    return tuple(
        None if x is None and optional else read_array(f"{field}[{k}]", x)
        for k, x in enumerate(given)
    )


def read_array(field: str, given: Any) -> Array:
    """An array, or what stands for one with a shape."""
    if not hasattr(given, "shape"):
        raise ArgumentError(f"{field} must be an array, got a {type(given).__name__}")
    return given


def read_sizes(field: str, given: Any) -> tuple[int, ...]:
    """Sizes or ranks, 0 or more, from a tuple, a list or an array of whole numbers.

    >>> import numpy as np
    >>> read_sizes("ranks", np.array([2, 0]))
    (2, 0)
    """
    entries = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(entries, tuple | list):
        raise ArgumentError(f"{field}={given!r} must be a tuple of whole numbers")
    try:
        sizes = tuple(operator.index(n) for n in entries)
    except TypeError:
        sizes = (-1,)
    if any(n < 0 for n in sizes):
        raise ArgumentError(f"{field}={given!r} must be whole numbers, 0 or more")
    return sizes
