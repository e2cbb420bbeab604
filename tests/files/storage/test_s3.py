"""A server of S3 on loopback (moto): the bits of the disk, and what is said where it refuses.

s3fs and moto need python-dateutil below 3, which the environment of development does not have:
``make s3`` runs these tests in one of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.errors import FileError
from tdecomp.files import load_factors, open_checkpoint, open_delta
from tdecomp.files.bucket import Bucket
from tdecomp.files.checkpoint import check_unchanged
from tdecomp.files.storage import Url, protocols
from tests.loopback import Loopback, proxying

WHY = "not installed: `make s3` runs it in an environment of its own"
s3fs = pytest.importorskip("s3fs", reason=WHY)
moto = pytest.importorskip("moto.server", reason=WHY)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what moto is made of
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Served(NamedTuple):
    """A bucket with the two models, and what stands before it."""

    system: s3fs.S3FileSystem
    told: Loopback

    def put(self, file: Path, key: str) -> None:
        self.system.pipe_file(f"bucket/{key}", file.read_bytes())


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(moto_port, on_disk, monkeypatch) -> Iterator[Served]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", os.fspath(on_disk.base))  # no settings of the machine
    with proxying(moto_port) as told:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{told.port}")
        protocols.forget()
        system = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{moto_port}")
        system.mkdir("bucket")
        made = Served(system, told)
        for file in (f for side in on_disk for f in side.rglob("*") if f.is_file()):
            made.put(file, file.relative_to(on_disk.base.parent).as_posix())
        yield made
        system.rm("bucket", recursive=True)
        protocols.forget()


def test_the_bits_of_the_disk(bucket, on_disk, tmp_path):
    bucket.told.drop_every = 10
    jobs.decompose("s3://bucket/base", "s3://bucket/tuned", tmp_path / "there", rank=2)
    jobs.decompose(*on_disk, tmp_path / "here", rank=2)
    here, there = (load_factors(tmp_path / name) for name in ("here", "there"))
    for one, other in zip(here.tensors, there.tensors, strict=True):
        assert all(np.array_equal(a, other.arrays[name]) for name, a in one.arrays.items())
    assert bucket.told.dropped


def test_outputs(bucket, on_disk, moto_port, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto_port}")  # all methods
    protocols.forget()
    for overwrite in (False, True):
        jobs.decompose(*on_disk, "s3://bucket/out", rank=2, overwrite=overwrite)
    with pytest.raises(FileError, match="already exists"):
        jobs.decompose(*on_disk, "s3://bucket/out", rank=2)
    assert jobs.verify("s3://bucket/out", *on_disk).agrees
    names = [name.removeprefix("bucket/") for name in bucket.system.find("bucket", withdirs=False)]
    assert sorted(n for n in names if n.startswith((".", "out"))) == [
        "out/.tdecomp.json",
        "out/factors.safetensors",
        "out/report.json",
    ]


def test_parts_meet_in_a_bucket(bucket, on_disk, moto_port, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{moto_port}")  # all methods
    protocols.forget()
    monkeypatch.setattr(Bucket, "pause", 0.01)
    jobs.decompose(*on_disk, tmp_path / "one", rank=2)
    first, second = (
        jobs.Workers(part=(k, 2), scratch=Path("s3://bucket/scratch"), timeout=60.0) for k in (1, 2)
    )
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(second.serve, {"rank": 2})
        with first.executor({"rank": 2}) as executor:
            machine = jobs.Machine(executor=executor)
            jobs.decompose(*on_disk, tmp_path / "many", rank=2, machine=machine)
        assert served.result(60) > 0
    for file in ("factors.safetensors", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()
    left = bucket.system.find("bucket/scratch", withdirs=False)
    assert left == ["bucket/scratch/job.json"]
    place = Bucket(Url("s3://bucket/scratch"))
    assert [place.claim("claims", "one", owner) for owner in (b"1", b"2")] == [True, False]
    assert place.read("claims", "one") == b"1"
    with pytest.raises(FileError, match="there is no bucket 'nowhere'"):
        Bucket(Url("s3://nowhere/scratch")).open(["tasks"])


def test_a_change_is_noticed(bucket, on_disk):
    checkpoint = open_checkpoint("s3://bucket/base")
    check_unchanged(checkpoint)
    (file,) = checkpoint.files
    content = (on_disk.base / "model.safetensors").read_bytes()
    bucket.system.pipe_file("bucket/base/model.safetensors", content[:-1] + b"\x01")
    with pytest.raises(FileError, match=r"s3://bucket/base/model.safetensors has changed"):
        check_unchanged(checkpoint)
    bucket.system.rm_file("bucket/base/model.safetensors")
    with pytest.raises(FileError, match=r"model.safetensors does not exist"):
        check_unchanged(checkpoint)
    assert file.name == "model.safetensors"


def test_refusals(bucket, on_disk, monkeypatch):
    with pytest.raises(FileError, match="there is no bucket 'nowhere'"):
        open_checkpoint("s3://nowhere/base")
    with pytest.raises(FileError, match=r"s3://bucket/nothing does not exist$"):
        open_checkpoint("s3://bucket/nothing")
    with pytest.raises(FileError, match="there is no bucket 'nowhere'"):
        jobs.decompose(*on_disk, "s3://nowhere/out", rank=1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    protocols.forget()
    with pytest.raises(FileError, match="set AWS_ACCESS_KEY_ID") as refused:
        open_delta("s3://bucket/base", "s3://bucket/tuned")
    assert "secret-of-the-test" not in str(refused.value)
