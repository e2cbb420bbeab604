"""What goes wrong with servers is told in a line, and no secret is in it."""

from __future__ import annotations

import sys

import pytest

from tdecomp import jobs
from tdecomp.errors import FileError
from tdecomp.files import open_checkpoint
from tdecomp.files.storage import protocols

LINES = {
    "s3://bucket/model": "s3:// needs s3fs: pip install s3fs",
    "gs://bucket/model": "gs:// needs gcsfs: pip install gcsfs",
    "nowhere://bucket/model": "no protocol nowhere:// is known",
    "memory://bucket/nothing": "memory://bucket/nothing does not exist",
    "http://127.0.0.1:9/model": "cannot reach http://127.0.0.1:9/model",
}


@pytest.mark.parametrize("address", LINES)
def test_told_in_a_line(address, monkeypatch):
    monkeypatch.setattr(protocols, "SHORT_PAUSES", ())
    for library in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, library, None)
    protocols.forget()
    with pytest.raises(FileError, match=LINES[address]) as refused:
        open_checkpoint(address)
    assert "\n" not in str(refused.value)
    protocols.forget()


def test_without_fsspec(monkeypatch):
    protocols.forget()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(FileError, match=r"pip install tdecomp-toolkit\[remote\]"):
        open_checkpoint("s3://bucket/model")


def test_a_server_that_refuses(server):
    server.token = "secret"
    with pytest.raises(FileError, match="the server refuses access") as refused:
        open_checkpoint(server.url("base/model.safetensors?token=wrong"))
    assert "wrong" not in str(refused.value)
    assert open_checkpoint(server.url("base/model.safetensors?token=secret")).names


def test_a_server_without_ranges(server):
    server.ranges = False
    checkpoint = open_checkpoint(server.url("base/model.safetensors"))  # smaller than a first piece
    assert checkpoint.names
    file = checkpoint.entry(checkpoint.names[0]).source
    with pytest.raises(FileError, match="sends whole files only"):
        file.fetch(8, 16)


def test_what_is_read_from_disks_only(tmp_path):
    address = "memory://bucket/x"
    for call in (
        lambda: jobs.compare([address, address]),
        lambda: jobs.resize(address, tmp_path / "out", rank=1),
        lambda: jobs.merge([address, address], tmp_path / "out"),
        lambda: jobs.basis([address, address], tmp_path / "out", rank=1),
        lambda: jobs.report([address], tmp_path / "out.html"),
    ):
        with pytest.raises(FileError, match=r"memory://bucket/x: .* disk"):
            call()
    assert not list(tmp_path.iterdir())
