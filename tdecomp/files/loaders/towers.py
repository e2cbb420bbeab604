"""Which modules of a model belong to a tower beside the language model."""

from __future__ import annotations

import re

__all__ = ["is_of_tower"]

_TOWER = re.compile(
    r"(?:.+\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|vision_encoder)"
    r"(?:\..+)?"
)


def is_of_tower(name: str) -> bool:
    """Whether a module reads images or sound, or joins them to the text.

    >>> is_of_tower("model.visual.blocks.0.attn.qkv"), is_of_tower("model.layers.0.mlp.up_proj")
    (True, False)
    """
    return _TOWER.fullmatch(name) is not None
