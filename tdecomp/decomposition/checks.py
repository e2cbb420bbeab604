"""What iterative decompositions refuse, and how they read a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError, DataError

__all__ = ["check_iteration", "check_real", "check_sweeps", "is_one_of", "seed_of"]

_REAL = (int, float, np.integer, np.floating)


def check_iteration(*, counts: dict[str, Any], amounts: dict[str, Any]) -> None:
    """Refuse counts that are not whole numbers of 1 or more, amounts that are not 0 or more."""
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ArgumentError(f"{name}={count!r} must be a whole number, 1 or more")
    for name, value in amounts.items():
        if not (isinstance(value, _REAL) and 0 <= value < math.inf):
            raise ArgumentError(f"{name}={value!r} must be 0 or more")


def check_sweeps(n_iter_max: Any, tol: Any) -> None:
    """Refuse a number of sweeps or a tolerance that is none."""
    if not (isinstance(n_iter_max, int | np.integer) and isinstance(tol, _REAL)):
        raise ArgumentError(
            f"n_iter_max={n_iter_max!r} must be a whole number, tol={tol!r} a number"
        )
    if n_iter_max < 0 or not tol >= 0:
        raise ArgumentError(f"n_iter_max={n_iter_max!r} and tol={tol!r} must be 0 or more")


def is_one_of(value: Any, words: Sequence[str | None]) -> bool:
    """Whether an option is one of these words; arrays and the like are not."""
    return (value is None or isinstance(value, str)) and value in words


def check_real(x: Array, method: str) -> None:
    """Refuse complex arrays."""
    if namespace(x).isdtype(x.dtype, "complex floating"):
        raise DataError(
            f"{method} takes real arrays, got {x.dtype}: decompose the real and imaginary parts, or"
            " use svd, hosvd or tucker"
        )


def seed_of(random_state: int | np.random.Generator | None) -> int:
    """A seed that a generator gives, or the one given; None is 0."""
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    if random_state is None:
        return 0
    if not isinstance(random_state, int | np.integer) or random_state < 0:
        raise ArgumentError(
            f"random_state={random_state!r} must be a whole number, 0 or more, a"
            " numpy.random.Generator, or None"
        )
    return int(random_state)
