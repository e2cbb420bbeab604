"""Stacks on a device: the numbers of the numpy stacks, as torch tensors there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tdecomp.errors import ArgumentError
from tdecomp.files.delta import open_delta, stacks_of
from tdecomp.files.pairing import Pair
from tests.pairs import make_pair, write_folder


@pytest.fixture
def delta(tmp_path):
    return open_delta(*make_pair(tmp_path))


def check(delta, device: str) -> None:
    on_device = delta.stacks_on(device)
    for ours, stack in zip(on_device, delta.stacks, strict=True):
        assert ours.group == stack.group
        for matrix, expected in zip(ours, stack, strict=True):
            assert isinstance(matrix, torch.Tensor)
            assert matrix.device.type == torch.device(device).type
            assert matrix.dtype == torch.float32
            np.testing.assert_array_equal(matrix.cpu().numpy(), expected)
        np.testing.assert_array_equal(ours.dense().cpu().numpy(), stack.dense())


def test_torch_tensors_equal_the_numpy_slices(delta):
    check(delta, "cpu")


def test_stacks_of_takes_a_device(delta):
    (first, *_) = stacks_of(delta.pair, delta.groups, "cpu")
    assert isinstance(first.slice(0), torch.Tensor)
    (plain, *_) = stacks_of(delta.pair, delta.groups)
    assert isinstance(plain.slice(0), np.ndarray)


def test_transposed_blocks_are_turned(tmp_path, rng):
    config = {"model_type": "gpt2"}
    name = "h.0.attn.c_attn.weight"  # Conv1D: stored (in, out), q, k and v beside each other
    sides = [
        write_folder(tmp_path / side, {name: rng.standard_normal((8, 24))}, config=config)
        for side in ("base", "tuned")
    ]
    delta = open_delta(*sides)
    assert any(site.transpose for group in delta.groups for site in group.sites)
    check(delta, "cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x"])
def test_no_such_device(delta, device):
    with pytest.raises(ArgumentError, match=f"no device '{device}'.*'cuda'"):
        delta.stacks_on(device)


def test_no_cuda(delta, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ArgumentError, match=f"'{device}'.*sees no CUDA"):
            delta.stacks_on(device)


def test_no_such_card(delta, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArgumentError, match=r"no device 'cuda:2': torch sees 2"):
        delta.stacks_on("cuda:2")


def test_without_torch(delta, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArgumentError, match="needs torch: pip install"):
        delta.stacks_on("cpu")
    assert isinstance(delta.stacks[0].slice(0), np.ndarray)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_tensors_equal_the_numpy_slices(delta, device):
    check(delta, device)


@pytest.mark.gpu
def test_slices_in_use_are_not_overwritten(tmp_path, rng):
    """Copies go on while kernels still read earlier slices."""
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(12)]
    sides = [
        write_folder(tmp_path / side, {n: rng.standard_normal((512, 512)) for n in names})
        for side in ("base", "tuned")
    ]
    delta = open_delta(*sides)
    (stack,), (expected,) = delta.stacks_on("cuda"), delta.stacks
    sums = []
    for matrix in stack:
        busy = matrix
        for _ in range(50):
            busy = busy @ matrix / matrix.norm()
        sums.append((busy.isfinite().all(), matrix.clone()))
        del matrix, busy
    for (finite, copy), other in zip(sums, expected, strict=True):
        assert bool(finite)
        np.testing.assert_array_equal(copy.cpu().numpy(), other)


# ------------------------------------------------------------------- rounding, from one reading


def test_a_stack_that_was_read_gives_the_rounding_floor(tmp_path, rng, monkeypatch):
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qk"]
    sides = [
        write_folder(tmp_path / s, {n: rng.standard_normal((16, 16)) for n in names}, dtype="BF16")
        for s in ("base", "tuned")
    ]
    expected = open_delta(*sides).rounding_floor()
    assert expected > 0
    for read in (lambda d: d.stacks, lambda d: d.stacks_on("cpu")):
        delta = open_delta(*sides)
        for stack in read(delta):
            list(stack)
        with monkeypatch.context() as patch:
            patch.setattr(Pair, "rounding", lambda *words: pytest.fail("read once more"))
            assert delta.rounding_floor() == pytest.approx(expected, rel=1e-12)
    half = open_delta(*sides)
    half.stacks[0].slice(1)
    assert half.rounding_floor() == pytest.approx(expected, rel=1e-12)
