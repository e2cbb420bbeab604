"""Memory that may be taken."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tdecomp._control_groups import control_groups

__all__ = ["granted_memory", "half_of_the_free_memory"]


def half_of_the_free_memory() -> int | None:
    """Half of what is free now, on Linux; else half of all; None where unknown.

    Within what control groups grant, those of a container or a job.
    """
    free = min(_free(), granted_memory(control_groups("memory")))
    return None if math.isinf(free) else int(free) // 2


def _free() -> float:
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(free.split()[1])
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf


def granted_memory(groups: Iterable[Path]) -> float:
    """Bytes that the groups leave a process, cached files not counted; infinite without a limit."""
    return max(0.0, min((_left(group) for group in groups), default=math.inf))


def _left(group: Path) -> float:
    for limit, used, cached in (
        ("memory.max", "memory.current", "file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ):
        with suppress(OSError, ValueError):  # "max" is no number
            return int((group / limit).read_text()) - _taken(group, used, cached)
    return math.inf


def _taken(group: Path, used: str, cached: str) -> int:
    """Bytes of a group without those of cached files, which it gives back."""
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / used).read_text()) - int(rows.get(cached, 0))
