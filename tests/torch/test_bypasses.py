"""Laws of weights that a model uses without calling their modules: nothing acts there untold."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp import ArgumentError, SiteError
from tdecomp_torch import attach, load_adapter
from tdecomp_torch.model.uses import readers_of_weights
from tests.torch.cases import adapted, assert_close, inputs, seeded

N = 6


class Layer(nn.Module):
    """Two linear maps; subclasses say how the second is applied."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(N, 2 * N), nn.Linear(2 * N, N)
        self.config = SimpleNamespace(slow=False, parts=2)


class Called(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).to(self.down.weight.dtype).to(self.down.weight.device))


class Multiplied(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) @ self.down.weight.t() + self.down.bias


class Sliced(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.up(x))

    def second(self, x: Tensor) -> Tensor:
        parts = zip(x.chunk(2, -1), self.down.weight.chunk(2, 1), strict=True)
        return sum(functional.linear(a, w) for a, w in parts) + self.down.bias


class HandedOver(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return _fused(self.up(x), down=self.down)


class Both(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x) + (x @ self.down.weight.mT)


class Normed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)) / torch.stack([self.down.weight, self.down.weight]).norm()


class Settled(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.config.slow and self.config.parts > 1:
            return x @ self.down.weight.t()
        return self.down(x)


class InTraining(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return functional.linear(x, self.down.weight) if self.training else self.down(x)


class Unused(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)) if len(x) > 100 else x


def _fused(x: Tensor, down: nn.Linear) -> Tensor:
    return functional.linear(x, down.weight, down.bias)


DEAD = (Multiplied, Sliced, HandedOver)
PARTLY = (Both, Normed)
ALIVE = (Called, Settled, Unused, InTraining)
FOUND = (Multiplied, Sliced, Both, Normed, InTraining)  # by reading the class


def model_of(way: type[Layer]) -> nn.Module:
    return seeded(lambda: nn.Sequential(way(), way())).double().eval()


def run(
    way: type[Layer], name: str = "lora", **options: Any
) -> tuple[nn.Module, Any, Tensor, list[str]]:
    """Model, adapter, its output, and what was warned of in two forward passes."""
    model, adapter = adapted(name, model_of(way), targets=["down"], **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(inputs(3, N))
        output = model(inputs(3, N))
    return model, adapter, output.detach(), [str(w.message) for w in told]


@pytest.mark.parametrize("name", ["lora", "lotr", "dora"])
@pytest.mark.parametrize("way", DEAD)
def test_what_never_acts_is_told_once_and_never_merged(way, name, tmp_path):
    model, adapter, output, told = run(way, name)
    plain = model_of(way)
    assert_close(output, plain(inputs(3, N)))
    (message,) = told
    assert "0.down and 1 more" in message
    assert message in adapter.notes
    assert adapter.merged_state_dict().keys() == plain.state_dict().keys()
    assert adapter.to_lora() == []
    adapter.merge()
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    adapter.unmerge()
    assert_close(model(inputs(3, N)), output)


@pytest.mark.parametrize("way", PARTLY)
def test_what_acts_at_one_use_and_not_at_another_is_not_merged(way):
    model, adapter, output, told = run(way)
    (message,) = told
    assert "0.down and 1 more" in message
    for merge in (adapter.merge, adapter.merged_state_dict):
        with pytest.raises(SiteError, match="without calling"):
            merge()
    assert len(adapter.to_lora()) == 2
    assert_close(model(inputs(3, N)), output)


@pytest.mark.parametrize("way", ALIVE)
def test_a_weight_that_is_asked_for_its_dtype_or_not_used_is_nothing_to_tell(way):
    model, adapter, output, told = run(way)
    assert told == []
    adapter.merge()
    assert_close(model(inputs(3, N)), output)


def test_training_is_watched_as_well_as_evaluation():
    model, adapter, *_ = run(InTraining)
    with pytest.warns(UserWarning, match=r"also uses the weight of 0\.down"):
        model.train()(inputs(3, N))
    model(inputs(3, N))
    with pytest.raises(SiteError, match="without calling"):
        adapter.merge()


@pytest.mark.parametrize("way", [Called, Multiplied])
def test_modules_are_what_they_were_after_a_watched_pass(way):
    model, adapter = adapted("lora", model_of(way), targets=["up", "down"])
    before = {path: (m._parameters, len(m._forward_pre_hooks)) for path, m in model.named_modules()}
    expected = [p for _, p in model.named_parameters()]

    def fails(*_: Any) -> None:
        raise KeyError

    handle = model[1].register_forward_pre_hook(fails)
    with pytest.raises(KeyError):
        model(inputs(3, N))
    handle.remove()
    assert not adapter.attached.watch.passes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.deepcopy(model)(inputs(3, N))
        model(inputs(3, N)).sum().backward()
    for path, module in model.named_modules():
        assert module._parameters is before[path][0]
        assert len(module._forward_pre_hooks) == before[path][1]
    assert all(p is q for p, q in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("way", [*DEAD, *PARTLY, *ALIVE])
def test_code_that_may_use_a_weight_without_a_call_is_found_by_reading_it(way):
    model = nn.ModuleDict({"a": way()})
    assert readers_of_weights(model) == ({"a.down": way.__name__} if way in FOUND else {})


@pytest.mark.parametrize("way", FOUND)
def test_what_may_be_used_without_a_call_is_no_default_target_and_is_told(way, tmp_path):
    for targets in (None, "all-linear"):
        adapter = attach(model_of(way), "lora", targets=targets, rank=2)
        assert [target.path for target in adapter.targets] == ["0.up", "1.up"]
        assert any("down" in note for note in adapter.notes)
    model, adapter = adapted("lotr", model_of(way), targets=["down", "up"])
    assert any(f"{way.__name__} may use the weight of 0.down" in note for note in adapter.notes)
    adapter.save(tmp_path / "saved")
    loaded = load_adapter(model_of(way), tmp_path / "saved")
    for merge in (loaded.merge, loaded.merged_state_dict, loaded.to_lora):
        with pytest.raises(SiteError, match="run the model once"):
            merge()
    with pytest.raises(ArgumentError, match="fold=True"):
        attach(model_of(way), "svfit", targets=["down"], rank=2, fold=True)
    assert model is adapter.model


def test_families_that_use_weights_without_a_call():
    import transformers as tf

    tf.logging.set_verbosity_error()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "intermediate_size": 12}
    bloom = {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    slow = {"slow_but_exact": True, "pretraining_tp": 2}
    found = {
        "mamba": tf.MambaModel(tf.MambaConfig(**sizes, state_size=4)),
        "mobilebert": tf.MobileBertForMaskedLM(
            tf.MobileBertConfig(**sizes, **heads, embedding_size=8, intra_bottleneck_size=16)
        ),
        "bloom": tf.BloomModel(tf.BloomConfig(**bloom)),
        "bloom, slow": tf.BloomModel(tf.BloomConfig(**bloom, **slow)),
        "t5": tf.T5Model(tf.T5Config(d_model=16, d_kv=4, d_ff=12, num_layers=1, vocab_size=20)),
    }
    names = {
        name: {
            path.rpartition(".")[2]
            for path in readers_of_weights(model)
            if isinstance(model.get_submodule(path), nn.Linear)
        }
        for name, model in found.items()
    }
    assert names == {
        "mamba": {"dt_proj", "x_proj", "out_proj"},
        "mobilebert": {"dense", "decoder"},
        "bloom": set(),
        "bloom, slow": {"dense", "dense_4h_to_h"},
        "t5": set(),
    }
