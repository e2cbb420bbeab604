"""Parts that meet in a folder or a bucket: calls are done once, taken over, and found again."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from tdecomp import jobs
from tdecomp.errors import ArgumentError, FileError, WorkerError
from tdecomp.files.bucket import Bucket
from tdecomp.files.storage import Url, protocols
from tdecomp.tasks import scratch, sendable, spread
from tdecomp.tasks.meeting import Folder
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
    for kind in (Folder, Bucket):
        monkeypatch.setattr(kind, "pause", 0.001)
    DONE.clear()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "scratch")
    protocols.forget()  # the last test's file system in memory is gone with its name
    return Bucket(Url(f"memory://{tmp_path.name}/scratch"))


def part(place, number, **given):
    told = given.pop("told", lambda line: None)
    return ScratchPart(
        number=number,
        of=3,
        place=place,
        job={"rank": 4} | given.pop("job", {}),
        told=told,
        **given,
    )


def led(place, numbers=range(40), **given):
    calls = [partial(tripled, n) for n in numbers]
    with leading(part(place, 1, **given)) as executor, spread(executor, calls) as found:
        return list(found)


def test_parts_share_the_work(place):
    counts = {}

    def follow(number):
        counts[number] = serve(part(place, number))

    others = [threading.Thread(target=follow, args=(n,)) for n in (2, 3)]
    for thread in others:
        thread.start()
    assert led(place) == [3 * n for n in range(40)]
    for thread in others:
        thread.join(30)
    assert sorted(counts) == [2, 3]
    assert sorted(DONE) == list(range(40))
    assert not any(place.names(kind) for kind in scratch._KINDS)
    assert place.read("", "job.json") is not None
    assert serve(part(place, 2)) == 0  # one that comes too late


def test_parts_take_first_what_is_for_them(place):
    calls = [partial(tripled, n) for n in range(12)]
    first, third = (scratch._Desk(part(place, n)) for n in (1, 3))
    first.open()
    for k, one in enumerate(calls):
        first.submit_near(k, scratch.perform, *call_of(one))
    assert third.state() == "going on"
    for folder, rest in ((third, 2), (first, 0)):
        assert all(folder.do_one() for _ in range(4))
        assert {n % 3 for n in DONE} == {rest}
        DONE.clear()


def test_one_part_alone_does_all(place):
    assert led(place) == [3 * n for n in range(40)]


def test_claims_of_lost_parts_are_taken_over(place):
    """One is old, one was this part's own before it was started again."""
    told = []
    folder = scratch._Desk(part(place, 1, timeout=0.3, told=told.append))
    folder.open()
    asked = [folder.submit(scratch.perform, *call(n)) for n in (1, 2)]
    for one, owner in zip(asked, (3, 1), strict=True):
        place.write("claims", one._name, str(owner).encode())
    again = scratch._Desk(part(place, 1, timeout=0.3))
    again.open()
    assert place.names("claims") == {asked[0]._name}
    assert [one.result() for one in asked]
    assert sorted(DONE) == [1, 2]


def call(n):
    return call_of(partial(tripled, n))


def call_of(one):
    from tdecomp import __version__

    return __version__, packed(one)


def test_what_was_done_is_found_again(place):
    """A first part that is killed leaves what was given to it."""
    folder = scratch._Desk(part(place, 1))
    folder.open()
    assert folder.submit(scratch.perform, *call(5)).result()
    DONE.clear()
    assert led(place, [5, 6]) == [15, 18]
    assert DONE == [6]


def test_parts_of_other_jobs_are_refused(place):
    led(place, [1])
    with pytest.raises(FileError, match="parts of another job, with rank = 4 in the place of 8"):
        led(place, [1], job={"rank": 8})
    with pytest.raises(FileError, match="another job, with rank = 4"):
        serve(part(place, 2, job={"rank": 8}))
    place.write("", "job.json", b"{}")
    with pytest.raises(FileError, match="not of tdecomp"):
        serve(part(place, 2))
    place.write("", "job.json", b"half a")
    with pytest.raises(FileError, match="cannot read"):
        led(place, [1])


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    for there, message in [
        (Folder(tmp_path / "file" / "below"), "cannot write"),
        (Bucket(Url("https://127.0.0.1:1/folder")), "https:// is for reading"),
    ]:
        with pytest.raises(FileError, match=message):
            led(there)


@pytest.mark.parametrize("data", [b"", b"forged", packed(7), packed((1, b"")), packed(("1",))])
def test_files_that_others_put_there_are_refused(place, data):
    folder = scratch._Desk(part(place, 1))
    folder.open()
    place.write("tasks", "forged", data)
    with pytest.raises(FileError, match="bytes are no"):
        serve(part(place, 2))
    place.remove("tasks", "forged")
    asked = folder.submit(scratch.perform, *call(1))
    place.write("results", asked._name, data)
    with pytest.raises(FileError, match="bytes are no"):
        led(place, [1])


def test_a_first_part_that_never_comes_is_told(place, monkeypatch):
    monkeypatch.setattr(scratch, "_TELLS", 0.01)
    told = []
    with pytest.raises(WorkerError, match="part 2/3 has waited 0.1 s for part 1 at"):
        serve(part(place, 2, timeout=0.1, told=told.append))
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
        part(None, 4)
    with pytest.raises(ArgumentError, match="positive number of seconds"):
        part(None, 1, timeout=0.0)
