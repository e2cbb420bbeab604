"""LoRA folders as PEFT writes and reads them: the same ΔW at every weight, both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tdecomp import jobs
from tdecomp.collections import AdapterPair
from tdecomp.files.loras import AdapterFile, read_adapter, write_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


class Experts(nn.Module):
    """Three experts in two parameters, as transformers keeps them."""

    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 10, 6))
        if both:
            self.down_proj = nn.Parameter(torch.randn(3, 6, 5))


class Small(nn.Module):
    """One of each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.Linear(6, 4)}) for _ in range(2)
        )
        self.embed, self.turned = nn.Embedding(9, 6), Conv1D(7, 6)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 2)
        self.one, self.two = Experts(both=False), Experts(both=True)


LINEAR = ["q", "k"]
VARIANTS: dict[str, dict] = {
    "plain": {"target_modules": LINEAR},
    "mixed": {
        "target_modules": LINEAR,
        "rank_pattern": {"layers.0.q": 3, r".*1\.k": 2},
        "alpha_pattern": {"q": 5, "layers.1.k": 1},
    },
    "rsLoRA": {"target_modules": LINEAR, "use_rslora": True},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "DoRA of Conv1D": {"target_modules": ["turned"], "use_dora": True, "fan_in_fan_out": True},
    "Conv1D": {"target_modules": ["turned"], "fan_in_fan_out": True},
    "embedding and a convolution": {"target_modules": ["embed", "conv"]},
    "bias": {"target_modules": LINEAR, "lora_bias": True},
    "whole modules": {"target_modules": LINEAR, "modules_to_save": ["head"]},
    "experts": {"target_parameters": ["one.gate_up_proj"], "target_modules": ["q"]},
    "experts of two parameters": {
        "target_parameters": ["two.gate_up_proj", "two.down_proj"],
        "target_modules": [],
    },
    "experts of other ranks": {
        "target_parameters": ["one.gate_up_proj"],
        "target_modules": ["q"],
        "rank_pattern": {"one.gate_up_proj": 2},
        "alpha_pattern": {"one.gate_up_proj": 3},
    },
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def weights(of: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: value.detach().numpy().astype(np.float64) for name, value in of.state_dict().items()
    }


def change(folder: Path) -> dict[str, np.ndarray]:
    """What PEFT adds to every weight that it changes."""
    before = weights(model())
    after = weights(PeftModel.from_pretrained(model(), folder).merge_and_unload())
    found = {name: after[name] - before[name] for name in before}
    return {name: delta for name, delta in found.items() if np.abs(delta).max() > 1e-6}


def stored(pair: AdapterPair) -> np.ndarray:
    """ΔW as the weight lies, flat in what is behind its first axis."""
    dense = np.asarray(pair.dense())
    return dense.T if pair.transpose else dense


def said(adapter: AdapterFile, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What the pairs add to every weight of these shapes; experts are put together."""
    found: dict[str, np.ndarray] = {}
    groups: dict[str, list[np.ndarray]] = {}
    for site, pair in adapter.pairs.items():
        expert = adapter.stored[site].expert
        groups.setdefault(expert.module if expert else site, []).append(stored(pair))
    for site, each in groups.items():
        inner = site.replace(".base_layer", "")
        names = [
            n for n in shapes if n.removesuffix(".weight") == inner or n.startswith(f"{inner}.")
        ]
        whole = np.stack(each) if len(each) > 1 else each[0]
        fits = [n for n in names if np.prod(shapes[n]) == whole.size and n not in found]
        found[fits[0]] = whole.reshape(shapes[fits[0]])
    return found


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert set(one) == set(two)
    for name, delta in one.items():
        assert np.allclose(delta, two[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_are_what_peft_adds(variant: str, tmp_path: Path):
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **VARIANTS[variant]}
    tuned = get_peft_model(model(), LoraConfig(**options))
    for name, parameter in tuned.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.linspace(0.5, 2, parameter.numel()).reshape(parameter.shape)
    tuned.save_pretrained(tmp_path / "theirs")
    save_file(model().state_dict(), tmp_path / "model.safetensors")
    theirs = change(tmp_path / "theirs")
    whole = {"head.weight", "head.bias"} if "modules_to_save" in options else set()
    biases = {name for name in theirs if name.endswith("bias")}
    base = tmp_path / "model.safetensors" if options.get("use_dora") else None
    adapter = read_adapter(tmp_path / "theirs", base=base)
    shapes = {name: value.shape for name, value in model().state_dict().items()}
    covered = {name: delta for name, delta in theirs.items() if name not in whole | biases}
    assert_same(said(adapter, shapes), covered)
    assert bool(adapter.not_covered) == bool(whole or options.get("lora_bias"))
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", adapter)
    assert_same(change(tmp_path / "ours"), covered)
    again = read_adapter(tmp_path / "ours")
    for site, pair in adapter.pairs.items():
        if not options.get("use_dora"):  # whose pairs are made of float64 and stored in float32
            assert np.array_equal(pair.b, again.pairs[site].b)
            assert np.array_equal(pair.a, again.pairs[site].a)
            assert pair.scale == again.pairs[site].scale


def test_what_is_no_pair_is_copied_where_pairs_are_made_narrower(tmp_path: Path):
    options = {"modules_to_save": ["head"], "bias": "all", "init_lora_weights": False}
    tuned = get_peft_model(model(), LoraConfig(r=4, target_modules=LINEAR, **options))
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name or name.endswith("bias"):
            parameter.data += 1
    tuned.save_pretrained(tmp_path / "theirs")
    report = jobs.resize(tmp_path / "theirs", tmp_path / "ours", rank=4)
    theirs = change(tmp_path / "theirs")
    assert {"head.weight", "layers.0.q.bias"} <= set(theirs)
    assert_same(change(tmp_path / "ours"), theirs)
    (one,) = report.adapters
    assert not one.not_covered
    assert len(one.copied) >= 2 + 4
