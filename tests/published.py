"""Names of published checkpoints, two layers of each, in sizes of a few numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]

D, KV, F, V, E, X = 8, 4, 12, 16, 3, 6
"""Widths: hidden, keys, MLP, vocabulary, experts, of an expert."""

ATTENTION: Shapes = {
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (KV, D),
    "self_attn.v_proj": (KV, D),
    "self_attn.o_proj": (D, D),
}
MLP: Shapes = {"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
LATENT: Shapes = {
    "self_attn.q_a_proj": (6, D),
    "self_attn.q_b_proj": (D, 6),
    "self_attn.kv_a_proj_with_mqa": (5, D),
    "self_attn.kv_b_proj": (14, 4),
    "self_attn.o_proj": (D, D),
}


def single(container: str, gate: str, down: str, up: str) -> Shapes:
    """Experts one by one."""
    each = {gate: (X, D), down: (D, X), up: (X, D)}
    return {f"{container}.{k}.{leaf}": s for k in range(E) for leaf, s in each.items()}


def layers(prefix: str, *blocks: Shapes) -> Shapes:
    """Weights of two layers, and their norms."""
    one = {f"{name}.weight": shape for block in blocks for name, shape in block.items()}
    one["input_layernorm.weight"] = (D,)
    return {f"{prefix}.{i}.{name}": shape for i in range(2) for name, shape in one.items()}


TEXT: Shapes = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D)}
OSS: Shapes = {
    f"model.layers.{i}.mlp.experts.{name}": shape
    for i in range(2)
    for name, shape in {
        "gate_up_proj": (E, D, 2 * X),
        "gate_up_proj_bias": (E, 2 * X),
        "down_proj": (E, X, D),
        "down_proj_bias": (E, D),
    }.items()
}
SPEECH: Shapes = {
    f"{block}.{name}": (D, D)
    for block in ("self_attn", "encoder_attn")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj")
} | {"fc1": (F, D), "fc2": (D, F)}
FLUX: Shapes = {
    "x_embedder.weight": (D, KV),
    **{
        f"transformer_blocks.{i}.{name}.weight": shape
        for i in range(2)
        for name, shape in {
            "attn.to_q": (D, D),
            "attn.to_k": (D, D),
            "attn.to_v": (D, D),
            "attn.add_q_proj": (D, D),
            "attn.to_out.0": (D, D),
            "attn.to_add_out": (D, D),
            "ff.net.0.proj": (F, D),
            "ff.net.2": (D, F),
            "norm1.linear": (6 * D, D),
        }.items()
    },
    **{
        f"single_transformer_blocks.{i}.{name}.weight": shape
        for i in range(2)
        for name, shape in {
            "attn.to_q": (D, D),
            "proj_mlp": (F, D),
            "proj_out": (D, D + F),
        }.items()
    },
}


def _vision(prefix: str) -> Shapes:
    return {f"{prefix}.0.self_attn.{p}_proj.weight": (5, 5) for p in "qkv"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """An architecture, as its checkpoints are published."""

    kind: str
    cls: str
    shapes: Mapping[str, tuple[int, ...]]
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    has_type: bool = True

    def write(self, folder: Path) -> Path:
        """A model folder, unless it is there; its weights are zeros."""
        if (folder / "config.json").exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.zeros(shape, np.float16) for name, shape in self.shapes.items()}
        save_file(arrays, folder / "model.safetensors")
        named = {"model_type": self.kind, "architectures": [self.cls]}
        config = (named if self.has_type else {"_class_name": self.cls}) | dict(self.more)
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def _text(kind: str, cls: str, *blocks: Shapes, **more: Any) -> Published:
    return Published(kind=kind, cls=cls, shapes=TEXT | layers("model.layers", *blocks), more=more)


PUBLISHED: dict[str, Published] = {
    "Llama": _text("llama", "LlamaForCausalLM", ATTENTION, MLP),
    "Qwen2": _text("qwen2", "Qwen2ForCausalLM", ATTENTION, MLP),
    "Qwen3": _text("qwen3", "Qwen3ForCausalLM", ATTENTION, MLP),
    "Qwen2.5-VL": Published(
        kind="qwen2_5_vl",
        cls="Qwen2_5_VLForConditionalGeneration",
        shapes=TEXT
        | layers("model.layers", ATTENTION, MLP)
        | {"visual.blocks.0.attn.qkv.weight": (15, 5), "visual.merger.mlp.0.weight": (5, 5)},
    ),
    "Qwen3-MoE": _text(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ATTENTION,
        single("mlp.experts", "gate_proj", "down_proj", "up_proj"),
        {"mlp.gate": (E, D)},
        num_experts=E,
    ),
    "Mixtral": _text(
        "mixtral",
        "MixtralForCausalLM",
        ATTENTION,
        single("block_sparse_moe.experts", "w1", "w2", "w3"),
        {"block_sparse_moe.gate": (E, D)},
        num_local_experts=E,
    ),
    "gpt-oss": Published(
        kind="gpt_oss",
        cls="GptOssForCausalLM",
        shapes=TEXT | layers("model.layers", ATTENTION, {"mlp.router": (E, D)}) | OSS,
        more={"num_local_experts": E},
    ),
    "Gemma 3": Published(
        kind="gemma3",
        cls="Gemma3ForConditionalGeneration",
        shapes={"language_model.model.embed_tokens.weight": (V, D)}
        | layers("language_model.model.layers", ATTENTION, MLP)
        | _vision("vision_tower.vision_model.encoder.layers"),
    ),
    "Mistral 3": Published(
        kind="mistral3",
        cls="Mistral3ForConditionalGeneration",
        shapes={
            "language_model.model.embed_tokens.weight": (V, D),
            "language_model.lm_head.weight": (V, D),
        }
        | layers("language_model.model.layers", ATTENTION, MLP)
        | {
            "vision_tower.transformer.layers.0.attention.q_proj.weight": (5, 5),
            "multi_modal_projector.linear_1.weight": (D, 5),
        },
    ),
    "Phi-3": _text(
        "phi3",
        "Phi3ForCausalLM",
        {
            "self_attn.qkv_proj": (D + 2 * KV, D),
            "self_attn.o_proj": (D, D),
            "mlp.gate_up_proj": (2 * F, D),
            "mlp.down_proj": (D, F),
        },
    ),
    "DeepSeek-V3": _text(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        LATENT,
        single("mlp.experts", "gate_proj", "down_proj", "up_proj"),
        {"mlp.shared_experts.up_proj": (X, D), "mlp.gate": (E, D)},
        n_routed_experts=E,
    ),
    "Whisper": Published(
        kind="whisper",
        cls="WhisperForConditionalGeneration",
        shapes={"model.decoder.embed_tokens.weight": (V, D)}
        | layers("model.encoder.layers", {n: s for n, s in SPEECH.items() if "enc" not in n})
        | layers("model.decoder.layers", SPEECH),
    ),
    "Flux": Published(kind="", cls="FluxTransformer2DModel", shapes=FLUX, has_type=False),
}
"""Architectures by the name that people use."""


def write_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[int, int]],
    *,
    rank: int = 2,
    experts: int = E,
    **config: Any,
) -> Path:
    """A PEFT folder with a pair of ones for every stem, of these sizes (out, in)."""
    folder.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    for stem, (out, in_) in pairs.items():
        wide = rank * experts if stem.endswith((".experts", ".base_layer")) else rank
        arrays[f"{stem}.lora_A.weight"] = np.ones((wide, in_), np.float32)
        arrays[f"{stem}.lora_B.weight"] = np.ones((out, wide), np.float32)
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    usual = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    return folder
