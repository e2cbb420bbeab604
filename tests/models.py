"""Tiny random models of every family, built from their transformers configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file

TEXT: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA: dict[str, Any] = TEXT | {"num_key_value_heads": 2}
VISION: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
}
WHISPER: dict[str, Any] = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 4,
    "max_source_positions": 8,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5: dict[str, Any] = {
    "vocab_size": 32,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
}
GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GPT2: dict[str, Any] = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
MOE: dict[str, Any] = GQA | {"num_experts": 3, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
DISTIL: dict[str, Any] = {
    "vocab_size": 32,
    "dim": 16,
    "hidden_dim": 24,
    "n_layers": 2,
    "n_heads": 4,
}


@dataclass(frozen=True)
class Case:
    """A model, the family expected, and its groups: name -> modes and sizes."""

    make: Callable[[], Any]
    family: str
    groups: dict[str, str]  # "layer=2 proj=3 out=16 in=16"
    in_memory: bool = False
    by_head: tuple[int, ...] = ()  # shape of the head stack


LLAMA = {
    "attn_in.16x16": "layer=2 proj=1 out=16 in=16",
    "attn_in.8x16": "layer=2 proj=2 out=8 in=16",
    "attn_out.16x16": "layer=2 proj=1 out=16 in=16",
    "mlp_in.24x16": "layer=2 proj=2 out=24 in=16",
    "mlp_out.16x24": "layer=2 proj=1 out=16 in=24",
}
PLAIN = {
    "attn_in.16x16": "layer=2 proj=3 out=16 in=16",
    "attn_out.16x16": "layer=2 proj=1 out=16 in=16",
    "mlp_in.24x16": "layer=2 proj=1 out=24 in=16",
    "mlp_out.16x24": "layer=2 proj=1 out=16 in=24",
}
VIT = {
    "attn_in.12x12": "layer=3 proj=3 out=12 in=12",
    "attn_out.12x12": "layer=3 proj=1 out=12 in=12",
    "mlp_in.20x12": "layer=3 proj=1 out=20 in=12",
    "mlp_out.12x20": "layer=3 proj=1 out=12 in=20",
}
ATTENTION = {name: LLAMA[name] for name in ("attn_in.16x16", "attn_in.8x16", "attn_out.16x16")}
MIXTRAL = ATTENTION | {
    "expert_in.24x16": "layer=2 proj=2 expert=3 out=24 in=16",
    "expert_out.16x24": "layer=2 proj=1 expert=3 out=16 in=24",
}
QWEN_MOE = ATTENTION | {
    "expert_in.8x16": "layer=2 proj=2 expert=3 out=8 in=16",
    "expert_out.16x8": "layer=2 proj=1 expert=3 out=16 in=8",
    "shared_in.12x16": "layer=2 proj=2 out=12 in=16",
    "shared_out.16x12": "layer=2 proj=1 out=16 in=12",
}


def t5_groups(proj: int) -> dict[str, str]:
    return {
        "attn_in.32x16": "layer=2 proj=3 attn=3 out=32 in=16",
        "attn_out.16x32": "layer=2 proj=1 attn=3 out=16 in=32",
        "mlp_in.24x16": f"layer=2 proj={proj} stack=2 out=24 in=16",
        "mlp_out.16x24": "layer=2 proj=1 stack=2 out=16 in=24",
    }


def gemma3() -> Any:
    config = tf.Gemma3Config(
        text_config=GQA | {"head_dim": 4},
        vision_config=VISION,
        mm_tokens_per_image=4,
    )
    return tf.Gemma3ForConditionalGeneration(config)


CASES = {
    "llama": Case(
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GQA)), "llama", LLAMA, by_head=(2, 8, 4, 16)
    ),
    "qwen3": Case(
        lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GQA, head_dim=4)),
        "llama",
        LLAMA,
        by_head=(2, 8, 4, 16),
    ),
    "gemma3": Case(
        gemma3,
        "llama",
        {f"language_model.model.{name}": sizes for name, sizes in LLAMA.items()}
        | {f"vision_tower.encoder.{name}": sizes for name, sizes in VIT.items()},
    ),
    "bert": Case(
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT)),
        "bert",
        PLAIN,
        by_head=(2, 12, 4, 16),
    ),
    "roberta": Case(lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**TEXT)), "bert", PLAIN),
    "distilbert": Case(
        lambda: tf.DistilBertModel(tf.DistilBertConfig(**DISTIL)),
        "distilbert",
        PLAIN,
        by_head=(2, 12, 4, 16),
    ),
    "vit": Case(
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)),
        "vit",
        VIT,
        by_head=(3, 9, 4, 12),
    ),
    "vit in memory": Case(
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)),
        "vit",
        VIT,
        in_memory=True,
        by_head=(3, 9, 4, 12),
    ),
    "gpt2": Case(
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)),
        "gpt2",
        {
            "attn_in.16x16": "layer=2 proj=3 out=16 in=16",
            "attn_out.16x16": "layer=2 proj=1 out=16 in=16",
            "mlp_in.64x16": "layer=2 proj=1 out=64 in=16",
            "mlp_out.16x64": "layer=2 proj=1 out=16 in=64",
        },
        by_head=(2, 12, 4, 16),
    ),
    "phi3": Case(
        lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GQA)), "phi3", LLAMA, by_head=(2, 8, 4, 16)
    ),
    "t5": Case(lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)), "t5", t5_groups(1)),
    "t5 gated": Case(
        lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5, **GATED)),
        "t5",
        t5_groups(2),
        by_head=(2, 3, 12, 8, 16),
    ),
    "whisper": Case(
        lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(**WHISPER)),
        "bart",
        {
            "attn_in.16x16": "layer=2 proj=3 attn=3 out=16 in=16",
            "attn_out.16x16": "layer=2 proj=1 attn=3 out=16 in=16",
            "mlp_in.24x16": "layer=2 proj=1 stack=2 out=24 in=16",
            "mlp_out.16x24": "layer=2 proj=1 stack=2 out=16 in=24",
        },
        by_head=(2, 3, 12, 4, 16),
    ),
    "mixtral": Case(
        lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**GQA, num_local_experts=3)), "moe", MIXTRAL
    ),
    "mixtral in memory": Case(
        lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**GQA, num_local_experts=3)),
        "moe",
        MIXTRAL,
        in_memory=True,
    ),
    "qwen2_moe": Case(
        lambda: tf.Qwen2MoeForCausalLM(
            tf.Qwen2MoeConfig(**MOE, shared_expert_intermediate_size=12)
        ),
        "moe",
        QWEN_MOE,
    ),
    "opt": Case(
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(
                vocab_size=32,
                hidden_size=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=8,
                word_embed_proj_dim=16,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        "bart",
        {
            "attn_in.16x16": "layer=2 proj=3 attn=1 out=16 in=16",
            "attn_out.16x16": "layer=2 proj=1 attn=1 out=16 in=16",
            "mlp_in.24x16": "layer=2 proj=1 stack=1 out=24 in=16",
            "mlp_out.16x24": "layer=2 proj=1 stack=1 out=16 in=24",
        },
        by_head=(2, 1, 12, 4, 16),
    ),
    "llama4": Case(
        lambda: tf.Llama4ForCausalLM(
            tf.Llama4TextConfig(
                **GQA,
                head_dim=4,
                num_local_experts=3,
                num_experts_per_tok=1,
                intermediate_size_mlp=24,
                moe_layers=[0, 1],
            )
        ),
        "llama4",
        MIXTRAL
        | {
            "shared_in.24x16": "layer=2 proj=2 out=24 in=16",
            "shared_out.16x24": "layer=2 proj=1 out=16 in=24",
        },
        in_memory=True,
    ),
    "qwen2_moe in memory": Case(
        lambda: tf.Qwen2MoeForCausalLM(
            tf.Qwen2MoeConfig(**MOE, shared_expert_intermediate_size=12)
        ),
        "moe",
        QWEN_MOE,
        in_memory=True,
    ),
    "gpt_oss": Case(
        lambda: tf.GptOssForCausalLM(
            tf.GptOssConfig(**GQA, head_dim=4, num_local_experts=3, num_experts_per_tok=2)
        ),
        "gpt_oss",
        ATTENTION
        | {
            "expert_in.48x16": "layer=2 proj=1 expert=3 out=48 in=16",
            "expert_out.16x24": "layer=2 proj=1 expert=3 out=16 in=24",
        },
        in_memory=True,
    ),
}


def save_model(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Save a model of the table as a folder; returns its tensors by checkpoint name."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.make()
    model.save_pretrained(folder)
    if case.in_memory:  # names as transformers 5 holds them, instead of those it writes
        arrays = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
        save_arrays(arrays, folder)
    return load_file(folder / "model.safetensors")


def save_arrays(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Write `arrays` as the weights of a model folder."""
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json."""
    return json.loads((folder / "config.json").read_text())
