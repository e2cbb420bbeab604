"""Recycled memory: given out again only when the array and all its views are gone."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from tdecomp.files.delta import open_delta
from tdecomp.files.recycled import Recycled
from tests.pairs import make_pair

F4 = np.dtype(np.float32)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_are_as_empty_makes_them(shape, dtype):
    array, expected = Recycled().empty(shape, np.dtype(dtype)), np.empty(shape, dtype)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (
        expected.shape,
        expected.dtype,
        True,
        True,
    )


VIEWS = {
    "itself": lambda array: array,
    "transposed": lambda array: array.T,
    "rows of a view": lambda array: array.T[1:].T[::2],
    "bits": lambda array: array.view(np.uint32),
    "flat": lambda array: array.reshape(-1),
    "torch": lambda array: torch.from_numpy(array).T,
    "memoryview": memoryview,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_memory_in_use_is_not_given_out(view):
    memory = Recycled()
    array = memory.empty((4, 6), F4)
    array.fill(1)
    place, kept = array.ctypes.data, view(array)
    del array
    other = memory.empty((4, 6), F4)
    other.fill(2)
    assert other.ctypes.data != place
    assert np.all(np.asarray(kept).astype(np.float32) != 2)
    del kept
    gc.collect()
    assert memory.empty((6, 4), F4).ctypes.data == place


def test_free_memory_is_kept_for_one_size(request):
    tracemalloc.start()
    request.addfinalizer(tracemalloc.stop)
    memory = Recycled()
    arrays = [memory.empty((80, 80), F4) for _ in range(3)]
    del arrays
    before = tracemalloc.get_traced_memory()[0]
    memory.empty((80, 80), F4)
    assert tracemalloc.get_traced_memory()[0] - before < 25600  # nothing new
    memory.empty((40, 40), F4)
    assert before - tracemalloc.get_traced_memory()[0] > 2 * 25600  # and the three are gone


def test_slices_that_are_kept_stay_as_they_are(tmp_path):
    delta = open_delta(*make_pair(tmp_path))
    for stack in delta.stacks:
        kept = list(stack)
        for matrix in stack:
            matrix.fill(np.nan)
        for matrix, site in zip(kept, stack.group.sites, strict=True):
            np.testing.assert_array_equal(
                matrix, site.view(delta.pair.delta(site.tensor, site.slices))
            )
