"""Memory for slices that is used again once nothing refers to it.

A new large array costs a page fault per page when it is first written, about as much as widening
and subtracting the numbers that go into it.
"""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

__all__ = ["Recycled"]


class Recycled:
    """Gives out uninitialised arrays, in memory of earlier ones that nobody holds any more.

    An array and all its views must be gone before its memory is given out again, so that no caller
    sees the difference. Free memory is kept for one size only: that of the last array. Several
    threads may ask.

    Examples
    --------
    >>> memory = Recycled()
    >>> first = memory.empty((2, 3), np.dtype(np.float32))
    >>> place = first.ctypes.data
    >>> del first
    >>> memory.empty((3, 2), np.dtype(np.float32)).ctypes.data == place
    True
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # an array may die while its thread is asking for another

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array of a shape and dtype with arbitrary content."""
        nbytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            self._free = [memory for memory in self._free if memory.nbytes == nbytes]
            memory = self._free.pop() if self._free else None
        if memory is None:
            memory = np.empty(nbytes, np.uint8)
        lease = _Lease(np.ndarray(shape, dtype, memory))
        weakref.finalize(lease, self._take_back, memory).atexit = False
        return np.asarray(lease)

    def _take_back(self, memory: np.ndarray) -> None:
        with self._lock:
            self._free.append(memory)


class _Lease:
    """What `numpy.asarray` makes the base of an array, and so of all its views."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
