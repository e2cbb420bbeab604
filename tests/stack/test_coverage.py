"""By default every projection of every architecture is a site; the rest is told with a reason."""

from __future__ import annotations

import math
import re

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from tdecomp.stack import find_sites
from tests.architectures import ARCHITECTURES, build, some_slow

QUICK = (
    *("Lfm2ForCausalLM", "GraniteMoeHybridForCausalLM", "JambaForCausalLM", "FalconH1ForCausalLM"),
    *("Starcoder2ForCausalLM", "DeepseekV3ForCausalLM", "Llama4ForCausalLM", "RwkvForCausalLM"),
    *("MambaForCausalLM", "BloomForCausalLM", "Glm4ForCausalLM", "DebertaV2Model", "SamModel"),
    *("Wav2Vec2Model", "SwitchTransformersModel", "SwinModel", "Qwen2VLForConditionalGeneration"),
)
LEFT = {
    "router or gate": r".*\b\w*(router|gate)\b.*",
    "embedding": r".*(_embed|relative_attention_bias|_embeddings?)",
}
"""Why a projection may be left out -> what its name must then be."""


@pytest.mark.parametrize("name", some_slow(ARCHITECTURES, QUICK))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_every_numbered_projection_is_a_site_by_default(name: str):
    model = build(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    survey = find_sites(shapes, model.config.to_dict())
    sites, left = {site.tensor for site in survey.sites}, dict(survey.uncovered)
    assert sites | set(left) == set(shapes)
    assert all(left.values())
    projections = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.\d+(\.|$)", path)
    }
    for tensor in projections - sites:
        assert re.fullmatch(LEFT[left[tensor]], tensor.removesuffix(".weight")), tensor
    numbers = lambda names: sum(math.prod(shapes[tensor]) for tensor in names)
    assert numbers(projections & sites) > 0.8 * numbers(projections)
    fused = {
        key
        for key, shape in shapes.items()
        if len(shape) == 3 and ".experts." in key
        if key.endswith("_proj")
    }
    assert fused <= sites


@pytest.mark.parametrize("name", ["rwkv.blocks.0.attention.gate", "layers.0.mlp.gate"])
def test_a_gate_of_the_shape_of_a_projection_is_one(name: str):
    beside = {"layers.0.mlp.up.weight": (8, 6)}
    as_wide = find_sites({f"{name}.weight": (8, 6)} | beside, {})
    as_router = find_sites({f"{name}.weight": (3, 6)} | beside, {})
    assert len(as_wide.sites) == 2
    assert dict(as_router.uncovered) == {f"{name}.weight": "router or gate"}
    assert len(find_sites({f"{name}.weight": (3, 6)}, {}, targets=["gate"]).sites) == 1


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("decoder.lm_heads.3.weight", "output head"),
        ("classifier.0.weight", "output head"),
        ("decoder.embed_tokens.2.weight", "embedding"),
        ("layers.0.attn.relative_attention_bias.weight", "embedding"),
        ("layers.0.mixer.A_log", "not the weight of a module"),
        ("layers.0.mlp.router.classifier.weight", "router or gate"),
    ],
)
def test_tables_heads_and_states_are_no_default_sites(tensor: str, reason: str):
    survey = find_sites({tensor: (4, 8), "layers.0.mlp.up.weight": (8, 6)}, {})
    assert dict(survey.uncovered) == {tensor: reason}


def test_sites_that_the_family_has_no_name_for_are_told():
    shapes = {f"model.layers.{i}.self_attn.q_proj.weight": (8, 6) for i in range(2)}
    shapes |= {f"model.layers.{i}.ssm.in_proj.weight": (9, 6) for i in range(2)}
    survey = find_sites(shapes, {"model_type": "llama"})
    assert len(survey.sites) == 4
    assert survey.notes == (
        "Found by the generic rule, as 'llama' models have no such names: 2 weights,"
        " model.layers.*.ssm.in_proj.",
    )
    assert not find_sites(shapes, {"model_type": "llama"}, targets=["q_proj"]).notes


@pytest.mark.parametrize(
    "tensor",
    ["layers.0.self_attn.in_proj_weight", "transformer.blocks.0.ffn.experts.mlp.w1"],
)
def test_matrices_that_are_bare_parameters_are_sites(tensor: str):
    shapes = {tensor: (24, 8), "layers.0.ssm.A_log": (24, 8)}
    survey = find_sites(shapes, {"model_type": "dbrx"})
    assert [(site.tensor, site.shape) for site in survey.sites] == [(tensor, (24, 8))]


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.model.layers.{}.self_attn.q_proj",
        "base_model.model.model.layers.{}.self_attn.q_proj.base_layer",
        "model.layers.{}._checkpoint_wrapped_module.self_attn._fsdp_wrapped_module.q_proj",
    ],
)
def test_wrappers_do_not_hide_a_family(wrapped: str):
    config = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 8}
    shapes = {f"{wrapped.format(i)}.weight": (8, 8) for i in range(2)}
    adapter = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    survey = find_sites(shapes | {adapter: (2, 8)}, config)
    assert [(s.tensor, s.role, s.heads) for s in survey.sites] == [
        (name, "attn_in", 4) for name in shapes
    ]
    assert dict(survey.uncovered) == {adapter: "part of another adapter"}
    assert survey.notes == ()


def test_heads_are_known_where_names_and_sizes_tell_them():
    shapes = {
        "h.0.attn.attention.q_proj.weight": (16, 16),
        "h.0.attn.attention.k_proj.weight": (8, 16),
        "h.0.mlp.key.weight": (16, 16),
        "h.0.attn.out_proj.weight": (16, 16),
    }
    config = {"n_embd": 16, "num_heads": 4, "num_kv_heads": 2}
    heads = {site.module: site.heads for site in find_sites(shapes, config).sites}
    assert [heads[name.removesuffix(".weight")] for name in shapes] == [4, 2, 0, 0]
