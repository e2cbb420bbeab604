"""How long work tells how far it is: a function that is called with a fraction."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "part", "silent"]

Progress = Callable[[float], None]
"""Called with the fraction of the work that is done."""


def silent(fraction: float) -> None:
    """Progress that goes nowhere."""


def part(progress: Progress, start: float, stop: float) -> Progress:
    """Progress of a step that covers ``[start, stop]`` of the whole."""
    return lambda fraction: progress(start + (stop - start) * fraction)
