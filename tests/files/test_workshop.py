"""What killed runs leave: the old output or the new one, and nothing after the next run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdecomp.errors import FileError
from tdecomp.files import workshop
from tdecomp.files.atomic import output_folder
from tdecomp.files.workshop import Workshop

ROOT = Path(__file__).parents[2]

EVERY_STEP = """
import sys
from pathlib import Path
from tests.kills import Case, ended, fork, tree
from tdecomp.files import workshop
from tdecomp.files.atomic import output_file, output_folder

kind, before, exchange, root = sys.argv[1:]
place = Path(root) / "place" / "out"
if exchange == "no":
    workshop._system_call = lambda: None

def folder(text, target=place):
    with output_folder(target, overwrite=True) as new:
        (new / "factors.safetensors").write_text(text)
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(text)

def file(text, target=place):
    with output_file(target, ours=lambda path: True, overwrite=True) as new:
        new.write_text(text)

make = {"folder": folder, "file": file}[kind]
made = [Path(root) / "old", Path(root) / "new"]
for target in made:
    make(target.name, target)
old = tree(made[0]) if before == "over" else None
case = Case(kind, lambda: make("new"), place, old, tree(made[1]))
print(dict(case.every_step(between=exchange == "no")))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize(
    ("kind", "before", "exchange"),
    [
        ("folder", "over", "yes"),
        ("folder", "over", "no"),
        ("folder", "nothing", "yes"),
        ("file", "over", "yes"),
        ("file", "nothing", "yes"),
    ],
)
def test_killed_at_every_call_to_the_file_system(kind, before, exchange, tmp_path):
    words = [sys.executable, "-c", EVERY_STEP, kind, before, exchange, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seen = eval(done.stdout)
    assert seen["old"] > 3
    assert seen["new"] > 1
    assert (exchange == "yes" or before == "nothing") == ("none" not in seen)


# ---------------------------------------------------------------------------------- who is dead


def make(target, text="new", **options):
    with output_folder(target, **options) as folder:
        (folder / "x").write_text(text)


@pytest.fixture
def left(tmp_path):
    """Leave what a killed process leaves: its folder without the lock of the system."""
    shop = Workshop.open(tmp_path / "out")
    shop.new.mkdir()
    (shop.new / "half").write_text("half")
    assert shop.lock is not None
    os.close(shop.lock)
    workshop._OPEN.clear()
    yield shop.folder
    workshop._OPEN.clear()


def test_a_dead_one_goes_at_the_next_run_to_the_same_place(left, tmp_path):
    make(tmp_path / "another")
    assert left.exists()
    make(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["another", "out"]


def test_nothing_is_removed_by_a_run_that_is_refused(left, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileError):
        make(tmp_path / "out")
    assert left.exists()


def test_one_at_work_is_left_alone(tmp_path):
    shop = Workshop.open(tmp_path / "out")
    shop.new.mkdir()
    workshop._OPEN.clear()  # as another process sees it
    make(tmp_path / "out")
    assert shop.new.exists()
    shop.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_of_another_machine_only_after_a_week(left, tmp_path, monkeypatch):
    """Locks may not be seen across a network."""
    monkeypatch.setattr(workshop, "_machine", lambda: {"boot": "another", "host": "another"})
    make(tmp_path / "out")
    assert left.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 86400)
    make(tmp_path / "out", overwrite=True)
    assert not left.exists()


def test_one_without_locks_only_after_a_week(left, tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "_is_locked", lambda descriptor: None)
    make(tmp_path / "out")
    assert left.exists()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 86400)
    make(tmp_path / "out", overwrite=True)
    assert not left.exists()


@pytest.mark.parametrize("lock", ["", "{}", "[]", "[" * 99999, '{"made_by": "me"}', "notes"])
def test_a_folder_that_only_looks_like_one_of_ours(tmp_path, lock):
    """An empty lock is that of a process killed at once; the file beside it is not ours."""
    folder = tmp_path / ".out.01234567.tmp"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    (folder / "lock").write_text(lock)
    make(tmp_path / "out")
    assert (folder / "thesis.tex").read_text() == "years"


def test_names_as_long_as_they_may_be(tmp_path):
    for name in ("x" * 255, "é" * 127):
        make(tmp_path / name)
        make(tmp_path / name, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_lost_where_somebody_takes_the_place_between_two_renames(tmp_path, monkeypatch):
    """Without an exchange there is a moment with nothing in its place."""
    make(tmp_path / "out", "old")
    monkeypatch.setattr(workshop, "_system_call", lambda: None)
    rename = Path.rename

    def taken(self, target):
        if self.name == "new":
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("theirs")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", taken)
    with pytest.raises(FileError):
        make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "theirs").exists()
    (folder,) = workshop.still_open()
    assert (folder / "old" / "x").read_text() == "old"
    workshop._OPEN.clear()
