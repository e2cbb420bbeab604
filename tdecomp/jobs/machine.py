"""Where a job computes, and in how much memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tdecomp.errors import ArgumentError
from tdecomp.files.delta import Delta
from tdecomp.stack import Stack
from tdecomp.tasks import Executor

__all__ = ["HERE", "Machine", "half_of_the_free_memory"]


@dataclass(frozen=True)
class Machine:
    """Where to compute, and in how much memory.

    Attributes
    ----------
    device
        Torch device, ``"cuda"`` or ``"cuda:1"``; None: the processor, with numpy.
    max_memory
        Bytes: half for matrices that are kept from one pass to the next, half for work. None: half
        of what is free.
    mmap
        False: local files are read in large pieces, several at once, as those of a server are; for
        network mounts.
    executor
        Whose workers read the models and pass over them; None: this process.
    """

    device: str | None = None
    max_memory: int | None = None
    mmap: bool = True
    executor: Executor | None = None

    def stacks(self, delta: Delta) -> tuple[Stack, ...]:
        """The stacks of a delta, there."""
        if self.executor is not None and self.device is not None:
            raise ArgumentError(
                f"device={self.device!r} is of this process, workers compute with numpy: give"
                " either the device or an executor"
            )
        return tuple(stack.on(self.executor) for stack in self._stacks(delta))

    def _stacks(self, delta: Delta) -> tuple[Stack, ...]:
        limit = half_of_the_free_memory() if self.max_memory is None else self.max_memory
        if limit is None:
            return delta.stacks_on(self.device)
        half = limit // 2
        stacks = delta.stacks_on(self.device, keep=half)
        return tuple(replace(stack, max_memory=half) for stack in stacks)


HERE = Machine()
"""The processor, with numpy, in half of the free memory."""


def half_of_the_free_memory() -> int | None:
    """Half of the memory that is free now, on Linux; else half of all; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(free.split()[1]) // 2
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
