"""Threads: of the BLAS below numpy, as many as the work is worth, and our own side by side.

A library that shares out a product waits for the last of its threads. On a machine with other work
to do each of them first waits for its turn, thousands of times in a decomposition of small arrays:
that can take ten times as long as one thread, which on a machine of its own is hardly slower.
Pieces of work that need nothing of each other wait for no one: side by side, each on one thread.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import threadpoolctl

from tdecomp._control_groups import control_groups

__all__ = [
    "cores",
    "one_each",
    "quota",
    "side_by_side",
    "threads_by_size",
    "threads_for",
    "workers",
]

Others = ParamSpec("Others")
Given = TypeVar("Given")
Chore = TypeVar("Chore")

_SMALL = 1 << 20  # numbers up to which further threads win less than a fifth


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Inside, as many threads as work on so many numbers is worth; outside, those of before.

    They are never raised above what they were. Where they belong to the process, one of its threads
    at a time sets them, and the others take what they find.
    """
    now = _threads_now()
    wish = 1 if numbers <= _SMALL else cores() if now > 1 else now
    with _blas().limit(limits=wish) if wish < now else nullcontext():
        yield


def workers(pieces: int, at_most: int | None = None) -> int:
    """Threads of our own that so many pieces of work of one size are worth.

    1 where these would not keep them all busy, or the BLAS is held to one thread.
    """
    n = min(cores(), _threads_now(), at_most or pieces)
    return n if 1 < 2 * n <= pieces else 1


def one_each(pieces: int) -> int:
    """Threads for pieces of work of which each gets one, however few they are."""
    return max(1, min(cores(), _threads_now(), pieces))


@contextmanager
def side_by_side(
    work: Callable[[Chore], Given], keys: Sequence[Chore], n_workers: int
) -> Iterator[Iterator[Given]]:
    """Inside, ``map(work, keys)`` is at hand, worked on by threads that have one of the BLAS each.

    Results come in the order of the keys; work is begun on twice as many as there are threads.
    What `work` raises comes out at its own key, and then nothing more is begun.

    >>> with side_by_side(abs, [-1, 2, -3], 2) as found:
    ...     list(found)
    [1, 2, 3]
    """
    if n_workers == 1:
        yield map(work, keys)
        return
    with threads_for(1), ThreadPoolExecutor(n_workers, thread_name_prefix="tdecomp") as pool:
        try:
            yield _in_order(pool, work, iter(keys), 2 * n_workers)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Chore], Given], keys: Iterator[Chore], begun: int
) -> Iterator[Given]:
    """Results of the keys, so many of them begun at once."""

    def begin(key: Chore) -> Future[Given]:
        return pool.submit(copy_context().run, work, key)

    coming = [begin(key) for key in islice(keys, begun)]
    while coming:
        found = coming.pop(0).result()
        coming += [begin(key) for key in islice(keys, 1)]
        yield found


def _threads_now() -> int:
    """Of the BLAS libraries that are loaded, the fewest."""
    found = (library.get_num_threads() or 1 for library in _blas().lib_controllers)
    return min(found, default=1)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """The libraries that are loaded, looked up once: numpy's is there from the start."""
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def threads_by_size(
    function: Callable[Concatenate[Any, Others], Given],
) -> Callable[Concatenate[Any, Others], Given]:
    """The function of an array, on as many threads as its work on that array is worth."""

    @functools.wraps(function)
    def sized(x: Any, *args: Others.args, **kwargs: Others.kwargs) -> Given:
        with threads_for(math.prod(getattr(x, "shape", ()))):
            return function(x, *args, **kwargs)

    return sized


def cores() -> int:
    """Processors that this process may keep busy: by its affinity and by the quota of its group."""
    affinity = getattr(os, "sched_getaffinity", None)
    n = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(n, quota(control_groups("cpu")))))


def quota(groups: Iterable[Path]) -> float:
    """Processors' worth of time that control groups grant; infinite without a limit."""
    return min(map(_granted, groups), default=math.inf)


def _granted(folder: Path) -> float:
    """Quota of one group."""
    with suppress(OSError, ValueError):
        allowed, period = (folder / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    with suppress(OSError, ValueError):
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return allowed / period if allowed > 0 else math.inf
    return math.inf
