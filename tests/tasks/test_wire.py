"""What is sent comes back as it was, and bytes from strangers call nothing of ours but tasks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import tdecomp as td
from tdecomp.errors import ArgumentError, FileError
from tdecomp.tasks import OfSlices
from tdecomp.tasks.wire import packed, unpacked

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
VALUES = [
    None,
    True,
    -3,
    1e-300,
    float("inf"),
    "Δ",
    b"\x00\xff",
    [1, (2, [3])],
    {("in", (0, 1)): {3: "x"}},
    slice(1, None, 2),
    np.dtype("<f4"),
    Path("a/b"),
    np.float64(0.1),
    np.complex64(1 - 2j),
    np.zeros((0, 3)),
    np.array(7),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back(value):
    found = unpacked(packed(value))
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)


@pytest.mark.parametrize("array", [GRID, GRID.T, GRID[:, ::2], GRID[:, :2], GRID.T[:2], GRID[::-1]])
def test_arrays_keep_their_order(array):
    """Whether rows or columns lie together decides the last bit of a product."""
    found = unpacked(packed(array))
    np.testing.assert_array_equal(found, array)
    assert (found.strides[0] < found.strides[1]) == (abs(array.strides[0]) < abs(array.strides[1]))
    assert found.flags.writeable


def test_an_array_is_sent_once():
    one = np.ones(10_000)
    assert len(packed([one, one, one])) < 2 * one.nbytes
    assert len(packed(OfSlices({i: one + i for i in range(4)}).only([2]))) < 2 * one.nbytes


def test_formats_and_calls_come_back():
    tensor = td.Tucker(("site", "out", "in"), GRID[None], (None, None, None))
    found = unpacked(packed(tensor))
    np.testing.assert_array_equal(found.to_dense(), tensor.to_dense())
    assert unpacked(packed(partial(OfSlices, {1: 2})))() == OfSlices({1: 2})


@pytest.mark.parametrize(
    "value", [object(), lambda: 1, partial(max, 1), partial(OfSlices, values={}), {1}]
)
def test_what_cannot_be_sent_is_refused(value):
    with pytest.raises(ArgumentError, match="sent|order"):
        packed(value)


def forged(plain) -> bytes:
    head = json.dumps([plain, []]).encode()
    return len(head).to_bytes(8, "little") + head


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"12345678",
        packed(GRID)[:-5],
        forged({"ours": "os:system"}),
        forged({"ours": "tdecomp.files.atomic:output_folder"}),
        forged({"ours": "tdecomp.files.hashing:subprocess"}),
        forged({"made": ["tdecomp.stack.stack:Stack", {}]}),
        forged({"evaluated": "1 + 1"}),
        forged({"array": 3}),
        forged({"tuple": [], "array": 0}),
        forged({"dict": [[[], 1]]}),
        forged({"made": ["tdecomp.tasks.wire:OfSlices", {"unknown": 1}]}),
        forged({"ours": 7}),
        forged({"partial": 7}),
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(FileError):
        unpacked(data)
