"""A model that lies on several devices: factors are held on one, and go where they are needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tdecomp_torch import attach
from tests.torch.cases import METHODS, Layer, Tiny, assert_close, inputs, seeded, set_random

LEFT_OUT = {"eigenlorax", "c3a"}
"""Needs bases; switches autocast off, which `meta` does not know."""


class Split(Tiny):
    """The second layer and the head on another device than the first layer."""

    def __init__(self, second: str):
        super().__init__()
        first, last = self.layers
        assert isinstance(last, Layer)
        self.around = lambda layer, x: layer(x.to(second) if layer is last else x)
        last.to(second)
        self.head.to(second)
        del first


@pytest.mark.parametrize("name", [n for n in METHODS if n not in LEFT_OUT])
@pytest.mark.parametrize("grad", [True, False])
def test_nothing_meets_on_two_devices(name, grad):
    """By torch's own check: `meta` is a device, whose tensors have shapes and no numbers."""
    model = seeded(lambda: Split("meta"))
    rank = None if name in ("lokr_full", "kradapter") else 2
    weights = [m for m in model.layers[1].self_attn.children() if isinstance(m, nn.Linear)]
    for linear in weights:  # starts that are made of weights need numbers
        linear.to_empty(device="cpu")
        nn.init.normal_(linear.weight)
    adapter = attach(model, name, targets=["q_proj", "k_proj", "v_proj"], rank=rank)
    for linear in weights:
        linear.to("meta")
    with torch.set_grad_enabled(grad):
        for tokens in (1, 40):
            found = model(torch.zeros(1, tokens, 8))
            assert (found.device.type, found.shape) == ("meta", (1, tokens, 3))
    for target in adapter.targets:
        new = target.hook.adapted_weight(target.module, target.hook.places[0])
        assert new.device == target.weight.device


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lora", "lotr", "tenslora_qkv_depth", "dora", "c3a", "hira"])
def test_a_model_on_two_devices_trains_like_one_on_one(name):
    rank = None if name == "c3a" else 2
    x, found = inputs(2, 5, 8, dtype=torch.float32), []
    for second in ("cpu", "cuda"):
        model = seeded(lambda second=second: Split(second))
        adapter = attach(model, name, targets=["q_proj", "v_proj"], rank=rank)
        set_random(adapter)
        y = model(x)
        y.square().sum().backward()
        found.append([y.cpu(), *(p.grad.cpu() for p in adapter.factors().values())])
        adapter.merge()
        assert_close(model(x).cpu(), y.cpu())
    for one, other in zip(*found, strict=True):
        assert_close(one, other)
