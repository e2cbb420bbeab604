"""Axes of a chart: where numbers stand, and which of them are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "brief_number"]

_MOST = 307.0  # powers of ten that are floats
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """One axis: the numbers at its ends, and whether equal ratios are equally far apart."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, numbers: Iterable[float], *, log: bool = False) -> Scale:
        """The axis that holds all numbers, with some room at both ends.

        A logarithmic axis takes positive numbers.
        """
        found = [math.log10(n) if log else n for n in numbers]
        low, high = (min(found), max(found)) if found else (0.0, 1.0)
        room = 0.05 * (high - low) or (0.1 if log else 0.1 * abs(high) or 1.0)
        low, high = low - room, high + room
        if not log:
            return cls(low, high)
        return cls(10 ** max(low, -_MOST), 10 ** min(high, _MOST), log=True)

    def share(self, number: float) -> float:
        """Where a number stands, from 0 at the low end to 1 at the high one."""
        low, high, at = map(self._scaled, (self.low, self.high, number))
        return (at - low) / (high - low)

    def _scaled(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on the axis, at most so many."""
        return self._log_ticks(most) if self.log else self._even_ticks(most)

    def _even_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * s for s in _STEPS if power * s >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        first, last = (math.floor(math.log10(n)) for n in (self.low, self.high))
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in range(first, last + 1) for d in digits]
            found = [n for n in found if self.low <= n <= self.high]
            if len(found) <= most:
                break
        else:
            every = math.ceil(len(found) / most)
            found = found[::every]
        return found if len(found) > 1 else self._even_ticks(most)


def brief_number(x: float) -> str:
    """A number in few letters.

    >>> [brief_number(x) for x in (60_000, 1.5e6, 0.05, 0, 3e-7, 250)]
    ['60k', '1.5M', '0.05', '0', '3e-07', '250']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size * (1 - 1e-9):
            return f"{x / size:.3g}{letter}"
    return f"{x:.3g}"
