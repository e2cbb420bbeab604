"""Where a job computes, and in how much memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tdecomp._memory import half_of_the_free_memory
from tdecomp.errors import ArgumentError
from tdecomp.files.delta import Delta
from tdecomp.stack import Site, Stack
from tdecomp.tasks import Executor, goes_near, workers_of

__all__ = ["HERE", "Machine"]


def _nobody(count: float) -> None:
    """Takes bytes that nobody counts."""


@dataclass(frozen=True)
class Machine:
    """Where to compute, and in how much memory.

    Attributes
    ----------
    device
        Torch device, ``"cuda"`` or ``"cuda:1"``; None: the processor, with numpy.
    max_memory
        Bytes: half for matrices that are kept from one pass to the next, half for work. None: half
        of what is free. Of workers, all together keep so much; without a limit each its share of
        what is free where it runs.
    mmap
        False: local files are read in large pieces, several at once, as those of a server are; for
        network mounts.
    executor
        Whose workers read the models and pass over them; None: this process.
    heard
        Called with bytes of both models that a pass has gone over, read or kept from the last one;
        at times from other threads.
    """

    device: str | None = None
    max_memory: int | None = None
    mmap: bool = True
    executor: Executor | None = None
    heard: Callable[[float], None] = field(default=_nobody, repr=False, compare=False)

    def stacks(self, delta: Delta) -> tuple[Stack, ...]:
        """The stacks of a delta, there."""
        if self.executor is not None and self.device is not None:
            raise ArgumentError(
                f"device={self.device!r} is of this process, workers compute with numpy: give"
                " either the device or an executor"
            )

        def visited(site: Site) -> None:
            self.heard(math.prod(site.shape) * delta.pair.bytes_per_number(site.tensor))

        stacks = (replace(stack, visited=visited) for stack in self._stacks(delta))
        return tuple(stack.on(self.executor) for stack in stacks)

    def _stacks(self, delta: Delta) -> tuple[Stack, ...]:
        limit = half_of_the_free_memory() if self.max_memory is None else self.max_memory
        if limit is None:
            return delta.stacks_on(self.device)
        half = limit // 2
        stacks = delta.stacks_on(self.device, keep=half, keep_there=self._kept_there())
        return tuple(replace(stack, max_memory=half) for stack in stacks)

    def _kept_there(self) -> int | None:
        """Bytes that a worker keeps; nothing where another may get the same slices next."""
        if self.executor is None or not goes_near(self.executor):
            return 0
        if self.max_memory is None:
            return None
        return self.max_memory // 2 // max(1, workers_of(self.executor))


HERE = Machine()
"""The processor, with numpy, in half of the free memory."""
