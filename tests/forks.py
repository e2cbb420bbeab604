"""Processes that begin as copies of this one, so that nothing is imported anew."""

from __future__ import annotations

import os
import warnings

__all__ = ["fork"]


def fork() -> int:
    """`os.fork`; the number of the child, 0 in it.

    jax warns in every process that has imported it, and Python of other threads: what the children
    run uses neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()
