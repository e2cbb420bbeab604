"""PEFT on the installed transformers applies every pair of a LoRA folder, whatever the names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from torch import nn

import tdecomp as td
from tdecomp._xp import tol
from tdecomp.adapters import LoRAModule, lora_modules
from tdecomp.files.peft_config import facts, refused
from tdecomp.files.peft_lora import write_lora
from tdecomp.files.unfused import unfused
from tdecomp.stack import find_sites, group_sites
from tests.architectures import build
from tests.models import CASES, read_config, save_arrays, save_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

HUB, MEMORY, RANKED, BARE = "hub", "memory", "rank_pattern", "base model"
CASES_OF = (
    *(("LlavaForConditionalGeneration", how) for how in (HUB, MEMORY)),
    *(("Qwen2VLForConditionalGeneration", how) for how in (HUB, MEMORY)),
    *(("vit", how) for how in (HUB, MEMORY)),
    *(("Qwen3MoeForCausalLM", how) for how in (HUB, RANKED)),
    *(("MixtralForCausalLM", HUB), ("gpt2", RANKED), ("gpt2", BARE)),
)
MORE = (
    *("LlavaModel", "gemma3", "SwinModel", "Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM"),
    *("JambaForCausalLM", "PhimoeForCausalLM", "PaliGemmaForConditionalGeneration"),
)


def saved(name: str, folder: Path, how: str) -> nn.Module:
    """A model whose folder has the names of the hub, of its base or of the model in memory."""
    torch.manual_seed(0)
    model = CASES[name].make() if name in CASES else build(name, "cpu")
    model.save_pretrained(folder)
    if how == BARE:
        names = [key for key in model.state_dict() if key.startswith("transformer.")]
        arrays = {key[12:]: model.state_dict()[key].numpy().copy() for key in names}
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    if how == MEMORY:
        arrays = {key: value.numpy().copy() for key, value in model.state_dict().items()}
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def pairs_of(arrays: dict[str, np.ndarray], config: dict[str, Any]) -> list[LoRAModule]:
    """A random pair for every matrix that is a module, narrower for every other one."""
    rng = np.random.default_rng(0)
    sites = find_sites({name: array.shape for name, array in arrays.items()}, config).sites
    turned = {s.module: s.transpose for s in sites if arrays[s.tensor].ndim == 2}
    lost = refused(turned, config)
    pairs = []
    for k, (module, transpose) in enumerate(turned.items()):
        out, in_ = arrays[f"{module}.weight"].shape[:: -1 if transpose else 1]
        rank = 1 + k % 2
        a = rng.standard_normal((rank, in_)).astype(np.float32)
        b = rng.standard_normal((out, rank)).astype(np.float32) / 4
        pairs += (
            []
            if module in lost
            else [
                LoRAModule(
                    module=module,
                    a=a,
                    b=b,
                    transpose=transpose,
                    departure=0.0,
                    energy=1.0,
                    needed=rank,
                )
            ]
        )
    return pairs


def changed(arrays: dict[str, np.ndarray], pairs: list[LoRAModule]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, with the pairs added."""
    found = {m.module: m.b @ m.a for m in pairs}
    deltas = {
        f"{m.module}.weight": found[m.module].T if m.transpose else found[m.module] for m in pairs
    }
    return {name: array + deltas.get(name, 0) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "how"),
    [*CASES_OF, *(pytest.param(name, HUB, marks=pytest.mark.slow) for name in MORE)],
)
def test_peft_changes_what_the_pairs_change(name: str, how: str, tmp_path: Path):
    base, tuned, lora = tmp_path / "base", tmp_path / "tuned", tmp_path / "lora"
    model = saved(name, base, how)
    config = json.loads((base / "config.json").read_text())
    arrays = load_file(base / "model.safetensors")
    pairs = pairs_of(arrays, config)
    lora.mkdir()
    write_lora(lora, pairs, base="", rank_pattern=how == RANKED, model=facts(config))
    model.save_pretrained(tuned)
    save_file(changed(arrays, pairs), tuned / "model.safetensors", metadata={"format": "pt"})
    expected = type(model).from_pretrained(tuned).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, lora).merge_and_unload().state_dict()
    assert sum(not torch.equal(before[key], expected[key]) for key in expected) >= 8
    for key, value in expected.items():
        assert torch.allclose(merged[key], value, atol=tol("float32", 64) * 64, rtol=0), key


@pytest.mark.parametrize(
    "name", ["mixtral in memory", pytest.param("qwen2_moe in memory", marks=pytest.mark.slow)]
)
def test_fused_experts_are_exported_one_by_one(name: str, tmp_path: Path):
    """The factors of fused experts, as a LoRA that PEFT fuses again, give the tuned weights."""
    base, tuned, lora = tmp_path / "base", tmp_path / "tuned", tmp_path / "lora"
    arrays = save_model(name, base)
    config = read_config(base)
    survey = find_sites({key: array.shape for key, array in arrays.items()}, config)
    rng = np.random.default_rng(0)
    new = {
        key: array + rng.standard_normal(array.shape).astype(np.float32) / 16
        if any(site.tensor == key for site in survey.sites)
        else array
        for key, array in arrays.items()
    }
    deltas = {key: new[key] - arrays[key] for key in arrays}
    groups = group_sites(survey.sites)
    tensors = [
        td.svd(
            np.stack([s.take(deltas[s.tensor]) for s in group.sites]), rank=min(group.shape[-2:])
        ).tensor
        for group in groups
    ]
    shapes = {s.tensor: arrays[s.tensor].shape for s in survey.sites}
    apart, shapes = unfused(groups, shapes, facts(config))
    modules, left_out = lora_modules(apart, tensors, shapes)
    assert left_out == []
    lora.mkdir()
    write_lora(lora, modules, base="", model=facts(config))
    save_model(name, tuned)
    save_arrays(new, tuned)
    load = type(CASES[name].make()).from_pretrained
    expected, fresh = load(tuned).state_dict(), load(base)
    merged = PeftModel.from_pretrained(fresh, lora).merge_and_unload().state_dict()
    assert any("experts" in key for key in expected)
    for key, value in expected.items():
        assert torch.allclose(merged[key], value, atol=tol("float32", 64) * 64, rtol=0), key


def test_experts_without_a_pair_are_written_as_zeros(tmp_path: Path):
    """PEFT fuses all of a layer: the other half and every number must be there."""
    config = {"model_type": "mixtral", "num_local_experts": 3}
    a, b = np.ones((2, 5), np.float32), np.ones((7, 2), np.float32)
    one = LoRAModule(
        module="layers.0.block_sparse_moe.experts.1.w1",
        a=a,
        b=b,
        transpose=False,
        departure=0.0,
        energy=1.0,
    )
    write_lora(tmp_path, [one], base="", model=config)
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    assert len(arrays) == 3 * 3 * 2
    assert {key.split(".experts.")[1] for key, value in arrays.items() if value.any()} == {
        f"1.w1.lora_{x}.weight" for x in "AB"
    }
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == []
    assert written["target_parameters"] == [
        "layers.0.mlp.experts.down_proj",
        "layers.0.mlp.experts.gate_up_proj",
    ]


def test_dense_blocks_beside_experts_are_named_by_their_weight(tmp_path: Path):
    a, b = np.ones((2, 5), np.float32), np.ones((7, 2), np.float32)
    dense = LoRAModule(
        module="layers.0.mlp.up_proj", a=a, b=b, transpose=False, departure=0.0, energy=1.0
    )
    attention = replace(dense, module="layers.0.self_attn.q_proj")
    for kind, by_weight in (("qwen3_moe", True), ("llama", False)):
        folder = tmp_path / kind
        folder.mkdir()
        write_lora(folder, [dense, attention], base="", model={"model_type": kind})
        written = json.loads((folder / "adapter_config.json").read_text())
        assert written.get("target_parameters") == (
            ["layers.0.mlp.up_proj.weight"] if by_weight else None
        )
        assert ("layers.0.mlp.up_proj" in written["target_modules"]) != by_weight


def test_modules_that_peft_refuses_are_known():
    modules = ["layers.0.mixer.out_proj", "layers.0.mixer.in_proj"]
    assert refused(modules, {"model_type": "mamba"}) == ["layers.0.mixer.out_proj"]
    assert refused(modules, {"model_type": "llama"}) == []
