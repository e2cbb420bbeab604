"""Constants that follow from a seed: a state dict or a file is never put on others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tdecomp import ArgumentError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import (
    HIDDEN,
    METHODS,
    Tiny,
    adapted,
    inputs,
    set_random,
    start_given,
    tiny,
)


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


def constants(adapter: Any) -> dict[str, torch.Tensor]:
    return {key: getattr(adapter.pool, key) for key in adapter.pool.derived}


def start_of(name: str) -> dict[str, Any]:
    return {"rank": 2, "tokens": 64, **start_given(name)}


def of_seed(name: str, seed: int) -> tuple[Tiny, Any]:
    """A model whose constants are made from a seed of its own."""
    model = tiny()
    adapter = attach(model, name, **start_of(name), seed=seed)
    set_random(adapter, 9)
    return model, adapter


SEEDED = tuple(name for name in METHODS if constants(adapted(name)[1]))
FEW = ("vera", "nola", "fourierft", "lori", "lamda")


def test_a_method_without_such_constants_adds_nothing_to_the_state():
    model, adapter = adapted("lora")
    assert {f"tdecomp_default.{key}" for key in adapter.factors()} == {
        key for key in model.state_dict() if "tdecomp" in key
    }
    assert set(FEW) <= {*SEEDED, "lamda"}


@pytest.mark.parametrize("name", SEEDED)
def test_a_state_brings_its_constants(name, tmp_path):
    model, _ = adapted(name)
    expected = model(x_of())
    other, adapter = of_seed(name, 7)
    other.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    assert torch.equal(other(x_of()), expected)
    adapter.save(tmp_path / "saved")
    adapter.detach()
    again = load_adapter(other, tmp_path / "saved")
    assert torch.equal(other(x_of()), expected)
    assert again.settings.seed == 0


def empty_from_meta(model: Tiny) -> None:
    model.to("meta")
    model.to_empty(device="cpu")


def emptied(model: Tiny) -> None:
    model.to_empty(device="cpu")


def shaken(model: Tiny) -> None:
    """Whoever applies a function to all tensors that does not keep them."""
    model._apply(torch.rand_like)


def narrow_and_wide(model: Tiny) -> None:
    model.to("meta").half().to_empty(device="cpu").double()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("change", [empty_from_meta, emptied, shaken])
def test_constants_come_back_where_values_were_given_up(change, name):
    model, _ = adapted(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x_of())
    change(model)
    model.load_state_dict(state)
    assert torch.equal(model(x_of()), expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["vera", "nola", "fourierft"])
def test_a_model_on_meta_gets_its_constants(name, assign):
    model, _ = adapted(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.device("meta"):
        empty = Tiny().double()
    adapter = attach(empty, name, **start_of(name), seed=3)
    assert all(factor.is_meta for factor in adapter.factors().values())
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(state, assign=assign)
    assert torch.equal(empty(x_of()), model(x_of()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FEW)
def test_a_conversion_keeps_the_constants(name, dtype):
    model, adapter = adapted(name)
    before = {key: value.clone() for key, value in constants(adapter).items()}
    model.to(dtype)
    for key, value in constants(adapter).items():
        assert torch.equal(value, before[key].to(dtype))
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x_of().to(dtype)), model(x_of().to(dtype)))
    narrow_and_wide(model)
    for key, value in constants(adapter).items():
        assert torch.equal(value, before[key].half().double())


def test_a_state_without_the_seed_is_told():
    model, _ = adapted("vera")
    state = dict(model.state_dict())
    key = "tdecomp_default._extra_state"
    assert state.pop(key).dtype == torch.uint8
    assert model.load_state_dict(state, strict=False).missing_keys == [key]
    with pytest.raises(RuntimeError, match="Missing key.*_extra_state"):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1, 2], dtype=torch.uint8), "does not tell its constants"),
        (torch.empty(0, dtype=torch.uint8), "does not tell its constants"),
        (torch.tensor(list(b'{"seed": -1, "constants": 1}'), dtype=torch.uint8), "the seed is -1"),
        (torch.tensor(list(b'{"seed": 0, "constants": 1}'), dtype=torch.uint8), "other constants"),
        ("seed", "does not tell its constants"),
    ],
)
def test_a_state_of_other_constants_is_refused(value, message):
    model, _ = adapted("vera")
    state = dict(model.state_dict()) | {"tdecomp_default._extra_state": value}
    with pytest.raises(ArgumentError, match=message):
        model.load_state_dict(state)


def test_a_state_goes_through_safetensors(tmp_path):
    """As a Trainer writes it: tensors only."""
    model, _ = adapted("vera")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other, _ = of_seed("vera", 5)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(x_of()), model(x_of()))


def test_any_seed_goes_into_a_state():
    model, _ = of_seed("vera", 2**70)
    other, adapter = adapted("vera")
    other.load_state_dict(model.state_dict())
    assert adapter.pool.seed == 2**70
    assert torch.equal(other(x_of()), model(x_of()))


def test_factors_and_constants_of_a_wrapped_model_come_back():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    adapter = attach(model, "vera", targets=["0"], rank=2)
    set_random(adapter)
    wrapped = nn.DataParallel(model)
    other = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    attach(other, "vera", targets=["0"], rank=2, seed=4)
    nn.DataParallel(other).load_state_dict(wrapped.state_dict())
    x = torch.ones(2, 6)
    assert torch.equal(other(x), model(x))


def test_the_plain_model_takes_the_rest_of_the_state():
    model, _ = adapted("vera")
    found = tiny().load_state_dict(model.state_dict(), strict=False)
    assert all(key.startswith("tdecomp_default.") for key in found.unexpected_keys)
