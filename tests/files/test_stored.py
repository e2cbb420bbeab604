"""Files that are read in pieces: every piece is that of the whole, always of one file."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from tdecomp.errors import FileError
from tdecomp.files import checkpoint as ck
from tdecomp.files import safetensors, stored
from tdecomp.files.stored import Source, Stored

SHAPE = (6, 300, 70)
INDICES = [
    (...,),
    (),
    (2,),
    (-1, ...),
    (slice(1, 4), ...),
    (slice(None, None, -2), 5),
    (3, slice(10, 250), ...),
    (slice(None), slice(7, 8), slice(None)),
    (slice(None), slice(None), slice(60, 3, -7)),
    (slice(None), slice(None), 4),
    (slice(0, 2), slice(0, 300)),
    (slice(4, 2),),
    (slice(None), slice(300, 999)),
    (1, 2, 3),
    (slice(0, 6, 5), slice(0, 300, 299), slice(0, 70, 69)),
]


@pytest.fixture
def whole(tmp_path):
    array = np.arange(np.prod(SHAPE), dtype="<u4").reshape(SHAPE)
    (tmp_path / "x").write_bytes(b"abc" + array.tobytes())
    return array


def opened(tmp_path):
    return Stored(Source(tmp_path / "x").opened(), 3, np.dtype("<u4"), SHAPE)


@pytest.mark.parametrize("span", [1, 1 << 12, 1 << 20])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_parts_are_those_of_the_array(index, span, whole, tmp_path, monkeypatch):
    """Whether scattered numbers are picked one by one, in runs or out of all of it."""
    monkeypatch.setattr(stored, "_SPAN", span)
    array = opened(tmp_path)
    for _ in range(2):
        found = array[index]
        np.testing.assert_array_equal(found, whole[index])
        assert not found.flags.writeable
    part = array.narrowed(index)
    assert (part.shape, part.size) == (whole[index].shape, whole[index].size)
    if part.shape:
        np.testing.assert_array_equal(part[(slice(0, 2), ...)], whole[index][:2])


def test_small_gaps_are_read_over_and_large_ones_are_not(whole, tmp_path, monkeypatch):
    """70 of 280 bytes are a quarter of a row; one row of 300 is one of 84,000 bytes."""
    file, seen = Source(tmp_path / "x").opened(), []
    real = file._read
    monkeypatch.setattr(file, "_read", lambda out, start: seen.append(len(out)) or real(out, start))
    monkeypatch.setattr(stored, "_SPAN", 1 << 13)
    monkeypatch.setattr(stored, "_GAP", 1 << 10)
    array = Stored(file, 3, np.dtype("<u4"), SHAPE)
    for index, most in [((0, slice(None), slice(0, 7)), 84_000), ((slice(None), 0), 6 * 280)]:
        seen.clear()
        np.testing.assert_array_equal(array[index], whole[index])
        assert max(seen) <= 1 << 13
        assert sum(seen) <= most


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_descriptors_are_closed(whole, tmp_path):
    def count():
        """Of the files of this test: other tests' servers still close their own."""
        gc.collect()
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return sum(link.startswith(os.path.realpath(tmp_path)) for link in links)

    array = opened(tmp_path)
    part = array.narrowed((1,))
    del array
    assert count() == 1
    np.testing.assert_array_equal(part[(...,)], whole[1])
    del part
    assert count() == 0


# ------------------------------------------------------------------------- files that change


def write(folder, value, n=40):
    folder.mkdir(exist_ok=True)
    file = folder / "model.safetensors"
    rows = [(f"{i}.weight", "F32", (n, 30)) for i in range(3)]
    safetensors.write(file, rows, lambda name: np.full((n, 30), value, "<f4").view("u1").ravel())
    return file


@pytest.fixture(params=["kept open", "opened anew"])
def kept(request, monkeypatch):
    """With few files, and with more than may be open."""
    if request.param == "opened anew":
        monkeypatch.setattr(stored, "_MOST", 0)
    return request.param == "kept open"


def cut(file):
    os.truncate(file, 2000)


def overwritten(file):
    new = file.read_bytes()
    with file.open("r+b") as place:
        place.write(new[:-4] + b"\0\0\0\1")
    os.utime(file, ns=(1, 1))


def longer(file):
    with file.open("ab") as place:
        place.write(b"more")


@pytest.mark.parametrize("change", [cut, overwritten, longer])
def test_a_file_that_is_written_to_is_noticed(kept, change, tmp_path):
    file = write(tmp_path, 1.0)
    model = ck.open_checkpoint(tmp_path)
    model.read("0.weight")
    part = model.part("2.weight")
    change(file)
    for use in (
        lambda: model.read("1.weight"),
        lambda: ck.fingerprint(model),
        lambda: ck.check_unchanged(model),
    ):
        with pytest.raises(FileError, match=r"model.safetensors has changed while it was in use"):
            use()
    if change is cut:  # no signal ends the process, as it would in a map
        with pytest.raises(FileError, match=r"model.safetensors has changed while it was in use"):
            part.whole()


def test_weights_and_hash_are_of_one_file_whatever_takes_its_place(kept, tmp_path):
    """One that is kept open is read on; the other one is noticed."""
    file, new = write(tmp_path / "a", 1.0), write(tmp_path / "b", 2.0)
    first = ck.fingerprint(ck.open_checkpoint(tmp_path / "a"))
    model = ck.open_checkpoint(tmp_path / "a")
    new.replace(file)
    if kept:
        assert model.read("1.weight")[0, 0] == 1.0
        assert ck.fingerprint(model) == first
    else:
        for use in (lambda: model.read("1.weight"), lambda: ck.fingerprint(model)):
            with pytest.raises(FileError, match="has changed"):
                use()


@pytest.mark.parametrize("touch", [os.utime, lambda file: file.chmod(0o600)], ids=["", "mode"])
def test_a_file_whose_content_stays_may_be_touched(kept, touch, tmp_path):
    file = write(tmp_path, 1.0)
    times = file.stat().st_mtime_ns
    model = ck.open_checkpoint(tmp_path)
    touch(file)
    os.utime(file, ns=(times, times))
    assert model.read("1.weight")[0, 0] == 1.0
    ck.check_unchanged(model)


def test_many_shards_do_not_use_up_the_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_KEPT", weakref.WeakSet())  # files of other tests are let go of
    monkeypatch.setattr(stored, "_MOST", 3)
    write(tmp_path, 1.0)
    files = [Source(tmp_path / "model.safetensors") for _ in range(9)]
    assert sum(file._kept is not None for file in files) == 3
    assert {file.first(8) for file in files} == {files[0].first(8)}


def test_disk_errors_name_the_file(kept, tmp_path, monkeypatch):
    write(tmp_path, 1.0)
    model = ck.open_checkpoint(tmp_path)

    def fail(self, out, start):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stored.OpenFile, "_read", fail)
    for use in (lambda: model.read("1.weight"), lambda: ck.fingerprint(model)):
        with pytest.raises(FileError, match=r"cannot read .*model.safetensors: Input/output error"):
            use()


def test_a_checkpoint_that_is_copied_is_read_the_same(tmp_path):
    write(tmp_path / "a", 3.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (ck.open_checkpoint(tmp_path / side) for side in "ab")
    assert ck.fingerprint(one) == ck.fingerprint(two)
    np.testing.assert_array_equal(one.read("0.weight"), two.read("0.weight"))
