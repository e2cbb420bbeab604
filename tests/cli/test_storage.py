"""Addresses on the command line: models and outputs elsewhere, and what is refused."""

from __future__ import annotations

import sys

import pytest

from tdecomp.files.storage import protocols
from tests.cli import models
from tests.loopback import serving

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def far(base, tuned):
    with serving(base.parent) as told:
        yield told


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/cli"):
        system.rm("/cli", recursive=True)


def test_from_a_server_to_a_server(far, memory, base, tuned, tmp_path, done):
    there, here = "memory://cli/out", tmp_path / "out"
    addresses = far.url("base"), far.url("tuned")
    printed = done("decompose", *addresses, "-o", there, "--rank", 2, "--lora", "--no-mmap").out
    assert "Written to memory://cli/out." in printed
    assert "LoRA in memory://cli/out/lora" in printed
    done("decompose", base, tuned, "-o", here, "--rank", 2, "--lora", "--no-mmap")
    for name in ("lora/adapter_model.safetensors", "report.json"):
        assert memory.exists(f"/cli/out/{name}")
    for one, other in zip(models.decoded(here).items(), models.decoded(there).items(), strict=True):
        assert one[0] == other[0]
        assert (one[1] == other[1]).all()
    assert "agree" in done("verify", there, *addresses).out
    assert done("inspect", far.url("base")).out
    assert done("info", there).out
    assert done("explore", *addresses, "-o", "memory://cli/table.json").out
    done("apply", there, addresses[0], "-o", "memory://cli/model")
    done("export", there, "--lora", "memory://cli/lora")
    assert memory.exists("/cli/model/config.json")
    assert memory.exists("/cli/lora/adapter_config.json")


def test_commands_that_read_disks_say_so(refused, tmp_path):
    for words in (
        ["compare", "s3://bucket/a", "s3://bucket/b"],
        ["resize", "s3://bucket/a", "-o", tmp_path / "new", "--rank", 1],
        ["merge", "s3://bucket/a", "s3://bucket/b", "-o", tmp_path / "new"],
        ["basis", "s3://bucket/a", "s3://bucket/b", "-o", tmp_path / "new", "--rank", 1],
        ["check", "s3://bucket/a", "s3://bucket/b", "--for", "vllm"],
        ["report", "s3://bucket/a", "-o", tmp_path / "new.html"],
    ):
        refused(words, "s3://bucket/", "are read from a disk only", "download it first")


def test_an_output_that_cannot_be(refused, base, tuned, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    protocols.forget()
    refused(["decompose", base, tuned, "-o", "https://host/out", "--rank", 1], "is for reading")
    refused(["decompose", base, tuned, "-o", "s3://b/out", "--rank", 1], "pip install s3fs")
