"""Every row of the families table, on a tiny model that transformers builds and saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdecomp.stack import FAMILIES, Stack, Survey, find_sites, group_sites
from tests.models import CASES, Case, read_config, save_model

# What a model keeps beside its sites, besides norms and biases.
KEPT = {
    "llama": {"lm_head", "model.embed_tokens"},
    "bert": {
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
        "bert.embeddings.word_embeddings",
        "bert.pooler.dense",
        "classifier",
    },
    "gpt2": {"transformer.wpe", "transformer.wte"},
    "phi3": {"lm_head", "model.embed_tokens"},
    "t5": {
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "shared",
    },
    "whisper": {
        "model.decoder.embed_positions",
        "model.decoder.embed_tokens",
        "model.encoder.embed_positions",
    },
    "mixtral": {
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(2)),
    },
}


@dataclass(frozen=True)
class Loaded:
    case: Case
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    survey: Survey


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(request.param, tmp_path_factory.mktemp("model"))


def load(name: str, folder: Path) -> Loaded:
    arrays = save_model(name, folder)
    config = read_config(folder)
    return Loaded(
        CASES[name], config, arrays, find_sites({k: v.shape for k, v in arrays.items()}, config)
    )


def test_family_and_groups(loaded: Loaded):
    groups = group_sites(loaded.survey.sites)
    found = {
        g.name: " ".join(f"{m}={n}" for m, n in zip(g.modes, g.shape, strict=True)) for g in groups
    }
    assert loaded.survey.family == loaded.case.family
    assert loaded.survey.notes == ()
    assert found == loaded.case.groups
    assert {g.grid for g in groups} == {"full"}


def test_every_tensor_is_a_site_or_uncovered(loaded: Loaded):
    sites = {site.tensor for site in loaded.survey.sites}
    uncovered = [name for name, _ in loaded.survey.uncovered]
    assert sites.isdisjoint(uncovered)
    assert sites | set(uncovered) == set(loaded.arrays)
    assert len(set(uncovered)) == len(uncovered)
    assert all(reason for _, reason in loaded.survey.uncovered)


def test_sites_tile_the_stored_tensors(loaded: Loaded):
    rebuilt = {s.tensor: np.full_like(loaded.arrays[s.tensor], np.nan) for s in loaded.survey.sites}
    for site in loaded.survey.sites:
        view = site.take(rebuilt[site.tensor])
        assert view.shape == site.shape
        assert np.isnan(view).all(), f"{site.path} overlaps another site"
        view[:] = site.take(loaded.arrays[site.tensor])
    for name, array in rebuilt.items():
        np.testing.assert_array_equal(array, loaded.arrays[name])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_head])
def test_head_stack_is_one_group(name: str, tmp_path: Path):
    sites = load(name, tmp_path).survey.sites
    share = [mode for mode in ("layer", "attn") if mode in dict(sites[0].labels)]
    heads = [g for g in group_sites(sites, share=[*share, "head"]) if "hd" in g.modes]
    assert [g.shape for g in heads] == [CASES[name].by_head]
    assert heads[0].modes == (*share, "head", "hd", "in")
    assert heads[0].grid == "full"


def test_paths_are_unique(loaded: Loaded):
    paths = [site.path for site in loaded.survey.sites]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", KEPT)
def test_exactly_these_matrices_are_uncovered(name: str, tmp_path: Path):
    loaded = load(name, tmp_path)
    left = {tensor for tensor, reason in loaded.survey.uncovered if reason != "not a matrix"}
    assert left == {f"{module}.weight" for module in KEPT[name]}


def test_every_family_has_a_case():
    assert {case.family for case in CASES.values()} == {family.name for family in FAMILIES}


def test_labels_come_in_table_order(tmp_path: Path):
    groups = {g.name: g for g in group_sites(load("whisper", tmp_path).survey.sites)}
    assert groups["attn_in.16x16"].labels == (
        (0, 1),
        ("q_proj", "k_proj", "v_proj"),
        ("encoder", "decoder", "cross"),
    )


def test_conv1d_is_split_and_turned(tmp_path: Path):
    gpt2 = load("gpt2", tmp_path)
    stack = next(s for s in Stack.from_arrays(gpt2.arrays, config=gpt2.config))
    fused = gpt2.arrays["transformer.h.1.attn.c_attn.weight"]  # (in, 3 out)
    np.testing.assert_array_equal(stack.dense()[1, 2], fused[:, 32:].T)


def test_grouped_query_parts_of_a_fused_weight(tmp_path: Path):
    phi3 = load("phi3", tmp_path)
    fused = phi3.arrays["model.layers.0.self_attn.qkv_proj.weight"]  # 4 q, 2 k, 2 v heads of 4
    sites = {
        s.part: s for s in phi3.survey.sites if s.tensor.endswith("0.self_attn.qkv_proj.weight")
    }
    np.testing.assert_array_equal(sites["q"].take(fused), fused[:16])
    np.testing.assert_array_equal(sites["k"].take(fused), fused[16:24])
    np.testing.assert_array_equal(sites["v"].take(fused), fused[24:])
    assert {part: site.heads for part, site in sites.items()} == {"q": 4, "k": 2, "v": 2}


def test_fused_experts_are_split(tmp_path: Path):
    moe = load("mixtral in memory", tmp_path)
    site = next(s for s in moe.survey.sites if s.path.endswith("1.mlp.experts.gate_up_proj.2.up"))
    stored = moe.arrays["model.layers.1.mlp.experts.gate_up_proj"]  # (expert, 2 out, in)
    np.testing.assert_array_equal(site.take(stored), stored[2, 24:])


def test_heads_of_grouped_query_attention(tmp_path: Path):
    llama = load("llama", tmp_path)
    (stack,) = (
        s
        for s in Stack.from_arrays(llama.arrays, config=llama.config, share=["layer", "head"])
        if "head" in s.modes
    )
    blocks = [llama.arrays[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"]
    np.testing.assert_array_equal(stack.dense()[1].reshape(-1, 16), np.concatenate(blocks))
    assert stack.labels[1][3:6] == ("q_proj.3", "k_proj.0", "k_proj.1")


def test_other_names_of_a_known_type_are_noted():
    shapes = {f"layers.{i}.attention.wq.weight": (4, 4) for i in range(2)}
    survey = find_sites(shapes, {"model_type": "llama"})
    assert survey.family == "generic"
    assert "llama" in survey.notes[0]


def test_unknown_type_goes_by_its_names():
    shapes = {"model.layers.0.self_attn.q_proj.weight": (4, 4)}
    survey = find_sites(shapes, {"model_type": "brand_new"})
    assert survey.family == "llama"
    assert "brand_new" in survey.notes[0]


def test_linear_with_conv1d_names_is_not_turned():
    shapes = {"h.0.attn.c_attn.weight": (12, 4), "h.0.mlp.c_fc.weight": (16, 4)}
    survey = find_sites(shapes, {})
    assert survey.family == "generic"
    assert not any(site.transpose for site in survey.sites)


def test_experts_stored_the_other_way_round_are_refused():
    shapes = {
        "layers.0.mlp.experts.gate_up_proj": (3, 16, 48),
        "layers.0.mlp.up_proj.weight": (24, 16),
    }
    survey = find_sites(shapes, {"model_type": "mixtral", "hidden_size": 16})
    assert [site.module for site in survey.sites] == ["layers.0.mlp.up_proj"]
    assert "other way round" in dict(survey.uncovered)["layers.0.mlp.experts.gate_up_proj"]


@pytest.mark.parametrize(
    ("config", "rows", "why"),
    [({}, 32, "num_attention_heads"), ({"num_attention_heads": 4}, 33, "divisible")],
)
def test_fused_weight_that_cannot_be_split_stays_whole(config: dict[str, int], rows: int, why: str):
    shapes = {f"layers.{i}.self_attn.qkv_proj.weight": (rows, 16) for i in range(3)}
    survey = find_sites(shapes, {"model_type": "phi3"} | config)
    assert [site.shape for site in survey.sites] == [(rows, 16)] * 3
    assert len(survey.notes) == 1
    assert why in survey.notes[0]
    assert "and 2 more" in survey.notes[0]


def test_heads_of_another_size_are_not_claimed():
    shapes = {"layers.0.self_attn.q_proj.weight": (64, 16)}  # gated: twice the rows
    config = {"model_type": "qwen3", "num_attention_heads": 4, "head_dim": 8}
    assert find_sites(shapes, config).sites[0].heads == 0
