"""A pair of tiny models on a disk, in memory and on a server of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tdecomp.files.storage import protocols
from tests.cli import models
from tests.loopback import Loopback, serving


class Rooted(NamedTuple):
    """Where the models are on a disk."""

    base: Path
    tuned: Path


@pytest.fixture
def on_disk(tmp_path) -> Rooted:
    """The tuned model has two shards and an index."""
    (tmp_path / "models").mkdir()
    base = models.write_base(tmp_path / "models" / "base", models.base_arrays())
    tuned = models.write_tuned(
        tmp_path / "models" / "tuned", models.tuned_arrays(models.base_arrays())
    )
    return Rooted(base, tuned)


@pytest.fixture
def server(on_disk: Rooted, monkeypatch) -> Iterator[Loopback]:
    monkeypatch.setattr(protocols, "LONG_PAUSES", (0.01,) * 6)
    monkeypatch.setattr(protocols, "SHORT_PAUSES", (0.01,) * 2)
    with serving(on_disk.base.parent) as told:
        yield told


@pytest.fixture
def in_memory(on_disk: Rooted) -> Iterator[str]:
    """Address of a folder with both."""
    import fsspec

    system = fsspec.filesystem("memory")
    root = on_disk.base.parent
    for file in root.rglob("*"):
        if file.is_file():
            system.pipe_file(f"/bucket/{file.relative_to(root).as_posix()}", file.read_bytes())
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)
