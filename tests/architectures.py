"""Many architectures of transformers as tiny models without memory, for laws about names."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

Sizes = dict[str, Any]

TEXT: Sizes = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = TEXT | {"num_key_value_heads": 2}
HEADS = GQA | {"head_dim": 8}
SSM: Sizes = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
EXPERTS: Sizes = GQA | {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
LATENT: Sizes = TEXT | {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
AUDIO: Sizes = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": [16],
    "conv_kernel": [3],
    "conv_stride": [2],
    "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
VISION: Sizes = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
}
SEQUENCE: Sizes = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
T5: Sizes = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
}
GPT: Sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
STATE: Sizes = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
WINDOWS: Sizes = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 2,
}
MROPE: Sizes = GQA | {
    "rope_parameters": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
}

_CAUSAL: dict[str, Sizes] = {
    "Llama": HEADS,
    "Starcoder2": GQA,
    "Phi": GQA,
    "Phi3": GQA,
    "StableLm": GQA,
    "Glm": HEADS,
    "Glm4": HEADS,
    "Persimmon": GQA,
    "Nemotron": HEADS,
    "DiffLlama": HEADS,
    "Cohere2": HEADS,
    "Bamba": HEADS | SSM,
    "Lfm2": GQA | {"layer_types": ["conv", "full_attention"]},
    "Lfm2Moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "GraniteMoe": EXPERTS,
    "GraniteMoeHybrid": EXPERTS
    | SSM
    | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention"]},
    "Jamba": EXPERTS
    | {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_state": 4,
    },
    "FalconH1": GQA | SSM | {"mamba_d_ssm": 64},
    "DeepseekV2": LATENT,
    "DeepseekV3": LATENT,
    "Mixtral": EXPERTS,
    "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 12},
    "Qwen3Next": EXPERTS
    | {
        "head_dim": 8,
        "shared_expert_intermediate_size": 12,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "JetMoe": EXPERTS | {"kv_channels": 8, "num_key_value_heads": 4},
    "GptOss": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Mamba": STATE,
    "Mamba2": STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "FalconMamba": STATE,
    "Zamba2": HEADS
    | {
        "mamba_d_state": 4,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "NemotronH": HEADS
    | {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "layers_block_type": ["mamba", "attention"],
        "n_groups": 1,
    },
    "RecurrentGemma": HEADS | {"lru_width": 32},
    "Rwkv": {
        "vocab_size": 64,
        "hidden_size": 32,
        "attention_hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    },
    "Falcon": TEXT | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2},
    "GPTNeoX": TEXT,
    "GPTJ": GPT | {"rotary_dim": 4},
    "GPTBigCode": GPT,
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
_MODELS: dict[str, Sizes] = {
    "DebertaV2": TEXT | {"max_position_embeddings": 64},
    "Deberta": TEXT | {"max_position_embeddings": 64},
    "MPNet": TEXT | {"max_position_embeddings": 64},
    "MobileBert": TEXT | {"max_position_embeddings": 64},
    "Longformer": TEXT | {"max_position_embeddings": 64},
    "ModernBert": TEXT | {"max_position_embeddings": 64},
    "Albert": TEXT | {"embedding_size": 16},
    "Wav2Vec2": AUDIO,
    "Hubert": AUDIO,
    "WavLM": AUDIO,
    "Wav2Vec2Conformer": AUDIO,
    "Funnel": {
        "vocab_size": 64,
        "d_model": 32,
        "block_sizes": [1, 1],
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
    },
    "LongT5": T5 | {"encoder_attention_type": "transient-global"},
    "SwitchTransformers": T5
    | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "LED": SEQUENCE,
    "Dinov2": VISION,
    "DINOv3ViT": VISION,
    "Swin": WINDOWS,
    "Segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "mlp_ratios": [2, 2],
    },
    "ConvNext": {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2},
    "Sam": {
        "vision_config": VISION | {"output_channels": 16, "mlp_dim": 48, "image_size": 16},
        "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 24, "num_attention_heads": 2},
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 16, "patch_size": 4},
    },
    "CLIP": {"text_config": TEXT, "vision_config": VISION},
}
_GENERATION: dict[str, Sizes] = {
    "Qwen2VL": {
        "text_config": MROPE,
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 2,
            "mlp_ratio": 2,
        },
    },
    "Qwen3VL": {
        "text_config": HEADS,
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 2,
            "deepstack_visual_indexes": [0],
        },
    },
    "Llava": {
        "text_config": GQA | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
        "image_token_index": 39,
    },
    "PaliGemma": {
        "text_config": HEADS | {"model_type": "gemma"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "projection_dim": 32,
    },
    "Idefics3": {
        "text_config": GQA | {"model_type": "llama"},
        "vision_config": VISION,
        "scale_factor": 2,
    },
}
_NAMED: dict[str, tuple[str, Sizes]] = {
    "Dinov2ForImageClassification": ("Dinov2", VISION),
    "CLIPVisionModel": ("CLIPVision", VISION),
    "LlavaModel": (
        "Llava",
        {
            "text_config": GQA | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
        },
    ),
    "Qwen3MoeForCausalLM": ("Qwen3Moe", EXPERTS | {"head_dim": 8, "mlp_only_layers": [0]}),
    "PhimoeForCausalLM": ("Phimoe", EXPERTS),
    "Llama4ForCausalLM": (
        "Llama4Text",
        HEADS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "moe_layers": [1],
        },
    ),
    "Gemma3nForCausalLM": (
        "Gemma3nText",
        HEADS
        | {
            "intermediate_size": [48, 48],
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "layer_types": ["full_attention"] * 2,
            "activation_sparsity_pattern": [0.0, 0.0],
            "altup_num_inputs": 2,
        },
    ),
}

ARCHITECTURES: dict[str, tuple[str, Sizes]] = (
    {f"{name}ForCausalLM": (name, sizes) for name, sizes in _CAUSAL.items()}
    | {f"{name}Model": (name, sizes) for name, sizes in _MODELS.items()}
    | {f"{name}ForConditionalGeneration": (name, sizes) for name, sizes in _GENERATION.items()}
    | _NAMED
)
"""Class -> name of its configuration, and sizes."""


def some_slow(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Parameters of a test, of which all but the quick ones are slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


def build(name: str, device: str = "meta") -> nn.Module:
    """A model of the table; on ``meta`` it takes no memory."""
    config, sizes = ARCHITECTURES[name]
    with torch.device(device):
        return getattr(tf, name)(getattr(tf, f"{config}Config")(**sizes))
