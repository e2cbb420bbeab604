"""Models of transformers as their files and as memory name them: nothing has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

from tdecomp.files import checkpoint as ck
from tests.models import GQA, MOE, TEXT, VISION

ROPE = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 1e4}
PATCHES: dict[str, Any] = {"depth": 2, "hidden_size": 12, "num_heads": 3, "patch_size": 4}
EXPERTS = MOE | {"num_local_experts": 3}
HYBRID = EXPERTS | {
    "hybrid_override_pattern": "M*E",
    "num_hidden_layers": 3,
    **{"mamba_num_heads": 2, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1},
    **{"moe_shared_expert_intermediate_size": 8, "n_shared_experts": 1, "n_group": 1},
    **{"topk_group": 1, "n_routed_experts": 3},
}


def llava() -> Any:
    parts = {"vision_config": tf.CLIPVisionConfig(**VISION), "text_config": tf.LlamaConfig(**GQA)}
    return tf.LlavaForConditionalGeneration(tf.LlavaConfig(**parts, image_token_index=3))


def qwen2_vl() -> Any:
    text = GQA | {"rope_parameters": ROPE}
    vision = PATCHES | {"embed_dim": 12, "hidden_size": 16, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision)
    return tf.Qwen2VLForConditionalGeneration(config)


MODELS = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**EXPERTS)),
    "phimoe": lambda: tf.PhimoeForCausalLM(tf.PhimoeConfig(**EXPERTS)),
    "granitemoe": lambda: tf.GraniteMoeForCausalLM(tf.GraniteMoeConfig(**EXPERTS)),
    "nemotron_h": lambda: tf.NemotronHForCausalLM(tf.NemotronHConfig(**HYBRID)),
    "beit": lambda: tf.BeitForImageClassification(tf.BeitConfig(**VISION)),
    "vit_mae": lambda: tf.ViTMAEForPreTraining(
        tf.ViTMAEConfig(
            **VISION,
            decoder_hidden_size=12,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=3,
            decoder_intermediate_size=20,
        )
    ),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**VISION, use_swiglu_ffn=True)),
    "swin": lambda: tf.SwinForImageClassification(
        tf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=6, depths=[1, 1], num_heads=[1, 2], window_size=2
        )
    ),
    "segformer": lambda: tf.SegformerForSemanticSegmentation(
        tf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[6, 12],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=6,
        )
    ),
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_not_changed_by_being_stored(name, tmp_path):
    """In either direction: every tensor is paired, and with itself."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
    model.save_pretrained(tmp_path / "stored")
    (tmp_path / "held").mkdir()
    state: dict[str, torch.Tensor] = {}
    seen = set()
    for key, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights once
            state[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    save_file(state, tmp_path / "held" / "model.safetensors")
    models = [ck.open_checkpoint(tmp_path / folder) for folder in ("stored", "held")]
    assert name == "bert" or set(models[0].names) != set(models[1].names)
    for base, tuned in (models, models[::-1]):
        found = ck.pair(base, tuned)
        assert found.only_base == found.only_tuned == found.reshaped == ()
        assert set(found.common) == set(base.floats)
        assert all(found.energy(tensor) == 0 for tensor in found.common)
