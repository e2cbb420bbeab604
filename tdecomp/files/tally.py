"""Counts of what was done, told as fractions."""

from __future__ import annotations

from tdecomp.progress import Progress

__all__ = ["Tally"]


class Tally:
    """Adds up what is done and tells the fraction of a total.

    Examples
    --------
    >>> tally = Tally(print, 4)
    >>> tally.add(1)
    0.25
    >>> tally.add(3)
    1.0
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, max(total, 1), 0

    def add(self, number: int) -> None:
        """Count `number` more as done."""
        self._done += number
        self._progress(self._done / self._total)
