"""Threads of the BLAS below numpy: one for small work, never more than this process may use.

A library that shares out a product waits for the last of its threads. On a machine with other work
to do each of them first waits for its turn, thousands of times in a decomposition of small arrays:
that can take ten times as long as one thread, which on a machine of its own is hardly slower.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import threadpoolctl

__all__ = ["cores", "quota", "threads_by_size", "threads_for"]

Others = ParamSpec("Others")
Given = TypeVar("Given")

_SMALL = 1 << 20  # numbers up to which further threads win less than a fifth


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Inside, as many threads as work on so many numbers is worth; outside, those of before.

    They are never raised above what they were. Where they belong to the process, one of its threads
    at a time sets them, and the others take what they find.
    """
    blas = _blas()
    now = min((library.get_num_threads() or 1 for library in blas.lib_controllers), default=1)
    wish = 1 if numbers <= _SMALL else cores() if now > 1 else now
    with blas.limit(limits=wish) if wish < now else nullcontext():
        yield


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
    return max(1, math.ceil(min(n, quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def quota(own: Path, groups: Path) -> float:
    """Processors' worth of time that control groups grant; infinite where there are none.

    Parameters
    ----------
    own
        Lines ``id:controllers:group`` of the process.
    groups
        Where the control groups are mounted, of version 1 (a folder ``cpu``) or 2.
    """
    granted = math.inf
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = groups / "cpu" if controllers else groups
            place = top / group.lstrip("/")
            for folder in (place, *place.parents):  # a container sees its own group as the top
                if folder.is_relative_to(top):
                    granted = min(granted, _granted(folder))
    return granted


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
