"""An output never takes the place of an input, whatever the place is called."""

from __future__ import annotations

import os

import pytest

from tdecomp.errors import FileError
from tdecomp.files.apart import check_apart, resolved

# What is read, where the output would be, and why not; None: it may be there.
CASES = {
    "a file of the folder": ("model", "model/a.safetensors", "lies inside"),
    "a new file in the folder": ("model", "model/deep/report.json", "lies inside"),
    "a file that a link in the folder leads to": ("cache", "blobs/b", "leads to"),
    "a folder that holds such a file": ("cache", "blobs", "leads to"),
    "a file in a linked folder": ("shelf", "model/a.safetensors", "leads to"),
    "a hard link of a file in the folder": ("model", "twin", "leads to"),
    "the folder by a link": ("link", "model", "is the input"),
    "inside the folder by a link": ("link", "model/out", "lies inside"),
    "inside a link to the folder": ("model", "link/out", "lies inside"),
    "the folder, roundabout": ("model", "model/sub/..", "is the input"),
    "an input, roundabout": ("model/sub/../../model/", "model/out", "lies inside"),
    "the file itself": ("model/a.safetensors", "model/a.safetensors", "is the input"),
    "a hard link of the file": ("model/a.safetensors", "twin", "is the input"),
    "the file by a link": ("cache/b.safetensors", "blobs/b", "is the input"),
    "the settings beside the file": ("model/a.safetensors", "model/config.json", "is the input"),
    "the folder of the file": ("model/a.safetensors", "model", "holds the input"),
    "a shard of an index": ("model/x.index.json", "model/a.safetensors", "lies inside"),
    "beside an index": ("model/x.index.json", "model/new", "lies inside"),
    "above": ("model/sub", ".", "holds the input"),
    "above the link": ("links/model", "links", "holds the input"),
    "beside the file": ("model/a.safetensors", "model/new", None),
    "beside the folder": ("model", "model2", None),
    "beside what links lead to": ("cache", "blobs/new", None),
    "an input that is not there": ("nothing", "out", None),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_inputs_are_apart(case, tmp_path):
    for folder in ("model/sub", "cache", "blobs", "shelf", "links"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("model/a.safetensors", "model/config.json", "model/x.index.json", "blobs/b"):
        (tmp_path / file).write_text("weights")
    os.link(tmp_path / "model" / "a.safetensors", tmp_path / "twin")
    (tmp_path / "cache" / "b.safetensors").symlink_to("../blobs/b")
    (tmp_path / "cache" / "loop").symlink_to("loop")
    (tmp_path / "shelf" / "inside").symlink_to("../model")
    (tmp_path / "links" / "model").symlink_to("../model")
    (tmp_path / "link").symlink_to("model")
    source, target, message = CASES[case]
    place = resolved(f"{tmp_path}/{target}")
    if message is None:
        check_apart(place, [f"{tmp_path}/{source}"])
    else:
        with pytest.raises(FileError, match=message):
            check_apart(place, [f"{tmp_path}/{source}"])


def test_other_spellings_are_seen_through(tmp_path, monkeypatch):
    """As on a file system without capitals: two names, one file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "Model").symlink_to("model")  # stat() of both gives the same
    for target in (tmp_path / "Model", tmp_path / "Model" / "out"):
        with pytest.raises(FileError, match="input"):
            check_apart(target, [tmp_path / "model"])


def test_links_in_a_circle(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileError, match="cannot follow"):
        check_apart(tmp_path / "out", [tmp_path / "loop"])
