"""What `check` says of PEFT is what PEFT does, on tiny models of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from torch import nn

from tdecomp.files.loras import read_adapter
from tdecomp.jobs import check, export_for
from tests.architectures import EXPERTS, GQA, HEADS, LATENT, MROPE, SEQUENCE, VISION
from tests.published import write_adapter

P = "base_model.model."
VISUAL = {
    "depth": 1,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 2,
    "fullatt_block_indexes": [0],
}
SMALL = {"num_experts": 4, "moe_intermediate_size": 12, "head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("Llama", HEADS),
    "Qwen2ForCausalLM": ("Qwen2", GQA),
    "Qwen3ForCausalLM": ("Qwen3", HEADS),
    "Qwen2_5_VLForConditionalGeneration": (
        "Qwen2_5_VL",
        {"text_config": MROPE, "vision_config": VISUAL},
    ),
    "Qwen3MoeForCausalLM": ("Qwen3Moe", EXPERTS | SMALL),
    "MixtralForCausalLM": ("Mixtral", EXPERTS),
    "GptOssForCausalLM": ("GptOss", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Gemma3ForConditionalGeneration": (
        "Gemma3",
        {"text_config": HEADS, "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    ),
    "Mistral3ForConditionalGeneration": (
        "Mistral3",
        {
            "text_config": HEADS | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
        },
    ),
    "Phi3ForCausalLM": ("Phi3", GQA),
    "DeepseekV3ForCausalLM": ("DeepseekV3", LATENT),
    "WhisperForConditionalGeneration": (
        "Whisper",
        SEQUENCE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}
MIXTURES = (
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "DeepseekV3ForCausalLM",
)
QUICK = (
    *("LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"),
    *("Gemma3ForConditionalGeneration", "WhisperForConditionalGeneration"),
)
BETWEEN = (
    *("model.layers.", "layers.", "model.language_model.layers.", "language_model.model.layers."),
    *("language_model.layers.", "base_model.model.model.layers.", "_orig_mod.model.layers."),
    *("module.model.layers.", "model.model.layers.", "model.encoder.layers.", "encoder.layers."),
)


def made(name: str) -> Any:
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    return getattr(tf, name)(getattr(tf, f"{config}Config")(**sizes))


def changes(model: Any, lora: Path) -> bool:
    """Whether any number of the adapter arrives in the model."""
    adapted = PeftModel.from_pretrained(model, lora)
    arrived = any(
        bool(value.abs().sum() > 0)
        for key, value in adapted.state_dict().items()
        if "lora_B" in key
    )
    adapted.unload()
    return arrived


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_peft_does_what_is_said(name: str, tmp_path: Path):
    model = made(name)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    leaf = next(s for s in ("q_proj", "qkv_proj", "q_a_proj") if any(s in n for n in linear))
    found = next(n for n in linear if n.endswith(f"layers.0.self_attn.{leaf}") and "tower" not in n)
    size = linear[found].out_features, linear[found].in_features
    said: dict[str, bool] = {}
    does: dict[str, bool] = {}
    for k, between in enumerate(BETWEEN):
        stem = f"{P}{between}0.self_attn.{leaf}"
        lora = write_adapter(
            tmp_path / str(k), {stem: size}, target_modules=[leaf], base_model_name_or_path=""
        )
        said[stem] = check(lora, folder, loader="peft").acts
        does[stem] = changes(model, lora)
    assert said == does
    assert any(does.values())
    assert json.loads((folder / "config.json").read_text())["model_type"]


def _sizes(model: nn.Module) -> tuple[str, int, dict[str, tuple[int, int]]]:
    """Container of experts in memory, their number, and (out, in) of the fused parameters."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if ".experts." in n}
    down = next(n for n in shapes if n.endswith("experts.down_proj"))
    count, out, in_ = shapes[down]
    turned = "gate_up_proj_bias" in " ".join(shapes)
    out, in_ = (in_, out) if turned else (out, in_)
    return down.rpartition(".")[0], count, {"down_proj": (out, in_), "gate_up_proj": (2 * in_, out)}


@pytest.mark.filterwarnings(
    "ignore:Found missing adapter keys", "ignore:The following rank_pattern"
)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern")
@pytest.mark.parametrize("missing", [False, True], ids=["all of them", "one missing"])
@pytest.mark.parametrize("name", MIXTURES[1:3])
def test_peft_takes_experts_as_is_said(name: str, missing: bool, tmp_path: Path):
    model = made(name)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    container, count, sizes = _sizes(model)
    (wide, narrow), (out, in_) = sizes["gate_up_proj"], sizes["down_proj"]
    leaves = (
        ("w1", "w2", "w3") if name.startswith("Mixtral") else ("gate_proj", "down_proj", "up_proj")
    )
    each = dict(zip(leaves, ((wide // 2, narrow), (out, in_), (wide // 2, narrow)), strict=True))
    hub = container.replace("mlp", "block_sparse_moe") if name.startswith("Mixtral") else container
    singles = {f"{P}{hub}.{k}.{leaf}": s for k in range(count) for leaf, s in each.items()}
    fused = {f"{P}{container}.base_layer": (wide, narrow), f"{P}{container}": (out, in_)}
    parameters = [f"{container}.{leaf}" for leaf in sizes]
    doubled = {r".*\.gate_up_proj": 4}
    for layout, pairs in (("each", singles), ("fused", fused)):
        pairs = dict(list(pairs.items())[: -1 if missing else None])
        config: dict[str, Any] = {"target_modules": [], "target_parameters": parameters}
        config |= {"rank_pattern": doubled, "alpha_pattern": doubled} if layout == "each" else {}
        lora = write_adapter(tmp_path / layout, pairs, experts=count, **config)
        report = check(lora, folder, loader="peft")
        try:
            arrived = changes(made(name), lora)
        except (ValueError, RuntimeError, IndexError):
            arrived = False
            assert not report.loads
        assert (report.loads and any(line.acts for line in report.keys)) == arrived, layout


def random_pairs(folder: Path, pairs: dict[str, tuple[int, int]], **config: Any) -> Path:
    """A PEFT folder of random pairs of rank 2."""
    lora = write_adapter(folder, pairs, **config)
    rng = np.random.default_rng(0)
    arrays = load_file(lora / "adapter_model.safetensors")
    new = {name: rng.standard_normal(a.shape, np.float32) for name, a in arrays.items()}
    save_file(new, lora / "adapter_model.safetensors", {"format": "pt"})
    return lora


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_are_written_for_peft_add_what_each_adds(name: str, tmp_path: Path):
    """Single pairs, fused for PEFT, merge into the parameters as they lie in memory."""
    model = made(name)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    _, count, sizes = _sizes(model)
    containers = [n for n, _ in model.named_modules() if n.endswith(".experts")]
    (wide, narrow), (out, in_) = sizes["gate_up_proj"], sizes["down_proj"]
    half = wide // 2, narrow
    leaves = {"gate_proj": half, "up_proj": half, "down_proj": (out, in_)}
    stems = {
        f"{P}{container}.{k}.{leaf}": s
        for container in containers
        for k in range(count)
        for leaf, s in leaves.items()
    }
    lora = random_pairs(tmp_path / "lora", stems)
    export_for(lora, tmp_path / "out", loader="peft", base=folder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    each = {site: np.asarray(pair.dense()) for site, pair in read_adapter(lora).pairs.items()}
    again = {
        site: np.asarray(p.dense()) for site, p in read_adapter(tmp_path / "out").pairs.items()
    }
    assert len(again) == 2 * count * len(containers)
    gpt_oss = name.startswith("GptOss")
    for key in (f"{container}.{proj}" for container in containers for proj in sizes):
        container, _, proj = key.rpartition(".")
        added = (merged[key] - before[key]).numpy()
        for k in range(count):
            rows = [each[f"{container}.{k}.{leaf}"] for leaf in ("gate_proj", "up_proj")]
            both = np.stack(rows, 1).reshape(wide, -1) if gpt_oss else np.concatenate(rows)
            expected = both if proj == "gate_up_proj" else each[f"{container}.{k}.down_proj"]
            assert np.allclose(added[k], expected.T if gpt_oss else expected, atol=1e-4), key
    same = [key for key in before if ".experts." not in key or key.endswith("bias")]
    assert all(torch.equal(before[key], merged[key]) for key in same)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("name", ["DeepseekV3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_dense_blocks_of_mixtures_are_dropped_unless_named_by_their_weight(
    name: str, tmp_path: Path
):
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    sizes = sizes | ({"mlp_only_layers": [0]} if name.startswith("Qwen3") else {})
    model = getattr(tf, name)(getattr(tf, f"{config}Config")(**sizes))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    found = next(n for n, m in model.named_modules() if n.endswith("layers.0.mlp.up_proj"))
    linear = model.get_submodule(found)
    size = {f"{P}{found}": (linear.out_features, linear.in_features)}
    lora = random_pairs(tmp_path / "lora", size, target_modules=[found])
    try:
        does = changes(model, lora)
    except ValueError:
        does = False
    report = check(lora, folder, loader="peft")
    assert (report.loads and report.acts) == does
    mended = export_for(lora, tmp_path / "out", loader="peft", base=folder)
    assert mended.check.acts
    assert changes(model, tmp_path / "out")
