"""Reading ahead: the same slices, one more in memory, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from tdecomp.stack import Stack
from tdecomp.stack.ahead import read_ahead
from tests.waiting import PATIENCE, new_threads, wait_until

Threads = Callable[[], list[threading.Thread]]


@pytest.fixture(autouse=True)
def threads() -> Iterator[Threads]:
    """Those that the test has begun; none is left of them."""
    with new_threads("read-ahead") as found:
        yield found
        assert found() == []


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_order(n: int):
    assert list(read_ahead(lambda key: 10 * key, range(n))) == [10 * i for i in range(n)]


def test_nothing_is_read_before_it_is_asked_for(threads: Threads):
    read = read_ahead(lambda key: pytest.fail("read"), [1, 2])
    assert threads() == []
    read.close()


def test_the_next_is_read_while_this_one_is_in_use():
    reading = {key: threading.Event() for key in range(3)}

    def read(key: int) -> int:
        reading[key].set()
        return key

    for key in read_ahead(read, range(3)):
        if key + 1 in reading:  # without a thread this would never be set
            assert reading[key + 1].wait(PATIENCE)


def test_never_more_than_one_ahead():
    asked: list[int] = []
    for count, _ in enumerate(read_ahead(lambda key: asked.append(key), range(9)), 1):
        assert len(asked) <= count + 1
    assert asked == list(range(9))


def test_at_most_two_items_are_alive():
    alive: set[int] = set()
    most = 0

    def read(key: int) -> np.ndarray:
        nonlocal most
        array = np.full(4, key)
        alive.add(key)
        weakref.finalize(array, alive.discard, key)
        most = max(most, len(alive))
        return array

    items = read_ahead(read, range(8))
    for key in range(8):
        item = next(items)
        assert item[0] == key
        del item  # what the caller drops is dropped
        # The thread that read it may be about to let go of it.
        assert key == 7 or wait_until(lambda key=key: key not in alive)
    items.close()
    assert most <= 2


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_an_error_comes_at_its_own_item(bad: int, threads: Threads):
    def read(key: int) -> int:
        if key == bad:
            raise ValueError(f"item {key}")
        return key

    items = read_ahead(read, range(5))
    assert [next(items) for _ in range(bad)] == list(range(bad))
    with pytest.raises(ValueError, match=f"item {bad}"):
        next(items)
    assert list(items) == []
    assert threads() == []


def test_closing_early_ends_the_thread_after_the_read_under_way(threads: Threads):
    asked: list[int] = []
    items = read_ahead(lambda key: asked.append(key), range(100))
    next(items)
    items.close()
    assert threads() == []
    assert len(asked) <= 2


def test_dropping_it_ends_the_thread(threads: Threads):
    items = read_ahead(lambda key: key, range(100))
    next(items)
    assert len(threads()) == 1
    del items
    gc.collect()
    assert threads() == []


def test_an_interrupted_loop_ends_the_thread(threads: Threads):
    def loop() -> None:
        for _ in read_ahead(lambda key: key, range(100)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    gc.collect()
    assert threads() == []


def test_a_stack_read_ahead_is_the_same_stack(rng: np.random.Generator):
    arrays = {f"h.{i}.att.{p}.weight": rng.standard_normal((6, 4)) for i in range(3) for p in "qk"}
    (plain,) = Stack.from_arrays(arrays)
    reader: set[str] = set()

    def read(site):
        reader.add(threading.current_thread().name)
        return plain.read(site)

    ahead = replace(plain, read=read, ahead=True)
    assert plain.ahead is False
    for a, b, c in zip(ahead, ahead.slices(), plain, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)
    np.testing.assert_array_equal(ahead.dense(), plain.dense())
    assert reader
    assert all(name.startswith("read-ahead") for name in reader)
