"""Addresses: their parts, what is shown of them, and which paths are addresses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tdecomp.errors import FileError
from tdecomp.files.storage import Url, local, place, shown

ADDRESSES = {
    "s3://bucket/model/x.safetensors": ("x.safetensors", ".safetensors", "s3://bucket/model"),
    "s3://bucket": ("bucket", "", "s3://bucket"),
    "https://host/a/b.json?sign=1": ("b.json", ".json", "https://host/a?..."),
    "hf://org/model@v1.0/x.safetensors": ("x.safetensors", ".safetensors", "hf://org/model@v1.0"),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_parts(address):
    url = place(address)
    assert isinstance(url, Url)
    assert (url.name, url.suffix, str(url.parent)) == ADDRESSES[address]
    assert pickle.loads(pickle.dumps(url)) == url


def test_what_pathlib_made_of_an_address_is_understood():
    assert place(Path("s3://bucket/a")) == place("s3://bucket/a/") == Url("s3://bucket/a")
    assert place("file:///a/b") == Path("/a/b")


@pytest.mark.parametrize("path", ["model", "/a/b", "C:/a", r"C:\a", "a:b/c", "s3:/a", "::", ""])
def test_paths_of_a_disk_stay(path):
    assert place(path) == Path(path)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    assert place("s3://bucket") == Path("s3:/bucket")


def test_no_secret_is_shown():
    address = "https://me:secret@host/m.safetensors?X-Amz-Signature=secret"
    for text in (shown(address), repr(place(address)), str(place(address).parent)):
        assert "secret" not in text
    assert shown("some//path/") == "some//path/"
    with pytest.raises(FileError, match=r"s3://b/x: adapters are read from a disk") as refused:
        local("s3://b/x", "adapters")
    assert refused.value.tip
