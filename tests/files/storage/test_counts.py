"""Requests and bytes: every tensor once a pass, neighbours together, several on their way."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp import jobs
from tdecomp.files import open_delta
from tdecomp.files.checkpoint import fingerprints
from tdecomp.files.storage import ahead, ranged
from tdecomp.files.stored import OpenFile
from tdecomp.stack import Selection
from tests.bench.synthetic import write_pair
from tests.loopback import serving

ROOM, REQUEST = 1 << 19, 1 << 17  # bytes: a pair of 0.7 MB models, tensors of up to 98 kB


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair("tiny", tmp_path_factory.mktemp("pair") / "tiny")


@pytest.fixture
def far(pair):
    with serving(pair["base"].parent) as told:
        yield told


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """Nothing stays from one pass to the next."""
    fetching = ahead.Ahead(ROOM, REQUEST)
    monkeypatch.setattr(ahead, "here", lambda: fetching)
    monkeypatch.setattr(ranged, "here", lambda: fetching)
    monkeypatch.setattr(ranged, "_HEAD", 1 << 13)


@pytest.fixture
def read_from_disk(monkeypatch):
    """Bytes that are read from disks."""
    counts: list[int] = []
    read = OpenFile.read_into

    def counted(file: OpenFile, start: int, out: np.ndarray) -> None:
        counts.append(out.nbytes)
        read(file, start, out)

    monkeypatch.setattr(OpenFile, "read_into", counted)
    return counts


@pytest.mark.parametrize("share", [None, ("head",), ("proj",)], ids=str)
def test_a_pass_sends_each_tensor_once(share, pair, far, read_from_disk):
    selection = Selection(targets="all-linear", share=share)
    here = open_delta(pair["base"], pair["tuned"], selection)
    there = open_delta(far.url("base"), far.url("tuned"), selection)
    sites = [site for group in here.groups for site in group.sites]
    needed = 2 * sum(2 * int(np.prod(site.shape)) for site in sites)  # two models, two bytes
    tensors = len({site.tensor for site in sites})
    for one, other in zip(here.stacks, there.stacks, strict=True):
        for _ in range(2):
            far.asked.clear()
            for a, b in zip(one.slices(), other.slices(), strict=True):
                np.testing.assert_array_equal(a, b)
    far.asked.clear()
    for stack in there.stacks:
        for _ in stack.slices():
            pass
    assert far.sent() <= 1.02 * needed
    assert far.gets() <= 2 * tensors


def test_a_command_with_room_for_both_models_is_sent_them_once(
    pair, far, read_from_disk, tmp_path, monkeypatch
):
    """With less room what is sent again hangs on which of its threads comes first."""
    fetching = ahead.Ahead(1 << 22, REQUEST)
    for module in (ahead, ranged):
        monkeypatch.setattr(module, "here", lambda: fetching)
    files = [file for model in pair.values() for file in model.iterdir()]
    jobs.decompose(far.url("base"), far.url("tuned"), tmp_path / "there", rank=4, method="tucker2")
    assert not sum(read_from_disk)
    assert far.sent() <= 1.02 * sum(file.stat().st_size for file in files)


def test_several_requests_are_on_their_way(pair, far):
    there = open_delta(far.url("base"), far.url("tuned"))
    far.wait_for(3)
    for stack in there.stacks:
        for _ in stack.slices():
            pass
    assert far.most_at_once >= 3
    far.wait_for(2)
    fingerprints([there.pair.base, there.pair.tuned])
    assert far.most_at_once >= 2
