"""Calls are handed out again when a worker is lost; all else that goes wrong is told in a line."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from tdecomp.errors import DataError, WorkerError
from tdecomp.tasks import sendable, spread, spreading


@sendable
def doubled(n: int) -> int:
    if n == 13:
        raise DataError("13 is no number", tip="take another")
    if n == 14:
        raise KeyError("a fault of ours")
    return 2 * n


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    """Functions of tests are none of ours; and nobody waits."""
    monkeypatch.setattr("tdecomp.tasks.wire._OURS", ("tests",))
    monkeypatch.setattr(spreading, "_WAIT", 0.0)


class Losing:
    """An executor that loses every n-th call, and those that it is told to always."""

    def __init__(self, every: int, error: Exception) -> None:
        self.every, self.error, self.calls = every, error, 0

    def submit(self, fn, /, *args):
        self.calls += 1
        future: Future = Future()
        if self.calls % self.every == 0:
            future.set_exception(self.error)
        else:
            future.set_result(fn(*args))
        return future


def of(executor, numbers):
    with spread(executor, [partial(doubled, n) for n in numbers]) as found:
        return list(found)


def test_results_come_in_order():
    with ThreadPoolExecutor(3) as pool:
        assert of(pool, range(20, 300)) == [2 * n for n in range(20, 300)]


def test_calls_go_where_the_like_of_them_was_done():
    class Near(Losing):
        def submit_near(self, place, fn, /, *args):
            places.append(place)
            return self.submit(fn, *args)

    places: list[int] = []
    near = Near(4, OSError("killed"))
    with spread(near, [partial(doubled, n) for n in range(5)], near=True) as found:
        assert list(found) == [0, 2, 4, 6, 8]
    assert sorted(places) == [0, 1, 2, 3, 3, 4]
    assert of(near, [1]) == [2]
    assert len(places) == 6


def test_calls_of_lost_workers_are_done_again():
    losing = Losing(3, OSError("killed"))
    assert of(losing, range(10)) == [2 * n for n in range(10)]
    assert losing.calls > 10


@pytest.mark.parametrize(
    ("error", "calls"), [(OSError("killed"), 3), (BrokenProcessPool("terminated"), 1)]
)
def test_a_call_that_is_always_lost_is_told(error, calls):
    losing = Losing(1, error)
    with pytest.raises(
        WorkerError, match="a worker of the executor .Losing. was lost: .*killed|terminated"
    ):
        of(losing, [1])
    assert losing.calls == calls


def test_errors_of_calls_come_out_at_their_place():
    with ThreadPoolExecutor(2) as pool:
        with spread(pool, [partial(doubled, n) for n in (1, 2, 13, 4)]) as found:
            assert [next(found), next(found)] == [2, 4]
            with pytest.raises(DataError, match="13 is no number: take another") as caught:
                next(found)
        assert caught.value.tip == "take another"
        with pytest.raises(RuntimeError, match="KeyError"):
            of(pool, [14])


def test_an_executor_that_is_shut_down_is_told():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(WorkerError, match="takes no work.*not shut down"):
        of(pool, [1])


def test_a_worker_of_another_version_does_nothing(monkeypatch):
    class Older:
        def submit(self, fn, /, version, data):
            future: Future = Future()
            future.set_result(fn("0.0.1", data))
            return future

    with pytest.raises(WorkerError, match="a worker has tdecomp .*install the same"):
        of(Older(), [1])
