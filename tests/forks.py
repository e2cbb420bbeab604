"""Processes that begin as copies of this one, so that nothing is imported anew."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fork", "forking"]


@contextmanager
def forking() -> Iterator[None]:
    """Where processes are forked, by `subprocess` too: the warnings of jax and Python are no news.

    jax warns in every process that has imported it, and Python of other threads: what the children
    run uses neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fork() -> int:
    """`os.fork`; the number of the child, 0 in it."""
    with forking():
        return os.fork()
