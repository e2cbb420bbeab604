"""Parts that meet in a folder: calls are done once, taken over, and found again."""

from __future__ import annotations

import os
import threading
import time
from functools import partial

import pytest

from tdecomp import jobs
from tdecomp.errors import ArgumentError, FileError, WorkerError
from tdecomp.tasks import scratch, sendable, spread
from tdecomp.tasks.scratch import ScratchPart, leading, serve
from tdecomp.tasks.wire import packed

DONE: list[int] = []


@sendable
def tripled(n: int) -> int:
    DONE.append(n)
    return 3 * n


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    monkeypatch.setattr("tdecomp.tasks.wire._OURS", ("tests",))
    monkeypatch.setattr(scratch, "_LOOKS", 0.001)
    DONE.clear()


def part(folder, number, **given):
    told = given.pop("told", lambda line: None)
    return ScratchPart(
        number=number,
        of=3,
        folder=folder,
        job={"rank": 4} | given.pop("job", {}),
        told=told,
        **given,
    )


def led(folder, numbers=range(40), **given):
    calls = [partial(tripled, n) for n in numbers]
    with leading(part(folder, 1, **given)) as executor, spread(executor, calls) as found:
        return list(found)


def test_parts_share_the_work(tmp_path):
    counts = {}

    def follow(number):
        counts[number] = serve(part(tmp_path / "scratch", number))

    others = [threading.Thread(target=follow, args=(n,)) for n in (2, 3)]
    for thread in others:
        thread.start()
    assert led(tmp_path / "scratch") == [3 * n for n in range(40)]
    for thread in others:
        thread.join(30)
    assert sorted(counts) == [2, 3]
    assert sorted(DONE) == list(range(40))
    left = [file.name for file in (tmp_path / "scratch").rglob("*") if file.is_file()]
    assert left == ["job.json"]
    assert serve(part(tmp_path / "scratch", 2)) == 0  # one that comes too late


def test_parts_take_first_what_is_for_them(tmp_path):
    calls = [partial(tripled, n) for n in range(12)]
    first, third = (scratch._Folder(part(tmp_path, n)) for n in (1, 3))
    first.open()
    for k, one in enumerate(calls):
        first.submit_near(k, scratch.perform, *call_of(one))
    assert third.has_job()
    for folder, rest in ((third, 2), (first, 0)):
        assert all(folder.do_one() for _ in range(4))
        assert {n % 3 for n in DONE} == {rest}
        DONE.clear()


def test_one_part_alone_does_all(tmp_path):
    assert led(tmp_path) == [3 * n for n in range(40)]


def test_claims_of_lost_parts_are_taken_over(tmp_path):
    """One is old, one was this part's own before it was started again."""
    told = []
    folder = scratch._Folder(part(tmp_path, 1, timeout=0.3, told=told.append))
    folder.open()
    asked = [folder.submit(scratch.perform, *call(n)) for n in (1, 2)]
    for one, owner in zip(asked, (3, 1), strict=True):
        (tmp_path / "claims" / one._name).write_text(str(owner))
    again = scratch._Folder(part(tmp_path, 1, timeout=0.3))
    again.open()
    assert [p.read_text() for p in (tmp_path / "claims").iterdir()] == ["3"]
    past = time.time() - 100
    os.utime(tmp_path / "claims" / asked[0]._name, (past, past))
    assert [one.result() for one in asked]
    assert sorted(DONE) == [1, 2]


def call(n):
    return call_of(partial(tripled, n))


def call_of(one):
    from tdecomp import __version__

    return __version__, packed(one)


def test_what_was_done_is_found_again(tmp_path):
    """A first part that is killed leaves what was given to it."""
    folder = scratch._Folder(part(tmp_path, 1))
    folder.open()
    assert folder.submit(scratch.perform, *call(5)).result()
    DONE.clear()
    assert led(tmp_path, [5, 6]) == [15, 18]
    assert DONE == [6]


def test_parts_of_other_jobs_are_refused(tmp_path):
    led(tmp_path, [1])
    with pytest.raises(FileError, match="parts of another job, with rank = 4 in the place of 8"):
        led(tmp_path, [1], job={"rank": 8})
    with pytest.raises(FileError, match="another job, with rank = 4"):
        serve(part(tmp_path, 2, job={"rank": 8}))
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(FileError, match="not of tdecomp"):
        serve(part(tmp_path, 2))
    (tmp_path / "job.json").write_text("half a")
    with pytest.raises(FileError, match="cannot read"):
        led(tmp_path, [1])
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        led(tmp_path / "file" / "below")


@pytest.mark.parametrize("data", [b"", b"forged", packed(7), packed((1, b"")), packed(("1",))])
def test_files_that_others_put_there_are_refused(tmp_path, data):
    folder = scratch._Folder(part(tmp_path, 1))
    folder.open()
    (tmp_path / "tasks" / "forged").write_bytes(data)
    with pytest.raises(FileError, match="bytes are no"):
        serve(part(tmp_path, 2))
    (tmp_path / "tasks" / "forged").unlink()
    asked = folder.submit(scratch.perform, *call(1))
    (tmp_path / "results" / asked._name).write_bytes(data)
    with pytest.raises(FileError, match="bytes are no"):
        led(tmp_path, [1])


def test_a_first_part_that_never_comes_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_TELLS", 0.01)
    told = []
    with pytest.raises(WorkerError, match="part 2/3 has waited 0.1 s for part 1 at"):
        serve(part(tmp_path, 2, timeout=0.1, told=told.append))
    assert told == ["part 2/3 waits for part 1, 0.1 s at most"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dask": "local", "torchrun": True}, "give one of"),
        ({"part": (1, 2)}, "go together"),
        ({"torchrun": True}, None),
    ],
)
def test_who_works_is_checked(given, message, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ArgumentError, match=message or "no rank: start it by torchrun"):
        assert jobs.Workers(**given).leads
    with pytest.raises(ArgumentError, match="numbered 1 to 3"):
        part("x", 4)
    with pytest.raises(ArgumentError, match="positive number of seconds"):
        part("x", 1, timeout=0.0)
