"""Ranges of files fetched before they are asked for, a few at a time, in bounded memory.

A block is a range that is fetched by one request. Blocks that were read stay until their room is
needed, so that neighbours in one block and the columns of one tensor are fetched once.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from itertools import count
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import numpy as np

__all__ = ["Ahead", "Fetchable", "Range", "expect", "here", "want"]

REQUEST_BYTES = 1 << 25
"""Bytes of one request, at most."""
AHEAD_BYTES = 1 << 28
"""Bytes of all blocks that are fetched or on their way."""
REQUESTS_AT_ONCE = 16
"""Requests on their way at once."""
_PLANS = 4  # of what is read next, that a block outlives unread
_GAP = 200  # part of two neighbours that may lie between them: fetched for nothing


class Fetchable(Protocol):
    """A file whose bytes come by requests, from threads of ours."""

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of a range, all of them."""
        ...


class Range(NamedTuple):
    """Bytes that will be read."""

    file: Fetchable
    start: int
    stop: int


@dataclass(eq=False)
class _FetchedBlock:
    """A range, and its bytes once they are asked for.

    `expected` is the number of the last plan that it is in, 0 once it was read; `used` tells when.
    """

    start: int
    stop: int
    data: Future[bytes] | None = None
    expected: int = 0
    used: int = 0

    @property
    def size(self) -> int:
        return self.stop - self.start

    def can_go(self) -> bool:
        return self.data is not None and self.data.done() and self.expected == 0


class Ahead:
    """Fetches blocks of any number of files.

    Parameters
    ----------
    room
        Bytes that all blocks may take. A block that somebody waits for is fetched in any case.
    block
        Bytes of one request, at most.
    lanes
        Requests at once.
    """

    def __init__(
        self, room: int = AHEAD_BYTES, block: int = REQUEST_BYTES, lanes: int = REQUESTS_AT_ONCE
    ) -> None:
        self._room, self._block = room, block
        self._lock, self._clock, self._plan = threading.Lock(), count(1), 1
        self._blocks: weakref.WeakKeyDictionary[Fetchable, list[_FetchedBlock]] = (
            weakref.WeakKeyDictionary()
        )
        self._waiting: list[tuple[weakref.ref[Fetchable], _FetchedBlock]] = []
        self._lanes = _FetchingThreads(lanes)

    def read_into(self, file: Fetchable, start: int, out: np.ndarray) -> None:
        """Fill an array of bytes with those from ``start`` on."""
        position, stop = start, start + out.nbytes
        while position < stop:
            with self._lock:
                block = self._demanded(file, position, stop)
            data = self._of(file, block)
            last = min(stop, block.stop)
            piece = np.frombuffer(data, np.uint8, last - position, position - block.start)
            out[position - start : last - start] = piece
            position = last
            if last == block.stop:
                with self._lock:
                    block.expected = 0
                    self._go_on()

    def want(self, file: Fetchable, start: int, stop: int) -> None:
        """Fetch a range now, before what is only expected."""
        with self._lock:
            blocks = list(self._covered(file, start, stop))
            for block in blocks:
                block.expected = self._plan
            mine = {id(block) for block in blocks}
            rest = [row for row in self._waiting if id(row[1]) not in mine]
            first = [(weakref.ref(file), block) for block in blocks if block.data is None]
            self._waiting = first + rest
            self._go_on()

    def expect(self, ranges: Sequence[Range]) -> None:
        """Fetch these as far as there is room, in the place of what nobody has begun to fetch.

        What is there by now is kept for its reader, who may be another thread, over a few more of
        these plans.
        """
        with self._lock:
            self._plan += 1
            for blocks in self._blocks.values():
                for block in blocks:
                    if block.expected <= self._plan - _PLANS:
                        block.expected = 0
            for owner, block in self._waiting:
                if (file := owner()) is not None:
                    self._blocks[file].remove(block)
            self._waiting = []
            order: list[tuple[tuple[int, int, int], weakref.ref[Fetchable], _FetchedBlock]] = []
            for k, (file, start, stop) in enumerate(_joined(ranges, self._block)):
                for part, block in enumerate(self._covered(file, start, stop)):
                    block.expected = self._plan
                    if block.data is None:
                        # Two models are read side by side: so come long ranges of both.
                        order.append(((k // 2, part, k % 2), weakref.ref(file), block))
            order.sort(key=lambda row: row[0])
            self._waiting = [(owner, block) for _, owner, block in order]
            self._go_on()

    # All below is called with the lock.

    def _demanded(self, file: Fetchable, start: int, stop: int) -> _FetchedBlock:
        """The block that holds a byte, on its way."""
        block = next(self._covered(file, start, stop))
        block.used = next(self._clock)
        if block.data is None:
            self._waiting = [row for row in self._waiting if row[1] is not block]
            self._make_room(block.size)
            self._start(file, block)
        return block

    def _covered(self, file: Fetchable, start: int, stop: int) -> Iterator[_FetchedBlock]:
        """Blocks, old and new, that hold a range, in order."""
        blocks = self._blocks.setdefault(file, [])
        old = sorted((b for b in blocks if b.start < stop and start < b.stop), key=_start_of)
        for block in old:
            yield from self._new(blocks, start, block.start)
            yield block
            start = block.stop
        yield from self._new(blocks, start, stop)

    def _new(self, blocks: list[_FetchedBlock], start: int, stop: int) -> Iterator[_FetchedBlock]:
        for low, high in _cut(start, stop, self._block):
            block = _FetchedBlock(low, high, used=next(self._clock))
            blocks.append(block)
            yield block

    def _go_on(self) -> None:
        """Fetch what waits, as far as there is room."""
        while self._waiting:
            owner, block = self._waiting[0]
            file = owner()
            if file is not None and not self._make_room(block.size):
                return
            self._waiting.pop(0)
            if file is not None:
                self._start(file, block)

    def _make_room(self, size: int) -> bool:
        """Give up blocks that nobody expects, the longest unused first."""
        everything = [(b.used, b, row) for row in self._blocks.values() for b in row]
        held = sum(block.size for _, block, _ in everything if block.data is not None)
        free = sorted((row for row in everything if row[1].can_go()), key=lambda row: row[0])
        for _, block, row in free:
            if held + size <= self._room:
                break
            row.remove(block)
            held -= block.size
        return held + size <= self._room or held == 0

    def _start(self, file: Fetchable, block: _FetchedBlock) -> None:
        block.data = self._lanes.submit(file, block.start, block.stop)

    # Without the lock.

    def _of(self, file: Fetchable, block: _FetchedBlock) -> bytes:
        assert block.data is not None
        try:
            return block.data.result()
        except BaseException:
            with self._lock:
                blocks = self._blocks.get(file, [])
                if block in blocks:
                    blocks.remove(block)  # whoever asks again sends another request
            raise


class _FetchingThreads:
    """Threads that fetch; no end of the process waits for them."""

    def __init__(self, most: int) -> None:
        self._most, self._threads = most, 0
        self._queue: SimpleQueue[tuple[Future[bytes], Fetchable, int, int]] = SimpleQueue()

    def submit(self, file: Fetchable, start: int, stop: int) -> Future[bytes]:
        data: Future[bytes] = Future()
        self._queue.put((data, file, start, stop))
        if self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._work, name="fetching", daemon=True).start()
        return data

    def _work(self) -> None:
        while True:
            self._fetch(*self._queue.get())

    def _fetch(self, data: Future[bytes], file: Fetchable, start: int, stop: int) -> None:
        try:
            data.set_result(file.fetch(start, stop))
        except BaseException as error:
            data.set_exception(error)


def _start_of(block: _FetchedBlock) -> int:
    return block.start


def _cut(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """A range in equal parts of at most so many bytes."""
    parts = -(-(stop - start) // most)
    edges = [start + (stop - start) * i // parts for i in range(parts + 1)] if parts > 0 else []
    yield from zip(edges, edges[1:], strict=False)


def _joined(ranges: Iterable[Range], most: int) -> list[Range]:
    """Neighbours as one range, in the order in which the first of them is needed."""
    rows = sorted(enumerate(ranges), key=lambda row: (id(row[1].file), row[1].start))
    found: list[tuple[int, Range]] = []
    for rank, one in rows:
        if found and _are_neighbours(found[-1][1], one, most):
            first, last = found[-1]
            stop = max(last.stop, one.stop)
            found[-1] = min(first, rank), Range(last.file, last.start, stop)
        else:
            found.append((rank, one))
    return [one for _, one in sorted(found, key=lambda row: row[0])]


def _are_neighbours(before: Range, after: Range, most: int) -> bool:
    if before.file is not after.file:
        return False
    size = max(before.stop, after.stop) - before.start
    between = after.start - before.stop
    return between <= 0 or (size <= most and _GAP * between <= size)


def here() -> Ahead:
    """The one of this process: a fork has its own, since threads stay behind."""
    return _of_process(os.getpid())


@cache
def _of_process(number: int) -> Ahead:
    return Ahead()


def expect(ranges: Sequence[Range]) -> None:
    """Tell what will be read next, in that order; nothing happens where there is nothing to do."""
    if ranges:
        here().expect(ranges)


def want(ranges: Iterable[Range]) -> None:
    """Tell what is read now."""
    for file, start, stop in ranges:
        here().want(file, start, stop)
