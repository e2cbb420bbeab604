"""What every rule for the start of a factor states about itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec

import numpy as np

__all__ = ["StartRule"]

P = ParamSpec("P")


@dataclass(frozen=True)
class StartRule(Generic[P]):
    """One way to make the first numbers of a factor.

    Attributes
    ----------
    make
        The array, float64, of what this kind of rule is given.
    arguments
        Fewest and most arguments it is written with.
    axes
        Fewest and most axes of a factor that can start so.
    """

    make: Callable[P, np.ndarray]
    arguments: tuple[int, int] = (0, 0)
    axes: tuple[int, float] = (0, math.inf)
