"""Names that libraries give to one weight: rows that turn each of them into one key.

A key is for comparing two checkpoints only. Facts of the rows: the conversions between stored and
in-memory names in transformers 5 (``conversion_mapping.py``), and the layouts of earlier releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

from tdecomp.stack.names import canonical, canonical_names

__all__ = ["LEVELS", "tower_key", "weight_key"]

# Segments that say nothing about which weight it is.
_NEUTRAL = frozenset({"model", "transformer", "backbone", "thinker", "auto_model", "timm_model"})

# Segments that name a tower of a model with several, by what the tower reads.
_TOWERS = {
    **dict.fromkeys(("language_model", "text_model", "llm"), "text"),
    **dict.fromkeys(("vision_tower", "vision_model", "visual", "vision_encoder"), "vision"),
    **dict.fromkeys(("audio_tower", "audio_model", "audio_encoder"), "audio"),
    **dict.fromkeys(("multi_modal_projector", "mlp_AR"), "projector"),
}

_ROWS: tuple[tuple[str, str], ...] = (
    (r"^text\.lm_head\.", "lm_head."),
    # mixtures of experts
    (r"\bblock_sparse_moe\.input_linear\.weight$", "mlp.experts.gate_up_proj"),
    (r"\bblock_sparse_moe\.output_linear\.weight$", "mlp.experts.down_proj"),
    (r"\bblock_sparse_moe\.router\.layer\.", "mlp.router."),
    (r"\bblock_sparse_moe\.", "mlp."),
    (r"\bmlp\.gate\.weight$", "mlp.router.weight"),
    (r"\bmlp\.gate\.moe_statics\.", "mlp.moe_statics."),
    (r"\b(experts\.\d+)\.w1\.", r"\1.gate_proj."),
    (r"\b(experts\.\d+)\.w2\.", r"\1.down_proj."),
    (r"\b(experts\.\d+)\.w3\.", r"\1.up_proj."),
    # ViT, DeiT, BEiT, AST, Swin, DINOv2, VideoMAE, YOLOS
    (r"\bdecoder_encoder\.layer\.", "decoder_layers."),
    (r"\bencoder\.layer\.", "layers."),
    (r"\battention\.(?:attention\.|self\.)?query\.", "attention.q_proj."),
    (r"\battention\.(?:attention\.|self\.)?key\.", "attention.k_proj."),
    (r"\battention\.(?:attention\.|self\.)?value\.", "attention.v_proj."),
    (
        r"\battention\.(?:self|relative_position_bias)\.(relative_position_bias_table)$",
        r"attention.\1",
    ),
    (r"\battention\.output\.dense\.", "attention.o_proj."),
    (r"\bintermediate\.dense\.", "mlp.fc1."),
    (r"\boutput\.dense\.", "mlp.fc2."),
    (r"\bmlp\.weights_out\.", "mlp.down_proj."),
    (r"\battention\.(?:attention\.)?([qv])_bias$", r"attention.\1_proj.bias"),
    (r"\bencoder\.interpolation\.", "encoder."),
    # DETR
    (r"\b(self_attn|encoder_attn)\.out_proj\.", r"\1.o_proj."),
    (r"\b(layers\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
    # Segformer
    (r"\bencoder\.block\.(\d+)\.(?!layer\.)", r"stages.\1.blocks."),
    (r"\bencoder\.(patch_embeddings|layer_norm)\.(\d+)\.", r"stages.\2.\1."),
    (r"\battention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"\battention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"\bmlp\.dense([12])\.", r"mlp.fc\1."),
    (r"\blayer_norm_1\.", "layernorm_before."),
    (r"\blayer_norm_2\.", "layernorm_after."),
    (r"\bdecode_head\.linear_c\.", "decode_head.linear_projections."),
    # heads, normalisation
    (r"^embed_out\.", "lm_head."),
    (r"\bLayerNorm\.gamma$", "LayerNorm.weight"),
    (r"\bLayerNorm\.beta$", "LayerNorm.bias"),
    (r"\bparametrizations\.weight\.original0$", "weight_g"),
    (r"\bparametrizations\.weight\.original1$", "weight_v"),
)
_LONGEST = 500  # letters of a name that some library gives
_READ = tuple((re.compile(pattern), new) for pattern, new in _ROWS)


def tower_key(name: str) -> str:
    """Key without wrappers and neutral segments, and with towers by what they read.

    >>> tower_key("language_model.model.layers.0.mlp.up_proj.weight")
    'text.layers.0.mlp.up_proj.weight'
    >>> tower_key("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight")
    'vision.encoder.layers.0.mlp.fc1.weight'
    """
    kept: list[str] = []
    for segment in canonical(name).split("."):
        word = _TOWERS.get(segment, segment)
        again = word != segment and word in kept  # vision_tower.vision_model
        if segment not in _NEUTRAL and not again:
            kept.append(word)
    return ".".join(kept)


def weight_key(name: str) -> str:
    """`tower_key` after the rows of renamings.

    >>> weight_key("model.layers.0.block_sparse_moe.experts.2.w1.weight")
    'layers.0.mlp.experts.2.gate_proj.weight'
    """
    key = tower_key(name)
    if len(key) > _LONGEST:
        return key
    for pattern, new in _READ:
        key = pattern.sub(new, key)
    return key


def _each(key: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    return {name: key(name) for name in names}


LEVELS: tuple[Callable[[Iterable[str]], dict[str, str]], ...] = (
    lambda names: {name: name for name in names},
    canonical_names,
    partial(_each, tower_key),
    partial(_each, weight_key),
)
"""Keys of a model's tensors, by and by coarser; names that are alike on one level pair there."""
