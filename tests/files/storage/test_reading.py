"""Models on servers: the same numbers as from a disk, few bytes, changes noticed."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.errors import FileError
from tdecomp.files import load_factors, open_checkpoint, open_delta
from tdecomp.files.checkpoint import check_unchanged, fingerprint
from tdecomp.files.storage import RemoteFile, place, remote


def same(one, other) -> None:
    assert one.names == other.names
    for name in one.names:
        np.testing.assert_array_equal(one.read(name), other.read(name))


def test_every_tensor_is_the_one_of_the_disk(on_disk, in_memory, server):
    for side in ("base", "tuned", "tuned/model.safetensors.index.json"):
        here = open_checkpoint(on_disk.base.parent / side)
        for root in (in_memory, server.url("").rstrip("/")):
            there = open_checkpoint(f"{root}/{side}")
            same(here, there)
            assert (there.config, there.notes) == (here.config, here.notes)
            assert fingerprint(there) == fingerprint(here)
    same(open_checkpoint(on_disk.base), open_checkpoint(on_disk.base, mmap=False))


@pytest.mark.parametrize("share", [None, ("head",)])
def test_every_slice_is_the_one_of_the_disk(share, on_disk, server):
    from tdecomp.stack import Selection

    selection = Selection(share=share)
    here = open_delta(*on_disk, selection)
    there = open_delta(server.url("base"), server.url("tuned"), selection)
    slow = open_delta(*on_disk, selection, mmap=False)
    for stack, *others in zip(here.stacks, there.stacks, slow.stacks, strict=True):
        for _ in range(2):
            for one, *rest in zip(stack.slices(), *(o.slices() for o in others), strict=True):
                for other in rest:
                    np.testing.assert_array_equal(one, other)


def test_every_command_on_two_models_reads_them(on_disk, server, tmp_path):
    base, tuned = server.url("base"), server.url("tuned")
    told = jobs.decompose(base, tuned, tmp_path / "there", rank=2)
    again = jobs.decompose(*on_disk, tmp_path / "here", rank=2)
    assert replace(told, sources=again.sources) == again
    here, there = (load_factors(tmp_path / name) for name in ("here", "there"))
    assert there.sources["base"] == here.sources["base"] | {"path": base}
    for one, other in zip(here.tensors, there.tensors, strict=True):
        assert all(np.array_equal(a, other.arrays[n]) for n, a in one.arrays.items())
    assert jobs.explore(base, tuned).rows == jobs.explore(*on_disk).rows
    assert jobs.verify(tmp_path / "here", base, tuned).changed_files == ()
    assert jobs.inspect(base).groups == jobs.inspect(on_disk.base).groups
    jobs.apply(tmp_path / "here", tuned, tmp_path / "model")
    jobs.apply(tmp_path / "here", on_disk.tuned, tmp_path / "model here")
    files = sorted(p.name for p in (tmp_path / "model here").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "model").iterdir())
    for name in files:
        assert (tmp_path / "model" / name).read_bytes() == (
            tmp_path / "model here" / name
        ).read_bytes()


def test_a_change_is_noticed(on_disk, server, in_memory):
    import fsspec

    checkpoint = open_checkpoint(server.url("base"))
    check_unchanged(checkpoint)
    os.utime(on_disk.base / "model.safetensors", ns=(1, 1))
    with pytest.raises(FileError, match=r"base/model.safetensors has changed while it was in use"):
        check_unchanged(checkpoint)
    checkpoint = open_checkpoint(f"{in_memory}/base")
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/base/model.safetensors", b"cut")
    with pytest.raises(FileError, match="has changed"):
        fingerprint(checkpoint)
    system.rm_file("/bucket/base/model.safetensors")
    with pytest.raises(FileError, match="model.safetensors does not exist"):
        check_unchanged(checkpoint)


def test_a_change_between_passes_is_noticed(on_disk, server, monkeypatch):
    monkeypatch.setattr(remote, "_TRUST", 0.0)
    (stack, *_) = open_delta(server.url("base"), server.url("tuned")).stacks
    assert sum(1 for _ in stack.slices()) == stack.n_sites
    (file,) = open_checkpoint(on_disk.base).files
    os.utime(file, ns=(1, 1))
    with pytest.raises(FileError, match=r"base/model.safetensors has changed while it was in use"):
        stack.dense()


def test_unmapped_files_are_noticed_to_change(on_disk):
    checkpoint = open_checkpoint(on_disk.base, mmap=False)
    checkpoint.read(checkpoint.names[0])
    os.utime(on_disk.base / "model.safetensors", ns=(1, 1))
    with pytest.raises(FileError, match="has changed while it was in use"):
        checkpoint.read(checkpoint.names[1])


def test_a_file_can_be_sent_to_another_process(server, on_disk):
    file = RemoteFile(place(server.url("base/model.safetensors")))
    sent = pickle.dumps(file)
    assert len(sent) < 1000
    assert pickle.loads(sent).first(8) == file.first(8)
    os.utime(on_disk.base / "model.safetensors", ns=(1, 1))
    with pytest.raises(FileError, match="has changed"):
        pickle.loads(sent).opened()


def test_dropped_connections_change_nothing(on_disk, server):
    server.drop_every = 3
    there = open_delta(server.url("base"), server.url("tuned"))
    for one, other in zip(open_delta(*on_disk).stacks, there.stacks, strict=True):
        np.testing.assert_array_equal(one.dense(), other.dense())
    assert server.dropped >= 3
