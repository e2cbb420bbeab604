"""Configurations that say nonsense: read as if they said nothing, never a crash."""

from __future__ import annotations

import copy
from itertools import product

import pytest

from tdecomp.stack import find_sites, group_sites

GOOD = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "text_config": {"model_type": "llama", "num_attention_heads": 4},
    "vision_config": {"num_attention_heads": 2, "hidden_size": 4},
    "quantization_config": {"weight_block_size": [128, 128]},
}
NONSENSE = (
    *(None, True, False, 0, -1, 1.5, -0.0, float("nan"), float("inf"), 10**30, 10**4000, 3),
    *("", "4", "llama", "\x1b[2J", "\ud800", [], [4], ["llama"], {}, {"model_type": ["x"]}, [[]]),
)
SHAPES = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "self_attn.qkv_proj": (16, 8),
        "mlp.experts.gate_up_proj": (2, 6, 8),
        "attn.c_attn": (8, 24),
    }.items()
} | {"vision_tower.layers.0.self_attn.q_proj.weight": (4, 4)}


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2", "mixtral"])
def test_any_value_of_any_key(key, kind):
    for value in NONSENSE:
        config = {**copy.deepcopy(GOOD), "model_type": kind} | {key: value}
        survey = find_sites(SHAPES, config, targets="all-linear")
        assert len(survey.sites) >= 5
        assert all(isinstance(site.heads, int) and site.heads >= 0 for site in survey.sites)
        assert sum(len(g.sites) for g in group_sites(survey.sites)) == len(survey.sites)


def test_any_two_values_of_heads():
    keys = ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    for (first, second), (one, other) in product(
        product(keys, keys), product(NONSENSE[:12], NONSENSE[:12])
    ):
        config = {k: v for k, v in GOOD.items() if k != "text_config"} | {first: one, second: other}
        sites = find_sites({k: v for k, v in SHAPES.items() if "k_proj" in k}, config).sites
        assert {site.heads for site in sites} <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("missing", ["num_attention_heads", "hidden_size", "head_dim"])
def test_what_is_missing_is_unknown(missing):
    config = {k: v for k, v in GOOD.items() if k not in (missing, "text_config")}
    sites = find_sites(SHAPES, config, targets=["k_proj"]).sites
    assert {site.heads for site in sites} == {2}  # 4 rows are two heads of 2 whatever else is known


def test_a_model_type_that_is_no_name_is_none():
    for value in (["llama"], {"a": 1}, 3, None, True):
        assert find_sites(SHAPES, {"model_type": value}).notes == find_sites(SHAPES, {}).notes
