"""What iterative decompositions refuse, and how they read a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError, DataError

__all__ = ["check_iteration", "check_real", "seed_of"]


def check_iteration(*, counts: dict[str, Any], amounts: dict[str, Any]) -> None:
    """Refuse counts that are not whole numbers of 1 or more, amounts that are not 0 or more."""
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ArgumentError(f"{name}={count!r} must be a whole number, 1 or more")
    for name, value in amounts.items():
        if not 0 <= value < math.inf:
            raise ArgumentError(f"{name}={value!r} must be 0 or more")


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
    return 0 if random_state is None else int(random_state)
