import os
import shutil
import subprocess
import sys

import pytest

from tdecomp.errors import FileError
from tdecomp.files import workshop
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.ours import MARKER


def tree(folder):
    """Every file under a folder with its content, but for the list; folders as None."""
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else None
        for p in folder.rglob("*")
        if p.name != MARKER
    }


@pytest.fixture
def old(tmp_path):
    """Make an output of an earlier run."""
    with output_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "factors.safetensors").write_text("old")
        (folder / "sub" / "more").write_text("old")
    return tmp_path / "out"


def any_file(path):
    return True


def fill(folder, text="new"):
    (folder / "factors.safetensors").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(text)


NEW = {"factors.safetensors": "new", "deep": None, "deep/file": "new"}


def test_folder_appears_whole(tmp_path):
    with output_folder(tmp_path / "a" / "b" / "out") as folder:
        assert folder.parent.parent == tmp_path / "a" / "b"
        fill(folder)
        assert not (tmp_path / "a" / "b" / "out").exists()
    assert tree(tmp_path / "a" / "b" / "out") == NEW
    assert list((tmp_path / "a" / "b").iterdir()) == [tmp_path / "a" / "b" / "out"]


def test_an_interruption_while_the_old_one_is_removed(tmp_path, old, monkeypatch):
    real, calls = shutil.rmtree, []

    def interrupted(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(*arguments, **named)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), output_folder(old, overwrite=True) as folder:
        fill(folder)
    assert tree(old) == NEW
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, FileError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_on_any_exception_nothing_is_left(tmp_path, old, error, overwrite):
    before = tree(tmp_path)
    target = old if overwrite else tmp_path / "new" / "parents" / "out"

    def work():
        with output_folder(target, overwrite=overwrite) as folder:
            fill(folder)
            raise error("stop")

    with pytest.raises(error, match="stop"):
        work()
    assert tree(tmp_path) == before


def test_overwrite_replaces_the_whole_folder(tmp_path, old):
    with output_folder(old, overwrite=True) as folder:
        fill(folder)
        assert (old / "factors.safetensors").read_text() == "old"
    assert tree(old) == NEW
    assert list(tmp_path.iterdir()) == [old]


def test_overwrite_of_nothing_and_of_an_empty_folder(tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    for name in ("none", "empty"):
        with output_folder(tmp_path / name, overwrite=True) as folder:
            fill(folder)
        assert tree(tmp_path / name) == NEW


def test_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, old, monkeypatch):
    before, rename = tree(tmp_path), type(old).rename

    def failing(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(workshop, "_system_call", lambda: None)  # they cannot exchange places
    monkeypatch.setattr(type(old), "rename", failing)
    with (
        pytest.raises(FileError, match="cannot write .*out: Input/output error$"),
        output_folder(old, overwrite=True) as folder,
    ):
        fill(folder)
    assert tree(tmp_path) == before


def test_a_file_system_that_cannot_exchange_folders(tmp_path, old, monkeypatch):
    monkeypatch.setattr(workshop, "_system_call", lambda: None)
    for target, overwrite in [(old, True), (tmp_path / "another", False)]:
        with output_folder(target, overwrite=overwrite) as folder:
            fill(folder)
        assert tree(target) == NEW
    assert sorted(p.name for p in tmp_path.iterdir()) == ["another", "out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_somebody_else_wrote_in_the_meantime_stays(tmp_path, overwrite):
    target, file = tmp_path / "out", tmp_path / "x.json"

    def in_folder():
        with output_folder(target, overwrite=overwrite) as folder:
            fill(folder)
            target.mkdir()
            (target / "thesis.tex").write_text("years")

    def in_file():
        with output_file(file, ours=lambda path: False, overwrite=overwrite) as path:
            path.write_text("new")
            file.write_text("theirs")

    for work in (in_folder, in_file):
        with pytest.raises(FileError):
            work()
    assert tree(tmp_path) == {"out": None, "out/thesis.tex": "years", "x.json": "theirs"}


def test_a_link_is_followed(tmp_path, old):
    link = tmp_path / "link"
    link.symlink_to(old)
    with output_folder(link, overwrite=True) as folder:
        fill(folder)
    assert link.is_symlink()
    assert tree(old) == NEW


REFUSALS = {
    "exists": ("out", False, "already exists"),
    "a file": ("file", True, "is not a folder"),
    "below a file": ("file/out", False, "file is not a folder"),
    "deep below a file": ("file/a/out", False, "file is not a folder"),
    "foreign": ("foreign", True, "not an output of tdecomp"),
    "an input": ("model", True, "is the input"),
    "holds an input": (".", True, "holds the input"),
    "inside an input": ("model/out", False, "lies inside the input"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_any_work(tmp_path, old, case):
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("text")
    before = tree(tmp_path)
    name, overwrite, message = REFUSALS[case]
    with (
        pytest.raises(FileError, match=message),
        output_folder(tmp_path / name, overwrite=overwrite, inputs=[tmp_path / "model"]),
    ):
        pytest.fail("work began")
    assert tree(tmp_path) == before


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(FileError, match="holds the current folder"),
        output_folder(".", overwrite=True),
    ):
        pytest.fail("work began")


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with output_folder("out", inputs=["model"]) as folder:
        fill(folder)
    assert tree(tmp_path / "out") == NEW


def test_the_folder_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").mkdir()
    with output_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --------------------------------------------------------------------------------------- file


def test_file_appears_whole(tmp_path):
    with output_file(tmp_path / "a" / "fig.svg", ours=any_file) as path:
        assert path.suffix == ".svg"
        path.write_text("new")
        assert not (tmp_path / "a" / "fig.svg").exists()
    assert tree(tmp_path / "a") == {"fig.svg": "new"}
    with output_file(tmp_path / "a" / "fig.svg", ours=any_file, overwrite=True) as path:
        path.write_text("newer")
    assert tree(tmp_path / "a") == {"fig.svg": "newer"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_file_stays_as_it_was(tmp_path, error):
    (tmp_path / "x.json").write_text("old")

    def work(target, overwrite):
        with output_file(target, ours=any_file, overwrite=overwrite) as path:
            path.write_text("new")
            raise error("stop")

    for target, overwrite in [(tmp_path / "x.json", True), (tmp_path / "new" / "y.json", False)]:
        with pytest.raises(error, match="stop"):
            work(target, overwrite)
        assert tree(tmp_path) == {"x.json": "old"}


def test_file_refusals(tmp_path):
    (tmp_path / "x.json").write_text("old")
    (tmp_path / "folder").mkdir()
    cases = [
        (tmp_path / "x.json", {}, "already exists"),
        (tmp_path / "folder", {"overwrite": True}, "is a folder"),
        (tmp_path / "x.json" / "y", {}, "is not a folder"),
        (tmp_path / "x.json", {"overwrite": True, "inputs": [tmp_path / "x.json"]}, "the input"),
        (tmp_path / "x.json", {"overwrite": True}, "not an output of tdecomp of this kind"),
        (tmp_path / "pipe", {"overwrite": True}, "is not a regular file"),
    ]
    os.mkfifo(tmp_path / "pipe")
    for path, arguments, message in cases:
        with (
            pytest.raises(FileError, match=message),
            output_file(path, ours=lambda path: False, **arguments),
        ):
            pytest.fail("work began")
    assert tree(tmp_path) == {"x.json": "old", "folder": None, "pipe": None}


def test_an_empty_file_may_be_replaced(tmp_path):
    (tmp_path / "x.json").touch()
    with output_file(tmp_path / "x.json", ours=lambda path: False, overwrite=True) as path:
        path.write_text("new")
    assert tree(tmp_path) == {"x.json": "new"}


def test_a_file_that_was_never_written(tmp_path):
    with (
        pytest.raises(FileError, match=r"cannot write .*x.json: No such file or directory$"),
        output_file(tmp_path / "x.json", ours=any_file),
    ):
        pass


# --------------------------------------------------------------------------------------- the disk

FULL = """
import resource, sys
import numpy as np
from tdecomp.errors import FileError
from tdecomp.files import safetensors
from tdecomp.files import workshop
from tdecomp.files.atomic import output_file, output_folder
from tdecomp.files.ours import MARKER

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
data = lambda name: np.zeros(4 * 50_000, np.uint8)
rows = [("x", "F32", (50_000,))]
try:
    if sys.argv[2] == "folder":
        with output_folder(sys.argv[1], overwrite=True) as folder:
            safetensors.write(folder / "factors.safetensors", rows, data)
    else:
        name = sys.argv[1] + "/sub/more"
        with output_file(name, ours=lambda path: True, overwrite=True) as path:
            safetensors.write(path, rows, data)
except FileError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are set the POSIX way")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_full_disk_leaves_the_old_output(tmp_path, old, kind):
    before = tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL, old, kind], capture_output=True, text=True, check=True
    )
    name = old if kind == "folder" else old / "sub" / "more"
    assert done.stdout == f"cannot write {name}: File too large\n"
    assert tree(tmp_path) == before


def test_errors_about_other_files_name_them(tmp_path):
    with (
        pytest.raises(FileError, match=r"cannot write .*out: No such file.*\(.*missing.txt\)$"),
        output_folder(tmp_path / "out"),
    ):
        (tmp_path / "missing.txt").read_text()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_no_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for target in (tmp_path / "locked" / "out", tmp_path / "locked" / "a" / "out"):
        with pytest.raises(FileError, match="Permission denied"), output_folder(target):
            pytest.fail("work began")
