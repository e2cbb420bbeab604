"""Names of FLUX.1 in diffusers and in the original release, which ComfyUI and kohya use."""

from __future__ import annotations

import re

__all__ = ["diffusers_names", "original_name"]

_DOUBLE, _SINGLE = "transformer_blocks.*.", "single_transformer_blocks.*."
_ROWS: tuple[tuple[str, str], ...] = (
    *((f"{_DOUBLE}attn.to_{x}", "double_blocks.*.img_attn.qkv") for x in "qkv"),
    *((f"{_DOUBLE}attn.add_{x}_proj", "double_blocks.*.txt_attn.qkv") for x in "qkv"),
    (f"{_DOUBLE}attn.to_out.0", "double_blocks.*.img_attn.proj"),
    (f"{_DOUBLE}attn.to_add_out", "double_blocks.*.txt_attn.proj"),
    (f"{_DOUBLE}norm1.linear", "double_blocks.*.img_mod.lin"),
    (f"{_DOUBLE}norm1_context.linear", "double_blocks.*.txt_mod.lin"),
    (f"{_DOUBLE}ff.net.0.proj", "double_blocks.*.img_mlp.0"),
    (f"{_DOUBLE}ff.net.2", "double_blocks.*.img_mlp.2"),
    (f"{_DOUBLE}ff_context.net.0.proj", "double_blocks.*.txt_mlp.0"),
    (f"{_DOUBLE}ff_context.net.2", "double_blocks.*.txt_mlp.2"),
    *((f"{_SINGLE}attn.to_{x}", "single_blocks.*.linear1") for x in "qkv"),
    (f"{_SINGLE}proj_mlp", "single_blocks.*.linear1"),
    (f"{_SINGLE}proj_out", "single_blocks.*.linear2"),
    (f"{_SINGLE}norm.linear", "single_blocks.*.modulation.lin"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("proj_out", "final_layer.linear"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
)
"""Module of diffusers and the one of the release that holds it, the block's number a star."""

_NUMBER = re.compile(r"(?<=blocks\.)\d+(?=\.)")
_ORIGINAL = dict(_ROWS)


def original_name(module: str) -> str | None:
    """The module of the original release that holds one of diffusers; None where none does.

    >>> original_name("transformer_blocks.3.attn.to_k")
    'double_blocks.3.img_attn.qkv'
    """
    found = _NUMBER.search(module)
    name = _ORIGINAL.get(_NUMBER.sub("*", module, count=1))
    return None if name is None else name.replace("*", found[0] if found else "*")


def diffusers_names(module: str) -> tuple[str, ...]:
    """The modules of diffusers that one of the original release holds, one after another.

    >>> diffusers_names("single_blocks.0.linear2")
    ('single_transformer_blocks.0.proj_out',)
    """
    found = _NUMBER.search(module)
    star = _NUMBER.sub("*", module, count=1)
    names = (name for name, original in _ROWS if original == star)
    return tuple(name.replace("*", found[0] if found else "*") for name in names)
