"""Small arrays of a library that compiles every step for every shape: numpy does the work.

A decomposition that searches ranks meets hundreds of shapes. jax compiles each step for each of
them, which takes seconds to minutes for a tensor that numpy decomposes in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from tdecomp._backends import backend_of
from tdecomp._xp import namespace, to_numpy
from tdecomp.decomposition.fit import Fit, Fits
from tdecomp.decomposition.method import Method
from tdecomp.errors import NotReached
from tdecomp.formats import Format
from tdecomp.passes.slices import Input
from tdecomp.stack import Stack

__all__ = ["by_numpy", "wants_numpy"]

_SMALL = 1 << 20  # numbers of all inputs; beyond it the products outweigh the compiler
_SAME = ("float32", "float64", "complex64", "complex128")  # in numpy and back without a cast


def wants_numpy(method: Method[Any], xs: Sequence[Input]) -> bool:
    """Whether all inputs are such arrays, and no option is of their library or a function."""
    return all(
        not isinstance(x, Stack | Format)
        and backend_of(x).compiles_by_shape(x)
        and str(x.dtype) in _SAME
        for x in xs
    ) and (
        sum(math.prod(x.shape) for x in xs) <= _SMALL
        and all(_is_plain(getattr(method, option.name)) for option in fields(method))
    )


def by_numpy(run: Callable[[Sequence[Input]], Fits], xs: Sequence[Any]) -> Fits:
    """What `run` makes of the inputs in numpy, in their library and on their device."""
    try:
        return _back(run([to_numpy(x) for x in xs]), xs)
    except NotReached as short:
        raise NotReached(short.message, _back(short.best, xs)) from None


def _back(fits: Any, xs: Sequence[Any]) -> Fits:
    return Fits(tuple(_back_one(fit, x) for fit, x in zip(fits, xs, strict=True)))


def _back_one(fit: Fit, x: Any) -> Fit:
    xp = namespace(x)
    arrays = {name: xp.asarray(array, device=x.device) for name, array in fit.tensor.arrays.items()}
    return replace(fit, tensor=fit.tensor.with_arrays(arrays))


def _is_plain(value: object) -> bool:
    """Whether an option means the same to every library."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    return value is None or isinstance(value, str | int | float | np.generic | np.random.Generator)
