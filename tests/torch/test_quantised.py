"""Adapters on weights that are stored in a form of their own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tdecomp import ArgumentError, SiteError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import Layer, Tiny, assert_close, inputs, seeded, set_random

METHODS = (("lotr", 2), ("lora_xs", 2), ("dota", {"r1": 2, "r2": 2}), ("dora", 2), ("hira", 2))


class Eight(nn.Module):
    """Whole numbers and a scale per row; no attribute ``weight``, as in GPTQ and AWQ."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        w = linear.weight.detach()
        self.register_buffer("scale", w.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("qweight", (w / self.scale).round().to(torch.int8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale, self.bias)


class Small(nn.Linear):
    """Floating numbers of 8 bits and one scale, as transformers' FP8Linear has them."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        w = linear.weight.detach()
        self.scale = nn.Parameter(w.abs().max() / 448, requires_grad=False)
        self.weight = nn.Parameter((w / self.scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def four_bits(linear: nn.Linear) -> nn.Module:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
    )
    packed.load_state_dict(linear.state_dict())
    return packed.to("cpu")  # where it quantises


FORMS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "int8": Eight,
    "float8": Small,
    "4 bits": four_bits,
}
every_form = pytest.mark.parametrize("form", FORMS)


def quantised(form: str) -> Tiny:
    """A small model whose projections are quantised."""
    model = seeded(Tiny)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for name, linear in list(layer.self_attn.named_children()):
            setattr(layer.self_attn, name, FORMS[form](linear))
    return model


def dequantised(model: Tiny) -> Tiny:
    """The same model in floating numbers, by what its layers give for the identity."""
    plain = copy.deepcopy(seeded(Tiny))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for path, module in plain.named_modules():
            if isinstance(module, nn.Linear) and path != "head":
                packed = modules[path]
                at_zero = packed(torch.zeros(1, module.in_features))
                module.weight.copy_((packed(torch.eye(module.in_features)) - at_zero).T)
    return plain


@every_form
@pytest.mark.parametrize(("method", "rank"), METHODS)
def test_an_adapter_acts_as_on_the_weights_in_full(form, method, rank):
    model, x = quantised(form), inputs(2, 5, 8, dtype=torch.float32)
    plain = dequantised(model)
    for each in (model, plain):
        set_random(attach(each, method, rank=rank))
    assert_close(model(x), plain(x))
    for each in (model, plain):
        each(x).square().sum().backward()
    found, expected = (
        {k: p.grad for k, p in each.named_parameters() if p.grad is not None}
        for each in (model, plain)
    )
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        assert_close(gradient, expected[key])


@every_form
def test_the_packed_weights_are_never_touched(form, tmp_path):
    model, x = quantised(form), inputs(2, 5, 8, dtype=torch.float32)
    before, packed = model(x), copy.deepcopy(model.state_dict())
    adapter = attach(model, "dota", rank={"r1": 2, "r2": 2})
    assert_close(model(x), before)
    set_random(adapter)
    adapted = model(x)
    adapter.save(tmp_path / "mine")
    adapter.detach()
    assert torch.equal(model(x), before)
    again = load_adapter(model, tmp_path / "mine")
    assert not again.notes
    assert torch.equal(model(x), adapted)
    again.detach()
    for name, value in packed.items():
        assert torch.equal(value, model.state_dict()[name])


@every_form
def test_an_adapter_of_quantised_weights_merges_where_they_are_in_full(form, tmp_path):
    model, x = quantised(form), inputs(2, 5, 8, dtype=torch.float32)
    plain = dequantised(model)
    adapter = attach(model, "lotr", rank=2)
    set_random(adapter)
    with pytest.raises(SiteError, match=r"q_proj is quantised .* merge there"):
        adapter.merge()
    with pytest.raises(SiteError, match="is quantised"):
        adapter.merged_state_dict()
    adapter.save(tmp_path / "mine")
    other = load_adapter(plain, tmp_path / "mine")
    other.merge(keep=None)
    assert_close(plain(x), model(x))
    assert [pair.module for pair in adapter.to_lora()] == [pair.module for pair in other.to_lora()]


class Bumps(nn.Module):
    """Sizes like those of a linear map, but no codes: another kind of layer."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 8, 8
        self.centres = nn.Parameter(torch.zeros(8, 8))


def test_a_layer_without_codes_is_not_taken_for_a_quantised_one():
    with pytest.raises(SiteError, match="other \\(Bumps\\)"):
        attach(nn.ModuleDict({"other": Bumps()}), "lora", targets=["other"], rank=2)


def test_nothing_is_folded_into_packed_weights():
    with pytest.raises(ArgumentError, match=r"fold=True cannot subtract .* quantised \(Eight\)"):
        attach(quantised("int8"), "dota", rank=2, fold=True)


def test_other_packed_weights_are_told(tmp_path):
    model = quantised("int8")
    attach(model, "lora", rank=2).save(tmp_path / "mine")
    other = quantised("int8")
    other.layers[0].self_attn.q_proj.qweight += 1
    assert "base weights differ" in load_adapter(other, tmp_path / "mine").notes[0]
