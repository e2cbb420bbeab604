"""How a job of several steps tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

from tdecomp.progress import Progress

__all__ = ["StepProgress", "of_step", "untold"]

StepProgress = Callable[[float, str], None]
"""Called with the fraction of a step that is done, 0 to 1, and the words that name the step."""


def untold(fraction: float, step: str) -> None:
    """Steps that nobody watches."""


def of_step(steps: StepProgress, name: str) -> Progress:
    """Progress of the step of that name.

    >>> of_step(print, "hashing")(0.5)
    0.5 hashing
    """
    return lambda fraction: steps(fraction, name)
