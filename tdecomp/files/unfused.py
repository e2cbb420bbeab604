"""Fused experts one by one: as a LoRA names them, and as PEFT fuses them again on loading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tdecomp.files.peft_config import FUSED_EXPERTS
from tdecomp.stack import Group, Site

__all__ = ["unfused"]

_FUSED = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")
_LEAVES = {
    ("gate_up_proj", "gate"): "gate_proj",
    ("gate_up_proj", "up"): "up_proj",
    ("down_proj", ""): "down_proj",
}
_SHORT = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_SHORT_TYPES = frozenset(
    {"mixtral", "phimoe", "minimax", "minimax_m2", "minimax_m3_vl", "lfm2_moe"}
)


def unfused(
    groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], model: Mapping[str, Any]
) -> tuple[list[Group], dict[str, tuple[int, ...]]]:
    """Groups whose sites in fused experts are matrices of their own, and their stored shapes.

    ``layers.0.mlp.experts.gate_up_proj`` becomes ``layers.0.mlp.experts.3.gate_proj.weight`` and so
    on; the numbers of a group stay as they are. Models whose experts PEFT does not fuse, and
    experts stored (in, out), stay as they are, too.

    Parameters
    ----------
    groups
        Of sites.
    shapes
        Stored shape of every tensor that holds sites.
    model
        As `peft_config.facts` keeps it.
    """
    if model.get("model_type") not in FUSED_EXPERTS:
        return list(groups), dict(shapes)
    short = model["model_type"] in _SHORT_TYPES
    apart = [replace(g, sites=tuple(_alone(s, short) for s in g.sites)) for g in groups]
    sites = [site for group in apart for site in group.sites]
    return apart, {s.tensor: shapes.get(s.tensor, s.shape) for s in sites}


def _alone(site: Site, short: bool) -> Site:
    """A site of a fused tensor as a matrix of its own; any other as it is."""
    found = _FUSED.fullmatch(site.module)
    leaf = _LEAVES.get((found[2], site.part)) if found else None
    if found is None or leaf is None or site.transpose or not isinstance(site.index[0], int):
        return site
    name = f"{found[1]}.{site.index[0]}.{_SHORT[leaf] if short else leaf}.weight"
    return replace(site, tensor=name, index=(), part="")
