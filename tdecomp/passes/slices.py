"""What a decomposition takes, checked, whole or one matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tdecomp._threads import threads_for
from tdecomp._xp import (
    Array,
    check_array,
    check_not_traced,
    detached,
    float64_scope,
    namespace,
    scope_matters,
    working,
)
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format
from tdecomp.modes import name_modes
from tdecomp.stack import Stack

__all__ = [
    "Input",
    "at_work",
    "check_matrices",
    "check_shape",
    "dense",
    "mode_names",
    "raw_slices",
    "slices",
]

Input = Array | Stack | Format
"""What a decomposition takes: an array, a stack of slices read lazily, or a tensor as factors."""

_SQUARED = 1e150  # entries whose squares still fit float64, and the inverse of the smallest


def check_shape(x: Input) -> None:
    """Refuse what is not an array, stack or format with at least one mode and none empty."""
    if not isinstance(x, Stack | Format):
        check_array(x)
        check_not_traced(x)
    if len(x.shape) < 1 or 0 in x.shape:
        raise DataError(
            f"cannot decompose an array of shape {tuple(x.shape)}: one or more modes, none empty"
        )


def check_matrices(shape: Sequence[int], what: str) -> None:
    """Refuse a shape that has no two modes for a matrix."""
    if len(shape) < 2:
        raise DataError(f"{what} needs two or more modes, got an array of shape {tuple(shape)}")


@contextmanager
def at_work(*xs: Input) -> Iterator[None]:
    """Inside, steps on `xs` have the precision they ask for, and as many threads as they are worth.

    See `float64_scope` and `threads_for`.
    """
    with _in_float64(*xs), threads_for(max(map(_numbers, xs))):
        yield


def _numbers(x: Input) -> int:
    """Numbers that there are to work on: those of a format are its parameters."""
    return x.n_params if isinstance(x, Format) else math.prod(x.shape)


def _in_float64(*xs: Input) -> AbstractContextManager[Any]:
    if not scope_matters():
        return nullcontext()
    arrays: list[Array] = []
    for x in xs:
        if isinstance(x, Format):
            arrays += x.arrays.values()
        else:  # the library of a stack shows only in a slice
            arrays.append(x.slice(0) if isinstance(x, Stack) else x)
    return float64_scope(*arrays)


def dense(x: Array | Stack) -> Array:
    """The array behind `x` in working precision, checked to be finite and within range."""
    array = detached(working(x.dense() if isinstance(x, Stack) else x))
    xp = namespace(array)
    largest = float(xp.max(xp.abs(array)))
    if not math.isfinite(largest):
        raise DataError("the array to decompose contains NaN or Inf")
    if largest > _SQUARED or 0 < largest < 1 / _SQUARED:
        raise DataError(
            f"the largest entry, {largest:.3g}, has no square in float64: divide the array by it"
        )
    if largest * math.sqrt(math.prod(array.shape)) > float(xp.finfo(array.dtype).max):
        raise DataError(
            f"with entries up to {largest:.3g} the norm may not fit {array.dtype}: divide the array"
            " by that, or give it in float64"
        )
    return array


def slices(x: Array | Stack) -> Iterator[Array]:
    """The matrices of `x`, one at a time, in C order over the site modes."""
    if isinstance(x, Stack):
        yield from map(dense, x.slices())
    else:
        xp = namespace(x)
        matrices = xp.reshape(x, (-1, *x.shape[-2:]))
        yield from (dense(matrices[i, ...]) for i in range(matrices.shape[0]))


def raw_slices(x: Array | Stack) -> Iterator[Array]:
    """`slices` that nobody has looked at: NaN and Inf show only in what is computed from them."""
    if isinstance(x, Stack):
        yield from (detached(working(matrix)) for matrix in x.slices())
    else:
        xp = namespace(x)
        matrices = detached(xp.reshape(x, (-1, *x.shape[-2:])))
        yield from (working(matrices[i, ...]) for i in range(matrices.shape[0]))


def mode_names(x: Input, names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Modes of a stack or format, or of an array under the given names."""
    if not isinstance(x, Stack | Format):
        return name_modes(len(x.shape), names)
    if names is not None:
        raise ArgumentError(f"names={names!r} is for arrays: a stack or format names its modes")
    return x.modes
