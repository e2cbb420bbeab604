"""Answers of learners, looked at by code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["check"]


def check(number: int, answer: Any, right: Callable[[Any], object], hint: str) -> None:
    """Print what is to be said of an answer; dots (``...``) are no answer yet.

    Parameters
    ----------
    number
        Of the exercise.
    answer
        What the learner's cell gives.
    right
        Whether an answer is right; what it raises is shown, without a traceback.
    hint
        Where to look when it is not.

    Examples
    --------
    >>> check(1, ..., lambda n: n == 4, "Two and two.")
    Exercise 1 is open: write your answer in the place of the dots, then run this cell again.
    >>> check(1, 5, lambda n: n == 4, "Two and two.")
    Exercise 1: not yet. Two and two.
    >>> check(1, 4, lambda n: n == 4, "Two and two.")
    Exercise 1: right.
    """
    if answer is ...:
        how = "write your answer in the place of the dots, then run this cell again."
        print(f"Exercise {number} is open: {how}")
        return
    try:
        found = bool(right(answer))
    except Exception as error:  # whatever an answer does, the learner gets a sentence
        print(f"Exercise {number}: not yet. {type(error).__name__}: {error}. {hint}")
        return
    print(f"Exercise {number}: right." if found else f"Exercise {number}: not yet. {hint}")
