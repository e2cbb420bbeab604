"""Tiles: every number once, in order; what is beside the result stays small."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdecomp.errors import DataError
from tdecomp.files import checkpoint as ck
from tdecomp.files import safetensors as sf
from tdecomp.files.parts import TILE, Part, tiles

SHAPES = [(), (1,), (0,), (7,), (3, 5), (1, 9), (9, 1), (2, 3, 4), (2, 0, 4), (1, 1, 30), (4, 1, 7)]
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}
# More than a tile; of the last one a single row is.
LARGE = [(70, 1000), (5, 300, 50), (TILE + 3,), (2, 1, TILE + 5)]


@pytest.mark.parametrize("size", [1, 4, 6, 1000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_cover_an_array_once_in_order(shape, size):
    array = np.arange(math.prod(shape)).reshape(shape)
    found = [array[tile] for tile in tiles(shape, size)]
    assert all(part.size <= size for part in found)
    assert all(part.flags.c_contiguous and np.shares_memory(part, array) for part in found)
    flat = np.concatenate([part.reshape(-1) for part in found]) if found else np.empty(0)
    np.testing.assert_array_equal(flat, array.reshape(-1))


def random(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(shape, generator=generator)).to(dtype)


def wide(tensor):
    """The whole tensor widened at once: the oracle."""
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


@pytest.fixture
def pair(tmp_path):
    def pair(base, tuned):
        for side, tensors in (("base", base), ("tuned", tuned)):
            (tmp_path / side).mkdir(exist_ok=True)
            save_file(tensors, tmp_path / side / "model.safetensors")
        return ck.pair(*(ck.open_checkpoint(tmp_path / side) for side in ("base", "tuned")))

    return pair


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_tiles_are_widened_as_the_whole_is(tmp_path, shape, code):
    tensor = random(shape, FLOATS[code], 0)
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    entry = sf.read_header(tmp_path / "a.safetensors")[0]["x"]
    np.testing.assert_array_equal(sf.load(entry), wide(tensor))
    np.testing.assert_array_equal(sf.load(entry, (slice(1, 2),)), wide(tensor)[1:2])


INDICES = [(), (slice(1, 4),), (-1,), (slice(None), slice(30, 290)), (slice(None, None, -2),)]
INDICES += [(slice(None), slice(None), slice(3, 40, 2)), (2, slice(5, 9), 7)]


@pytest.mark.parametrize("tuned_code", FLOATS)
@pytest.mark.parametrize("base_code", FLOATS)
def test_the_delta_is_bit_for_bit_that_of_whole_tensors(pair, base_code, tuned_code):
    base, tuned = (
        random((5, 300, 50), FLOATS[base_code], 0),
        random((5, 300, 50), FLOATS[tuned_code], 1),
    )
    both = pair({"x": base}, {"x": tuned})
    expected = wide(tuned) - wide(base)
    for index in INDICES:
        delta = both.delta("x", index)
        assert delta.dtype == expected.dtype
        assert delta.flags.c_contiguous
        np.testing.assert_array_equal(delta, expected[index])
        total = np.square(expected[index], dtype=np.float64).sum()
        assert both.energy("x", index) == pytest.approx(total, rel=1e-6)
        again, rounding = both.delta_and_rounding("x", index)
        np.testing.assert_array_equal(again, delta)
        assert rounding == pytest.approx(both.rounding("x", index), rel=1e-12)


def test_the_delta_of_scaled_fp8(pair):
    base, scale = random((300, 400), torch.float8_e4m3fn, 0), random((3, 4), torch.float32, 2)
    tuned = random((300, 400), torch.bfloat16, 1)
    both = pair({"x.weight": base, "x.weight_scale_inv": scale}, {"x.weight": tuned})
    expected = tuned.float().numpy() - both.base.read("x.weight")
    for index in [(), (slice(100, 290), slice(3, 399, 2)), (7,)]:
        np.testing.assert_array_equal(both.delta("x.weight", index), expected[index])


def test_every_finite_bfloat16_to_the_bit(pair):
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    tuned = codes[torch.isfinite(codes)]
    base = tuned.roll(1)  # neighbours, so that no difference overflows
    both = pair({"x": base}, {"x": tuned})
    for ours, expected in [
        (both.tuned.read("x"), wide(tuned)),
        (both.delta("x"), wide(tuned) - wide(base)),
    ]:
        np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_bad_value_in_any_tile_is_found(pair, side, value):
    tensors = {s: {"x.weight": random((70, 1000), torch.bfloat16, 0)} for s in ("base", "tuned")}
    tensors[side]["x.weight"][-1, -1] = value
    both = pair(tensors["base"], tensors["tuned"])
    message = rf"'x.weight' in .*{side}.model.safetensors has 1 NaN or infinite values of 70000"
    for read in (both.delta, both.delta_and_rounding, both.energy):
        with pytest.raises(DataError, match=message):
            read("x.weight")


def test_the_caller_may_give_the_memory(pair):
    both = pair({"x": random((3, 4), torch.bfloat16, 0)}, {"x": random((3, 4), torch.float64, 1)})
    given = []

    def empty(shape, dtype):
        given.append(np.full(shape, np.nan, dtype))
        return given[-1]

    out = both.delta("x", (slice(1, 3),), empty=empty)
    assert out is given[0]
    np.testing.assert_array_equal(out, both.delta("x")[1:3])


# -------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("codes", [("BF16", "BF16"), ("F32", "BF16"), ("F16", "F64")])
def test_beside_the_result_there_are_only_tiles(pair, codes):
    shape = (1024, 2048)
    both = pair(*({"x": random(shape, FLOATS[code], i)} for i, code in enumerate(codes)))
    result = both.delta("x").nbytes
    few_tiles = 8 * TILE * 8
    for read, bound in [
        (both.delta, result + few_tiles),
        (both.delta_and_rounding, result + few_tiles),
        (both.tuned.read, both.tuned.read("x").nbytes + few_tiles),
        (both.energy, few_tiles),
        (both.rounding, few_tiles),
    ]:
        tracemalloc.start()
        read("x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= bound, read


def test_a_large_index_of_small_rows_stays_in_tiles():
    part = Part(np.ones((3, TILE // 2, 4), np.uint16), np.dtype(np.float32))
    assert max(part.stored[tile].size for tile in part.walk()) <= TILE
    assert part.scratch().size == TILE


RESIDENT = r"""
import re, sys
from pathlib import Path
from tdecomp.files import checkpoint as ck
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
both = ck.pair(*map(ck.open_checkpoint, sys.argv[1:]))
both.energy("small")
before = peak()
both.energy("x")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_pages_of_the_files_do_not_stay_resident(pair, tmp_path):
    """Both tensors take 64 MiB; what is passed is let go."""
    large, small = torch.ones((8192, 4096), dtype=torch.bfloat16), torch.ones(4)
    pair({"x": large, "small": small}, {"x": large, "small": small})
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(tmp_path / "base"), str(tmp_path / "tuned")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 48 * 2**20
