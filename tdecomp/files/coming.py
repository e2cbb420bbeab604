"""What will be read next, told in time to the servers that have it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from .storage import Range, expect

__all__ = ["Coming"]

_TOLD = 16  # items that are told together
_Item = TypeVar("_Item")


class Coming(Generic[_Item]):
    """Items that are read one after the other, in passes: what is near is asked for in time.

    Parameters
    ----------
    items
        What is read, in that order; some may be left out of a pass.
    ahead
        The ranges of one.

    Examples
    --------
    >>> coming = Coming("abc", lambda letter: iter(()))
    >>> for letter in "abcbc":
    ...     coming.tell(letter)
    """

    def __init__(self, items: Sequence[_Item], ahead: Callable[[_Item], Iterator[Range]]) -> None:
        self._items, self._ahead = items, ahead
        self._places = {item: i for i, item in enumerate(items)}
        self._seen: set[int] = set()
        self._told, self._lock = 0, threading.Lock()

    def tell(self, item: _Item) -> None:
        """Say that an item is being read, for the first time in a pass or again in the next."""
        i = self._places[item]
        with self._lock:
            if i in self._seen:
                self._seen, self._told = set(), 0
            self._seen.add(i)
            if self._told >= len(self._items) or i + _TOLD // 2 < self._told:
                return
            self._told = i + _TOLD
        near = self._items[i : i + _TOLD]
        expect([one for item in near for one in self._ahead(item)])
