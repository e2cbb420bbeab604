"""Selecting sites: PEFT's own matching is the oracle; patterns, the generic rule, errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import Site, find_sites, parse_layers, parse_targets

LLAMA = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(3)
    for name, shape in {
        "self_attn.q_proj": (8, 6),
        "self_attn.k_proj": (4, 6),
        "self_attn.v_proj": (4, 6),
        "self_attn.o_proj": (6, 8),
        "mlp.gate_proj": (10, 6),
        "mlp.up_proj": (10, 6),
        "mlp.down_proj": (6, 10),
        "input_layernorm": (6,),
    }.items()
} | {"model.embed_tokens.weight": (20, 6), "lm_head.weight": (20, 6), "pooler.dense.weight": (6, 6)}
CONFIG = {"model_type": "llama", "hidden_size": 6, "num_attention_heads": 4, "head_dim": 2}
GPT2 = {
    f"h.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {"attn.c_attn": (4, 12), "attn.c_proj": (4, 4)}.items()
}


def modules(shapes=LLAMA, config=CONFIG, **selection) -> set[str]:
    return {site.module for site in find_sites(shapes, config, **selection).sites}


def reasons(**selection) -> dict[str, str]:
    return dict(find_sites(LLAMA, CONFIG, **selection).uncovered)


# --- as PEFT does -------------------------------------------------------------------------------

segment = st.sampled_from(["model", "layers", "0", "1", "12", "attn", "q", "k_proj", "my_q", "q-k"])
name = st.lists(segment, min_size=1, max_size=5).map(".".join)
regex = st.sampled_from([r".*\.q", r".*(q|k_proj)", r"model\.layers\.\d\..*", "q", r".*attn.*"])
wanted = st.one_of(st.lists(name, min_size=1, max_size=3), regex)


def by_peft(key: str, targets, exclude) -> bool:
    config = LoraConfig(target_modules=targets, exclude_modules=exclude)
    return bool(check_target_module_exists(config, key))


@given(st.sets(name, min_size=1, max_size=8), wanted, st.none() | wanted)
def test_targets_and_exclude_mean_what_they_mean_to_peft(names, targets, exclude):
    expected = {n for n in names if by_peft(n, targets, exclude)}
    shapes = {f"{n}.weight": (3, 2) for n in names}
    try:
        found = modules(shapes, {}, targets=targets, exclude=exclude)
    except SiteError:
        found = set()
    assert found == expected


@given(st.sets(name, min_size=1, max_size=8), st.sets(st.sampled_from([0, 1, 12]), min_size=1))
def test_layers_mean_what_they_mean_to_peft(names, layers):
    # PEFT wants a segment before the word in front of the number, and one after it.
    shapes = {f"top.stack.{n}.end.weight": (3, 2) for n in names}
    config = LoraConfig(target_modules=["end"], layers_to_transform=sorted(layers))
    keys = [s.removesuffix(".weight") for s in shapes]
    expected = {key for key in keys if check_target_module_exists(config, key)}
    try:
        found = modules(shapes, {}, targets=["end"], layers=layers)
    except SiteError:
        found = set()
    assert found == expected


def test_suffix_is_a_dotted_one():
    assert modules(targets=["v_proj"]) == {f"model.layers.{i}.self_attn.v_proj" for i in range(3)}
    with pytest.raises(SiteError):
        modules(targets=["proj"])


def test_reasons_for_the_rest():
    left = reasons(targets=["q_proj", "v_proj"], exclude=r".*\.2\..*q_proj", layers=[1, 2])
    assert left["model.layers.0.self_attn.q_proj.weight"] == "layer not selected"
    assert left["model.layers.2.self_attn.q_proj.weight"] == "excluded"
    assert left["model.layers.1.self_attn.o_proj.weight"] == "not targeted"
    assert left["model.layers.1.input_layernorm.weight"] == "not a matrix"
    assert left["model.embed_tokens.weight"] == "embedding"
    assert reasons()["lm_head.weight"] == "output head"
    assert reasons()["pooler.dense.weight"] == "not matched by any pattern"


def test_all_linear_takes_every_matrix_but_embeddings_and_heads():
    matrices = {n.removesuffix(".weight") for n, shape in LLAMA.items() if len(shape) == 2}
    assert modules(targets="all-linear") == matrices - {"lm_head", "model.embed_tokens"}
    assert modules(targets="All-Linear", layers=[1]) == modules(layers=[1])


def test_named_head_is_a_site_but_an_embedding_never_is():
    assert modules(targets=["lm_head"]) == {"lm_head"}
    with pytest.raises(SiteError, match=r"embed_tokens is not a site \(embedding\)"):
        modules(targets=["embed_tokens"])


def test_parts_of_fused_weights_are_chosen_by_their_own_name():
    survey = find_sites(GPT2, {"model_type": "gpt2"}, targets=["c_attn.q", "c_attn.v"])
    assert {site.part for site in survey.sites} == {"q", "v"}
    assert survey.notes == ("h.0.attn.c_attn.weight and 1 more: chosen without its parts k.",)
    whole = find_sites(GPT2, {"model_type": "gpt2"}, targets=["c_attn"], exclude=r".*c_attn\.k")
    assert whole.sites == survey.sites


def test_target_that_chose_nothing_is_told():
    (note,) = find_sites(LLAMA, CONFIG, targets=["q_proj", "k_prj"]).notes
    assert "'k_prj' chose nothing" in note
    assert "'k_proj'" in note


# --- the generic rule and patterns --------------------------------------------------------------


def test_generic_rule():
    shapes = {
        "rwkv.blocks.0.att.key.weight": (4, 4),
        "rwkv.blocks.0.experts.3.up.weight": (4, 4),
        "rwkv.blocks.1.weight": (4, 4),
        "rwkv.emb.weight": (9, 4),
        "head.weight": (9, 4),
        "rwkv.blocks.0.att.time_mix": (1, 4),
    }
    survey = find_sites(shapes, {})
    assert survey.family == "generic"
    assert {(s.module, s.labels, s.role) for s in survey.sites} == {
        ("rwkv.blocks.0.att.key", (("layer", 0), ("proj", "key")), "att"),
        ("rwkv.blocks.0.experts.3.up", (("layer", 0), ("proj", "up"), ("expert", 3)), "experts"),
        ("rwkv.blocks.1", (("layer", 1),), "weight"),
    }
    assert {name for name, _ in survey.uncovered} == set(shapes) - {s.tensor for s in survey.sites}


def test_user_patterns_replace_the_family():
    pattern = "layers.{layer}.{block:mlp|self_attn}.{proj:up_proj|q_proj}.weight"
    survey = find_sites(LLAMA, CONFIG, patterns=[pattern], layers=range(1, 3))
    assert survey.family == "pattern"
    assert survey.sites[0].labels == (("layer", 1), ("block", "mlp"), ("proj", "up_proj"))
    assert [s.module.rsplit(".", 1)[1] for s in survey.sites] == ["up_proj", "q_proj"] * 2
    assert all(site.prefix == "model" for site in survey.sites)


def test_star_is_one_segment_and_keeps_groups_apart():
    survey = find_sites(LLAMA, CONFIG, patterns=["layers.{layer}.*.{proj:q_proj|up_proj}"])
    assert {site.prefix for site in survey.sites} == {"model.mlp", "model.self_attn"}


def test_pattern_without_modes():
    (site,) = find_sites(LLAMA, CONFIG, patterns=["lm_head"]).sites
    assert site.labels == ()


def test_numbers_are_digits():
    shapes = {"h.0.w.weight": (2, 2), "h.x.w.weight": (2, 2)}
    assert modules(shapes, {}, patterns=["h.{layer}.w"]) == {"h.0.w"}
    assert modules(shapes, {}, patterns=["h.{place}.w"]) == {"h.0.w", "h.x.w"}


@pytest.mark.parametrize(
    "pattern",
    ["a.{layer", "a.layer}", "a.{{layer}}", "a.{}", "a.{out}", "a.{in}", "a.{x}.{x}", "a.{x:}", ""]
    + ["a.{x:p|}", "a.{1}", "a.{x:p:q}"],
)
def test_bad_patterns_are_shown(pattern: str):
    with pytest.raises(SiteError, match="pattern") as error:
        find_sites(LLAMA, CONFIG, patterns=[pattern])
    assert pattern in str(error.value)
    assert "\n" not in str(error.value)


# --- nothing found ------------------------------------------------------------------------------


def test_nothing_found_says_what_there_is():
    with pytest.raises(SiteError) as error:
        find_sites(LLAMA, CONFIG, targets=["q_porj"])
    text = str(error.value)
    assert "targets=['q_porj']" in text
    assert f"{len(LLAMA)} tensors" in text
    assert sum(name.removesuffix(".weight") in text for name in LLAMA) >= 3
    assert "did you mean targets='q_proj'?" in text


@pytest.mark.parametrize(
    "selection",
    [
        {"targets": r".*\.self_atn\.q_proj"},
        {"targets": []},
        {"layers": [7]},
        {"exclude": ".*"},
        {"patterns": ["blocks.{layer}.w"]},
    ],
)
def test_nothing_found_is_an_error(selection):
    with pytest.raises(SiteError, match="no site matches"):
        find_sites(LLAMA, CONFIG, **selection)


def test_empty_checkpoint():
    with pytest.raises(SiteError, match="no tensors"):
        find_sites({}, {})


# --- command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all-linear", "all-linear"),
        ("All-Linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("q_proj, self_attn.v-1", ["q_proj", "self_attn.v-1"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_parse_targets(text: str, targets):
    assert parse_targets(text) == targets


@pytest.mark.parametrize("text", ["", " , ", "(q", "*"])
def test_bad_targets(text: str):
    with pytest.raises(ArgumentError):
        parse_targets(text)


def test_bad_regex_in_python():
    with pytest.raises(ArgumentError, match="regex"):
        find_sites(LLAMA, CONFIG, targets="(q")


def test_parse_layers():
    assert parse_layers("0-3, 8,2") == (0, 1, 2, 3, 8)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1,,2"])
def test_bad_layers(text: str):
    with pytest.raises(ArgumentError, match="layers"):
        parse_layers(text)


def test_sites_survive_json():
    sites = find_sites(GPT2, {"model_type": "gpt2", "n_head": 2, "n_embd": 4}).sites
    sites += find_sites({"layers.0.mlp.experts.gate_up_proj": (2, 6, 4)}, {}).sites
    for site in sites:
        assert Site.from_json(json.loads(json.dumps(site.to_json()))) == site
        assert hash(Site.from_json(site.to_json())) == hash(site)
