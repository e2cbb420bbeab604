"""Modules are named as the installed transformers loads them, whatever their checkpoint says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as tf
from peft.utils import transformers_weight_conversion as peft_conversion
from safetensors import safe_open
from transformers import conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tdecomp.files.loaded_names import (
    BASE_PREFIXES,
    RENAMED_ELSEWHERE,
    ROWS,
    loaded_names,
    warnings_about,
)
from tdecomp.files.peft_config import FUSED_EXPERTS
from tdecomp.stack import find_sites
from tests.architectures import build, some_slow
from tests.models import CASES

SAVED = (
    *("LlavaForConditionalGeneration", "LlavaModel", "PaliGemmaForConditionalGeneration"),
    *("Qwen2VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
    *("Idefics3ForConditionalGeneration", "Dinov2ForImageClassification", "DINOv3ViTModel"),
    *("SwinModel", "SegformerModel", "CLIPModel", "CLIPVisionModel", "NemotronHForCausalLM"),
    *("Gemma3nForCausalLM", "MixtralForCausalLM", "PhimoeForCausalLM", "LlamaForCausalLM"),
    *("gemma3", "vit", "bert", "whisper"),
)
QUICK = (
    *("LlavaForConditionalGeneration", "LlavaModel", "Qwen2VLForConditionalGeneration", "vit"),
    *("Dinov2ForImageClassification", "SwinModel", "CLIPVisionModel", "MixtralForCausalLM"),
)
HARMLESS = {
    *("esm", "yolos", "videomae", "exaone_moe", "ernie4_5_moe", "legacy"),
    *("granitemoe", "granitemoehybrid", "granitemoeshared"),
}
"""Renamed by transformers, but nothing that can be a module of a LoRA."""


@pytest.mark.parametrize("name", some_slow(SAVED, QUICK))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_every_site_has_the_name_of_its_module_in_memory(name: str, tmp_path: Path):
    model = CASES[name].make() if name in CASES else build(name, "cpu")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    sites = {s.module for s in find_sites(shapes, config).sites if ".experts." not in s.module}
    in_memory = {path for path, _ in model.named_modules()}
    assert set(loaded_names(sites, config).values()) <= in_memory
    assert loaded_names(in_memory, config) == {path: path for path in in_memory}


def test_the_segment_before_the_layers_is_that_of_transformers():
    for kind, base in BASE_PREFIXES.items():
        named = MODEL_MAPPING_NAMES[kind]
        cls = getattr(tf, named if isinstance(named, str) else named[0])
        assert cls.base_model_prefix == base, kind


@pytest.mark.parametrize("base", ["", "transformer."])
@pytest.mark.parametrize(
    ("cls", "loaded"), [("GPT2LMHeadModel", "transformer."), ("GPT2Model", ""), ("", None)]
)
def test_layers_are_looked_for_where_the_class_has_them(cls: str, loaded: str | None, base: str):
    config = {"model_type": "gpt2", "architectures": [cls]} if cls else {"model_type": "gpt2"}
    names = loaded_names([f"{base}h.0.attn.c_attn", "lm_head"], config)
    first = base if loaded is None else loaded
    assert list(names.values()) == [f"{first}h.0.attn.c_attn", "lm_head"]


def renamed_types() -> set[str]:
    """Model types of which the installed transformers renames something on loading."""
    found = set()
    for key, steps in conversion_mapping._build_checkpoint_conversion_mapping().items():
        if all(type(step).__name__ == "WeightConverter" for step in steps):
            continue
        cls = getattr(tf, key, None)
        found.add(cls.config_class.model_type if hasattr(cls, "config_class") else key)
    return {kind for kind in found if kind.islower()}


def test_every_type_that_transformers_renames_is_known_here():
    rows = {kind for row in ROWS for kind in row.model_types}
    assert not rows & RENAMED_ELSEWHERE
    assert renamed_types() - rows - HARMLESS == RENAMED_ELSEWHERE


def test_types_whose_experts_peft_takes_by_name_are_known_here():
    bases = peft_conversion._MOE_TARGET_MODULE_MAPPING
    taken = {t for t, base in peft_conversion._MODEL_TO_CONVERSION_PATTERN.items() if base in bases}
    assert {kind for kind in taken if kind.islower()} <= FUSED_EXPERTS


@pytest.mark.parametrize(
    ("model", "module", "told"),
    [
        ({"model_type": "llama"}, "model.layers.0.q", ""),
        ({"model_type": "qwen2_vl"}, "visual.blocks.0.q", "model.visual.blocks.0.q for visual."),
        ({"model_type": "rt_detr"}, "encoder.layers.0.q", "'rt_detr' models under other names"),
        ({}, "layers.0.q", "does not say of which type"),
    ],
)
def test_what_is_renamed_or_unknown_is_told(model: dict[str, str], module: str, told: str):
    (said,) = warnings_about(loaded_names([module], model), model) or [""]
    assert told in said
    assert bool(told) == bool(said)
