"""What acts and what does not, against the published names of thirteen architectures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tdecomp.files.loaders import CheckedKey
from tdecomp.jobs import CheckReport, check
from tests.published import FLUX, KV, PUBLISHED, D, E, F, X, write_adapter

P = "base_model.model."
Q, UP = "0.self_attn.q_proj", "1.mlp.up_proj"
SIZES = {
    **dict.fromkeys(("q_proj", "o_proj", "out_proj"), (D, D)),
    **dict.fromkeys(("k_proj", "v_proj"), (KV, D)),
    **dict.fromkeys(("gate_proj", "up_proj"), (F, D)),
    "down_proj": (D, F),
    "qkv_proj": (D + 2 * KV, D),
    "q_b_proj": (D, 6),
    "kv_b_proj": (14, 4),
    "fc1": (F, D),
    "experts": (D, X),
    "base_layer": (2 * X, D),
}
EXPERT = {"gate_proj": (X, D), "up_proj": (X, D), "down_proj": (D, X)}
EXPERT |= {"w1": (X, D), "w3": (X, D), "w2": (D, X)}


def size(stem: str) -> tuple[int, int]:
    last = stem.rpartition(".")[2]
    return EXPERT[last] if ".experts." in stem and last in EXPERT else SIZES[last]


def checked(folder: Path, model: str, loader: str, *stems: str, **config: Any) -> CheckReport:
    lora = write_adapter(folder / "lora", {stem: size(stem) for stem in stems}, **config)
    return check(lora, PUBLISHED[model].write(folder.parent / model), loader=loader)


def acting(report: CheckReport) -> set[str]:
    return {line.key.partition(".lora_")[0] for line in report.keys if line.acts}


def of(report: CheckReport, stem: str) -> CheckedKey:
    return next(line for line in report.keys if line.key == f"{stem}.lora_A.weight")


def all_experts(container: str, *leaves: str) -> tuple[str, ...]:
    return tuple(f"{container}.{k}.{leaf}" for k in range(E) for leaf in leaves)


TEXT, TOWER = "model.layers.", "language_model.model.layers."
LOADED = "model.language_model.layers."

# model, loader -> what stands between PEFT's prefix and the layer's number, and acts, and does not
NAMES: Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{
        (model, loader): ((TEXT,), ("layers.", "language_model.model.layers.", "model." + TEXT))
        for model in ("Llama", "Qwen2", "Qwen3", "Qwen3-MoE", "Mixtral", "gpt-oss")
        for loader in ("peft", "vllm")
    },
    ("Llama", "llama.cpp"): ((TEXT, P + TEXT), ("layers.", "module." + TEXT)),
    ("Qwen2.5-VL", "peft"): ((LOADED,), (TEXT, TOWER, "language_model.layers.")),
    ("Qwen2.5-VL", "vllm"): ((LOADED, TEXT, TOWER, P + LOADED), ("layers.", "model." + LOADED)),
    ("Qwen2.5-VL", "llama.cpp"): ((LOADED, TEXT, TOWER), ("layers.",)),
    ("Gemma 3", "peft"): ((LOADED, TOWER), (TEXT, "layers.", "model." + LOADED)),
    ("Gemma 3", "vllm"): ((LOADED, TOWER), (TEXT, "layers.", "model." + LOADED)),
    ("Gemma 3", "llama.cpp"): ((LOADED, TOWER, TEXT), ("layers.",)),
    ("Mistral 3", "peft"): ((LOADED, TOWER), (TEXT, "layers.")),
    ("Mistral 3", "vllm"): ((LOADED, TOWER, TEXT), ("layers.",)),
    ("Llama", "sglang"): ((TEXT, "layers.", "x." + TEXT), ("blocks.",)),
    ("Gemma 3", "sglang"): ((LOADED, TEXT, TOWER), ("vision_tower.encoder.layers.",)),
}


@pytest.mark.parametrize(("model", "loader"), NAMES)
def test_prefixes_decide(model: str, loader: str, tmp_path: Path):
    right, wrong = NAMES[model, loader]
    for k, prefix in enumerate((*right, *wrong)):
        stem = f"{P}{prefix}{Q}"
        report = checked(tmp_path / str(k), model, loader, stem)
        assert report.acts == (prefix in right), stem
        if report.acts:
            continue
        line = of(report, stem)
        assert line.why
        assert line.rule
        if line.instead:  # what is proposed acts
            again = checked(tmp_path / f"again{k}", model, loader, line.instead)
            assert again.acts
            assert line.instead.endswith(Q)


@pytest.mark.parametrize("model", ["Llama", "Qwen2.5-VL", "Gemma 3", "Mistral 3", "Mixtral"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.module."])
def test_wrappers_are_named_and_what_would_act_is_found(model: str, wrapper: str, tmp_path: Path):
    first = P + (LOADED if model in ("Qwen2.5-VL", "Gemma 3", "Mistral 3") else TEXT) + Q
    stem = first.replace(P, P + wrapper, 1)
    for loader in ("peft", "vllm"):
        line = of(checked(tmp_path / loader, model, loader, stem), stem)
        assert not line.acts
        assert line.told == "nothing"
        assert "wrapper" in line.why
        assert checked(tmp_path / f"{loader}2", model, loader, line.instead).acts


EACH = {
    "Qwen3-MoE": all_experts(f"{P}{TEXT}0.mlp.experts", "gate_proj", "up_proj", "down_proj"),
    "Mixtral": all_experts(f"{P}{TEXT}0.block_sparse_moe.experts", "w1", "w3", "w2"),
    "DeepSeek-V3": all_experts(f"{P}{TEXT}0.mlp.experts", "gate_proj", "up_proj", "down_proj"),
    "gpt-oss": all_experts(f"{P}{TEXT}0.mlp.experts", "gate_proj", "up_proj", "down_proj"),
}
FUSED = tuple(f"{P}{TEXT}0.mlp.experts{ending}" for ending in ("", ".base_layer"))
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LAYOUTS = {
    ("Qwen3-MoE", "peft"): "each fused",
    ("Mixtral", "peft"): "each fused",
    ("DeepSeek-V3", "peft"): "each fused",
    ("gpt-oss", "peft"): "fused",
    ("gpt-oss", "vllm"): "fused",
    ("gpt-oss", "llama.cpp"): "",
    ("gpt-oss", "sglang"): "each",
    **{
        (model, loader): "each"
        for model in ("Qwen3-MoE", "Mixtral", "DeepSeek-V3")
        for loader in ("vllm", "llama.cpp", "sglang")
    },
}


@pytest.mark.parametrize(("model", "loader"), LAYOUTS)
def test_experts_act_in_the_layouts_of_a_loader(model: str, loader: str, tmp_path: Path):
    fused = tuple(s.replace("mlp", "block_sparse_moe") if loader != "peft" else s for s in FUSED)
    stems = {"each": EACH[model], "fused": fused if model == "Mixtral" else FUSED}
    for layout, own in stems.items():
        report = checked(tmp_path / layout, model, loader, *own, target_parameters=PARAMETERS)
        assert report.acts == (layout in LAYOUTS[model, loader].split()), layout
        assert acting(report) == (set(own) if report.acts else set())
        if not report.acts:
            assert "expert" in of(report, own[0]).why


@pytest.mark.parametrize("model", ["Qwen3-MoE", "Mixtral"])
@pytest.mark.parametrize("loader", ["peft", "llama.cpp"])
def test_experts_that_are_fused_need_all_of_them(model: str, loader: str, tmp_path: Path):
    report = checked(tmp_path, model, loader, *EACH[model][:-1], target_parameters=PARAMETERS)
    assert not report.acts
    assert "no pair for" in of(report, EACH[model][2]).why
    assert (of(report, EACH[model][0]).acts) == (loader == "peft")  # gate and up are all there


def test_half_of_fused_experts_is_refused(tmp_path: Path):
    report = checked(tmp_path, "gpt-oss", "vllm", FUSED[0], target_parameters=PARAMETERS)
    assert not report.loads
    assert "base_layer" in of(report, FUSED[0]).why


@pytest.mark.parametrize(
    ("model", "loader", "stem", "told"),
    [
        ("Phi-3", "vllm", TEXT + "0.self_attn.qkv_proj", ""),
        ("Phi-3", "peft", TEXT + "0.self_attn.qkv_proj", ""),
        ("Phi-3", "vllm", TEXT + Q, "an error"),  # vLLM expects the fused name
        ("Phi-3", "peft", TEXT + Q, "nothing"),
        ("Llama", "vllm", TEXT + "0.self_attn.qkv_proj", "an error"),
        ("Llama", "vllm", TEXT + "7.self_attn.q_proj", "nothing"),  # the model has two layers
        ("DeepSeek-V3", "vllm", TEXT + "0.self_attn.q_b_proj", ""),
        ("DeepSeek-V3", "llama.cpp", TEXT + "0.self_attn.kv_b_proj", "an error"),
        ("Whisper", "peft", "model.encoder.layers.0.self_attn.q_proj", ""),
        ("Whisper", "peft", "model.decoder.layers.1.fc1", ""),
        ("Whisper", "peft", "encoder.layers.0.self_attn.q_proj", "nothing"),
        ("Whisper", "vllm", "model.encoder.layers.0.self_attn.q_proj", "an error"),
        ("Whisper", "llama.cpp", "model.encoder.layers.0.self_attn.q_proj", "an error"),
        ("Whisper", "sglang", "model.decoder.layers.0.self_attn.q_proj", "nothing"),
        ("Flux", "vllm", "transformer_blocks.0.attn.to_q", "an error"),
        ("Llama", "diffusers", TEXT + Q, "an error"),
    ],
)
def test_one_module(model: str, loader: str, stem: str, told: str, tmp_path: Path):
    SIZES["to_q"] = (D, D)
    line = of(checked(tmp_path, model, loader, P + stem), P + stem)
    assert line.acts == (told == "")
    assert line.told == told


def test_a_missing_prefix_with_two_answers_gets_none(tmp_path: Path):
    stem = P + "layers.0.self_attn.q_proj"  # of the encoder, or of the decoder
    assert of(checked(tmp_path, "Whisper", "peft", stem), stem).instead == ""
    stem = P + "encoder." + stem.removeprefix(P)
    line = of(checked(tmp_path / "b", "Whisper", "peft", stem), stem)
    assert line.instead == P + "model.encoder.layers.0.self_attn.q_proj"


def test_towers_are_dropped_in_silence_by_vllm_and_llama_cpp(tmp_path: Path):
    stem = P + "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    model = PUBLISHED["Gemma 3"].write(tmp_path / "model")
    lora = write_adapter(tmp_path / "lora", {stem.replace("vision_model.", ""): (5, 5)})
    for loader in ("vllm", "llama.cpp"):
        line = check(lora, model, loader=loader).keys[0]
        assert (line.acts, line.told) == (False, "nothing")
    assert check(lora, model, loader="peft").acts


def test_targets_decide_in_peft(tmp_path: Path):
    stems = P + TEXT + Q, P + TEXT + UP
    for k, (config, expected) in enumerate(
        [
            ({"target_modules": ["q_proj"]}, {stems[0]}),
            ({"target_modules": r".*\.mlp\.up_proj"}, {stems[1]}),
            ({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}, {stems[1]}),
            ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, {stems[1]}),
        ]
    ):
        report = checked(tmp_path / str(k), "Llama", "peft", *stems, **config)
        assert acting(report) == expected
        assert {line.told for line in report.keys if not line.acts} == {"nothing"}


def test_scales_that_a_loader_does_not_read_are_told(tmp_path: Path):
    stems = P + TEXT + Q, P + TEXT + UP
    ranked = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}}
    rooted = {"use_rslora": True, "lora_alpha": 8}
    for k, (config, wrong) in enumerate(
        [
            (ranked, {"vllm": {stems[0]}, "sglang": {stems[0]}, "llama.cpp": {stems[0]}}),
            (rooted, {"sglang": set(stems), "llama.cpp": set(stems)}),
        ]
    ):
        for loader in ("peft", "vllm", "sglang", "llama.cpp"):
            report = checked(tmp_path / f"{k}{loader}", "Llama", loader, *stems, **config)
            assert set(stems) - acting(report) == wrong.get(loader, set()), (config, loader)


def test_settings_and_sizes_are_refused(tmp_path: Path):
    stem = P + TEXT + Q
    report = checked(tmp_path / "a", "Llama", "vllm", stem, modules_to_save=["lm_head"])
    assert (report.acts, report.loads) == (False, False)
    assert checked(tmp_path / "b", "Llama", "peft", stem, modules_to_save=["lm_head"]).acts
    report = checked(tmp_path / "c", "Llama", "vllm", stem, rank=600)
    assert "at most 512" in report.keys[0].why
    assert checked(tmp_path / "d", "Llama", "vllm", stem, rank=20).max_rank == 32
    model = PUBLISHED["Llama"].write(tmp_path / "model")
    report = check(write_adapter(tmp_path / "e", {stem: (D, D + 1)}), model, loader="peft")
    assert "the weight 8 × 8" in report.keys[0].why


FLUX_NAMES = {
    "diffusers": {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": True,
        "transformer_blocks.0.attn.to_q.lora_A.weight": False,
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight": False,
        "transformer.transformer.transformer_blocks.0.attn.to_q.lora_A.weight": False,
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": True,
        "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": False,
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": False,
    },
    "comfyui": {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": True,
        "transformer_blocks.0.attn.to_q.lora_A.weight": True,
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight": False,
        "transformer.transformer.transformer_blocks.0.attn.to_q.lora_A.weight": False,
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": True,
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": True,
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight": False,
    },
}


@pytest.mark.parametrize(
    ("loader", "key"), [(loader, key) for loader, row in FLUX_NAMES.items() for key in row]
)
def test_flux(loader: str, key: str, tmp_path: Path):
    rows = 3 * D if "qkv" in key else D
    other = key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    arrays = {key: np.ones((2, D), np.float32), other: np.ones((rows, 2), np.float32)}
    lora = tmp_path / "lora"
    if key.startswith(P):
        lora = write_adapter(lora, {key.partition(".lora_")[0]: (D, D)})
    else:
        lora.mkdir()
        lora = lora / "a.safetensors"
        save_file(arrays, lora)
    report = check(lora, PUBLISHED["Flux"].write(tmp_path / "model"), loader=loader)
    assert report.acts == FLUX_NAMES[loader][key]
    assert len(FLUX) == sum(1 for _ in PUBLISHED["Flux"].shapes)


def test_a_class_that_is_in_no_row_is_said(tmp_path: Path):
    lora = write_adapter(tmp_path / "lora", {P + TEXT + Q: (D, D)})
    model = PUBLISHED["Llama"].write(tmp_path / "model")
    assert check(lora, model, loader="vllm").notes == ()
    for kind, loader in (("idefics9", "vllm"), ("emu3", "peft")):
        named = {"model_type": kind, "architectures": ["StrangeForCausalLM"]}
        (model / "config.json").write_text(json.dumps(named))
        report = check(lora, model, loader=loader)
        assert report.acts
        assert kind in report.notes[0]
