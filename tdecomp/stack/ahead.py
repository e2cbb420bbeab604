"""Reading ahead: one thread reads the next item while the caller computes with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

Key = TypeVar("Key")
Item = TypeVar("Item")


def read_ahead(read: Callable[[Key], Item], keys: Sequence[Key]) -> Iterator[Item]:
    """``map(read, keys)``, with the next item being read in a thread while one is in use.

    Never more than one item ahead, so that two are in memory: the caller's and the next. What
    `read` raises comes out at its own item. The thread ends with the iterator: when it is
    exhausted, closed or dropped, at the latest after the read under way.

    Examples
    --------
    >>> list(read_ahead(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    if not keys:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(read, keys[0])
        for key in keys[1:]:
            ready, coming = [coming.result()], reader.submit(read, key)
            yield ready.pop()  # a name would keep the item alive while the caller works
        yield coming.result()
