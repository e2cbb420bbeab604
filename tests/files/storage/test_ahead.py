"""Ranges fetched ahead: the right bytes, each once, in bounded room, several at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tdecomp.files.storage.ahead import Ahead, Range
from tests.waiting import wait_until

CONTENT = np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes()


class Slow:
    """A file that notes what is fetched, and sends nothing before so many are asked for at once."""

    def __init__(self, at_least: int = 1) -> None:
        self.fetched: list[tuple[int, int]] = []
        self.at_least, self.at_once, self.most = at_least, 0, 0
        self.lock, self.broken = threading.Lock(), False

    def fetch(self, start: int, stop: int) -> bytes:
        with self.lock:
            self.fetched.append((start, stop))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        wait_until(lambda: self.most >= self.at_least)
        with self.lock:
            self.at_once -= 1
        if self.broken:
            raise OSError("gone")
        return CONTENT[start:stop]

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.fetched)


def read(ahead: Ahead, file: Slow, start: int, stop: int) -> None:
    out = np.empty(stop - start, np.uint8)
    ahead.read_into(file, start, out)
    assert out.tobytes() == CONTENT[start:stop]


def test_any_reads_after_any_expectations_give_the_bytes():
    rng = np.random.default_rng(1)
    for _ in range(20):
        ahead, files = Ahead(room=300, block=100, lanes=3), [Slow(), Slow()]
        for _ in range(30):
            (a, b), file = sorted(rng.integers(0, 1001, 2).tolist()), files[rng.integers(2)]
            kind = rng.integers(3)
            if kind == 0:
                ahead.expect([Range(file, a, b), Range(files[0], 5, 50)])
            elif kind == 1:
                ahead.want(file, a, b)
            read(ahead, file, a, b)


def test_what_is_expected_is_fetched_once_and_neighbours_together():
    ahead, file = Ahead(room=1000, block=100), Slow()
    tensors = [(i, i + 20) for i in range(0, 400, 20)]
    ahead.expect([Range(file, *one) for one in tensors])
    for start, stop in tensors:
        for tile in range(start, stop, 5):
            read(ahead, file, tile, tile + 5)
    assert file.bytes == 400
    assert len(file.fetched) == 4


def test_a_long_range_comes_in_parts_at_once():
    ahead, file = Ahead(room=1000, block=100, lanes=4), Slow(at_least=4)
    ahead.want(file, 0, 400)
    read(ahead, file, 0, 400)
    assert sorted(file.fetched) == [(i, i + 100) for i in range(0, 400, 100)]
    assert file.most == 4


def test_room_is_kept_and_what_was_read_makes_room():
    ahead, file = Ahead(room=250, block=100), Slow()
    ahead.expect([Range(file, i, i + 100) for i in range(0, 1000, 100)])
    assert wait_until(lambda: file.bytes >= 200)
    assert file.bytes == 200  # the third has no room before the first is read
    for i in range(0, 1000, 100):
        read(ahead, file, i, i + 100)
        assert file.bytes <= i + 300
    assert file.bytes == 1000


def test_columns_of_one_tensor_are_fetched_once():
    ahead, file = Ahead(room=1000, block=500), Slow()
    for head in range(4):
        ahead.want(file, 0, 400)
        for row in range(10):
            read(ahead, file, 40 * row + 10 * head, 40 * row + 10 * head + 10)
    assert file.bytes == 400


def test_what_failed_is_asked_again():
    ahead, file = Ahead(), Slow()
    file.broken = True
    with pytest.raises(OSError, match="gone"):
        read(ahead, file, 0, 10)
    file.broken = False
    read(ahead, file, 0, 10)


def test_files_that_are_gone_take_no_room():
    ahead = Ahead(room=100, block=100)
    for _ in range(3):
        file = Slow()
        ahead.expect([Range(file, 0, 100)])
        read(ahead, file, 0, 100)
