"""Names are those of the plain model, whatever is around it or its layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from tdecomp import SiteError
from tdecomp.stack.names import WRAPPERS
from tdecomp_torch import attach, load_adapter
from tdecomp_torch.model.names import modules_of, parameters_of
from tests.torch.cases import HIDDEN, Tiny, assert_close, inputs, set_random, tiny


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


class Around(nn.Module):
    """A training module: it holds the model, and what has no weights."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.loss = model, nn.MSELoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class LightningModule(Around):
    """As Lightning names its class; what it holds need be no model of transformers."""


def compiled(model: Any) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


def checkpointed(model: Any) -> nn.Module:
    model.layers = nn.ModuleList(map(checkpoint_wrapper, model.layers))
    return model


def inside_out(model: Any) -> nn.Module:
    for layer in model.layers:
        layer.self_attn.q_proj = checkpoint_wrapper(layer.self_attn.q_proj)
    model.layers[0] = compiled(model.layers[0])
    return model


def with_lora(model: Any) -> nn.Module:
    model.config.get = {"tie_word_embeddings": False}.get
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))


def with_trained_head(model: Any) -> nn.Module:
    model.config.get = {"tie_word_embeddings": False}.get
    own = LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["head"])
    return get_peft_model(model, own)


WRAPS: dict[str, Callable[[Any], nn.Module]] = {
    "nothing": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "checkpointed": checkpointed,
    "training module": Around,
    "Lightning": LightningModule,
    "PEFT": with_lora,
    "PEFT with a head": with_trained_head,
    "layers": inside_out,
    "all of them": lambda model: nn.DataParallel(LightningModule(compiled(checkpointed(model)))),
    "the other way": lambda model: compiled(nn.DataParallel(Around(inside_out(model)))),
}
TARGETS = ["q_proj", "v_proj"]


@cache
def plain_names() -> tuple[set[str], set[str]]:
    model = tiny()
    return set(modules_of(model)), set(parameters_of(model))


@pytest.mark.parametrize("how", WRAPS)
def test_names_are_those_of_the_plain_model(how):
    model = WRAPS[how](tiny())
    modules, parameters = plain_names()
    assert modules <= set(modules_of(model))
    assert parameters <= set(parameters_of(model))
    adapter = attach(model, "lora", targets=TARGETS, rank=2, also_train=["head"])
    assert [target.path for target in adapter.targets] == [
        f"layers.{k}.self_attn.{name}" for k in (0, 1) for name in TARGETS
    ]
    assert {"head.weight", "head.bias"} <= set(adapter.trained_besides())


@pytest.mark.parametrize("how", WRAPS)
def test_a_file_goes_from_any_wrapper_to_any(how, tmp_path):
    """From the wrapped model to the plain one, and back; no wrapper is in it."""
    model = WRAPS[how](tiny())
    adapter = attach(model, "vera", targets=TARGETS, rank=2, also_train=["head"])
    set_random(adapter)
    inner = modules_of(model)[""]
    with torch.no_grad():
        parameters_of(model)["head.weight"].mul_(2)
        expected = inner(x_of())
    adapter.save(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "factors.safetensors", "pt") as file:
        said = " ".join((*file.keys(), str(file.metadata())))
    written = {part for wrapper in WRAPPERS for part in wrapper.segments.split(".")} - {
        "*",
        "module",
    }
    assert not [part for part in written if f".{part}" in said or f"{part}." in said]
    for other in ("nothing", how, "all of them"):
        again = WRAPS[other](tiny())
        loaded = load_adapter(again, tmp_path / "saved")
        assert loaded.notes == ()
        with torch.no_grad():
            assert_close(modules_of(again)[""](x_of()), expected)


@pytest.mark.parametrize("how", WRAPS)
def test_merged_states_are_those_of_the_plain_model(how):
    model = WRAPS[how](tiny())
    adapter = attach(model, "lora", targets=TARGETS, rank=2)
    set_random(adapter)
    with torch.no_grad():
        expected = modules_of(model)[""](x_of())
    plain = tiny()
    found = plain.load_state_dict(adapter.merged_state_dict(), strict=False)
    assert not found.missing_keys
    assert not found.unexpected_keys or "PEFT" in how or how == "averaged"
    assert_close(plain(x_of()), expected)


class Two(nn.Module):
    """A model that is a part of another one, under some names."""

    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            self.add_module(name, tiny())
        self.score = nn.Linear(3, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(sum(m(x) for m in self.children() if isinstance(m, Tiny)))


def test_a_file_of_a_part_goes_on_the_whole_and_back(tmp_path):
    part = tiny()
    adapter = attach(part, "lora", targets=TARGETS, rank=2, also_train=["head"])
    set_random(adapter)
    expected = part(x_of())
    adapter.save(tmp_path / "part")
    whole = Two("body")
    on_whole = load_adapter(whole, tmp_path / "part")
    assert on_whole.notes == ()
    assert [t.path for t in on_whole.targets][0] == "body.layers.0.self_attn.q_proj"
    assert torch.equal(whole(x_of()), whole.score(expected))
    on_whole.save(tmp_path / "whole")
    again = tiny()
    load_adapter(again, tmp_path / "whole")
    assert torch.equal(again(x_of()), expected)


def test_several_places_that_fit_are_told(tmp_path):
    attach(tiny(), "lora", targets=TARGETS, rank=2).save(tmp_path / "part")
    model = Two("student", "teacher")
    message = r"this one has student\.layers\.0.* and teacher\.layers\.0.*give the part"
    with pytest.raises(SiteError, match=message):
        load_adapter(model, tmp_path / "part")
    load_adapter(model.teacher, tmp_path / "part")


def test_a_child_called_module_is_no_wrapper_beside_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.ModuleDict({"head": nn.Linear(6, 6)})
            self.head = nn.Linear(6, 4)

    model = Net()
    assert {m for m in modules_of(model).values() if isinstance(m, nn.Linear)} == {
        model.module["head"],
        model.head,
    }
    assert len(parameters_of(model)) == 4


def test_heads_of_a_configuration_are_found_inside_a_wrapper():
    adapter = attach(nn.DataParallel(tiny()), "lorta", rank=2)
    plain = attach(tiny(), "lorta", rank=2)
    assert [g.grid for g in adapter.groups] == [g.grid for g in plain.groups]


def test_a_model_that_holds_one_child_keeps_its_name():
    """It is no wrapper: no configuration is inside, and nobody wraps with that name."""
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6)))
    assert [t.path for t in attach(model, "lora", targets=["0.0"], rank=2).targets] == ["0.0"]
    around = Around(nn.Linear(6, 6))
    around.config = SimpleNamespace()
    assert "model" in modules_of(around)
