"""The ranks that ``torchrun`` starts: the first leads, the others do what it gives them.

Calls and what they gave go through the store by which the ranks find each other, so it makes no
difference whether they would talk by gloo or nccl.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from tdecomp.errors import ArgumentError, WorkerError
from tdecomp.tasks.spreading import perform, perform_packed
from tdecomp.tasks.wire import packed

__all__ = ["leading_ranks", "rank_here", "serve_rank"]

_ROOM = "tdecomp"
_STARTS = timedelta(minutes=5)  # in which the ranks find each other
_WAITS = timedelta(days=7)  # for the next call, or for what one gives
_LOOKS = timedelta(seconds=1)


def rank_here() -> int:
    """Which of the ranks this process is, 0 being the first.

    Raises
    ------
    ArgumentError
        A process that ``torchrun`` did not start.
    """
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        raise ArgumentError(
            "this process has no rank",
            tip="start it by torchrun: torchrun --nproc-per-node 2 -m tdecomp decompose ...",
        )
    return int(os.environ["RANK"])


@contextmanager
def leading_ranks() -> Generator[_Ranks]:
    """Inside, the executor of the first rank; afterwards the other ranks end."""
    ranks = _Ranks(_store())
    try:
        yield ranks
    finally:
        ranks.close()


def serve_rank() -> int:
    """Do calls of the first rank until it ends; how many there were."""
    store, count = _store(), 0
    while True:
        number = store.add("taken", 1) - 1
        data = _waited(store, f"task/{number}")
        if not data:
            return count
        store.set(f"result/{number}", perform_packed(data))
        count += 1


class _Ranks:
    """Numbers of calls are taken in order by whichever rank is free, the first one among them."""

    def __init__(self, store: Any) -> None:
        self.store, self._max_workers = store, int(os.environ["WORLD_SIZE"])
        self._given, self._mine = 0, list[int]()
        self._tasks: dict[int, bytes] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> _Numbered:
        """Give a call the next number."""
        assert fn is perform, "what is handed out is always done by `perform`"
        number, data = self._given, packed(args)
        self._tasks[number] = data
        self.store.set(f"task/{number}", data)
        self._given += 1
        return _Numbered(self, number)

    def do_one(self) -> bool:
        """Take the next number, and do its call if that is given already."""
        if not self._mine:
            self._mine.append(self.store.add("taken", 1) - 1)
        number = self._mine[0]
        if number >= self._given:
            return False
        self._mine.pop()
        self.store.set(f"result/{number}", perform_packed(self._tasks[number]))
        return True

    def taken_up(self, number: int) -> bytes:
        """What a call gave, which is forgotten then."""
        found = bytes(self.store.get(f"result/{number}"))
        for kind in ("task", "result"):
            self.store.delete_key(f"{kind}/{number}")
        del self._tasks[number]
        return found

    def close(self) -> None:
        """End the other ranks, wherever they wait."""
        for number in range(self._given, self._given + 2 * self._max_workers):
            self.store.set(f"task/{number}", b"")


class _Numbered:
    """A call with a number, as a future."""

    def __init__(self, ranks: _Ranks, number: int) -> None:
        self._ranks, self._number = ranks, number

    def result(self) -> bytes:
        """What it gave; meanwhile this rank does what others have not begun."""
        key = f"result/{self._number}"
        while not self._ranks.store.check([key]):
            if not self._ranks.do_one():
                try:
                    self._ranks.store.wait([key], _LOOKS)
                except Exception as error:
                    if "timeout" not in str(error).lower():
                        raise
        return self._ranks.taken_up(self._number)


def _waited(store: Any, key: str) -> bytes:
    try:
        store.wait([key], _WAITS)
        return bytes(store.get(key))
    except Exception as error:
        raise WorkerError(
            "the first rank is gone, its work is not done", tip="start all ranks again"
        ) from error


def _store() -> Any:
    """Where the ranks meet."""
    try:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous
    except ImportError:
        raise ArgumentError("ranks need torch", tip="pip install tdecomp-toolkit[torch]") from None
    store, _, _ = next(rendezvous("env://", timeout=_STARTS))
    return PrefixStore(_ROOM, store)
