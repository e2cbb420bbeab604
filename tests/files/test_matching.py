"""Names of one model for names of another: right, or not at all."""

from __future__ import annotations

import pytest

from tdecomp.files.matching import match_names
from tdecomp.stack.names import WRAPPERS
from tests.tables import each

SIZES = {
    "embed_tokens.weight": (11, 6),
    "norm.weight": (6,),
    **{
        f"layers.{i}.{name}.weight": shape
        for i in range(3)
        for name, shape in {
            "self_attn.q_proj": (6, 6),
            "self_attn.k_proj": (4, 6),
            "mlp.up_proj": (9, 6),
            "mlp.down_proj": (6, 9),
            "input_layernorm": (6,),
        }.items()
    },
}
HEAD = {"lm_head.weight": (11, 6)}
TOWER = {
    "patch_embed.weight": (6, 12),
    **{
        f"layers.{i}.{name}.weight": shape
        for i in range(3)
        for name, shape in {
            "self_attn.q_proj": (6, 6),
            "self_attn.k_proj": (6, 6),
            "self_attn.out_proj": (6, 6),
            "mlp.fc1": (9, 6),
        }.items()
    },
}
PROJECTOR = {"linear_1.weight": (6, 6), "linear_2.weight": (6, 6)}


def under(prefix, names):
    return {prefix + name: shape for name, shape in names.items()}


def both_ways(one, other, expected):
    assert match_names(one, other).pairs == expected
    back = {b: a for a, b in expected.items()}
    assert match_names(other, one).pairs == {name: back[name] for name in other if name in back}


MODEL = under("model.", SIZES) | HEAD


def wrapped(name, wrapper, at):
    words = name.split(".")
    return ".".join([*words[:at], wrapper.segments.replace("*", "default"), *words[at:]])


@each("inner", [None, *WRAPPERS])
@pytest.mark.parametrize("outer", WRAPPERS, ids=lambda w: w.segments)
def test_wrappers_alone_and_nested_on_either_side(outer, inner):
    """The outer one wraps the model, the inner one its attention only."""

    def name(plain):
        if inner is not None and inner.anywhere and "attn" in plain:
            plain = wrapped(plain, inner, plain.split(".").index("self_attn"))
        return wrapped(plain, outer, 0)

    names = {plain: name(plain) for plain in MODEL}
    both_ways(MODEL, {names[plain]: shape for plain, shape in MODEL.items()}, names)


VISION_LANGUAGE = {  # prefix of the text model, head, vision tower, projector; stored, in memory
    "llava": (
        ("language_model.model.", "language_model.", "vision_tower.vision_model.", "m_p."),
        ("model.language_model.", "", "model.vision_tower.", "model.m_p."),
    ),
    "earlier llava": (
        ("language_model.model.", "language_model.", "vision_tower.vision_model.", "m_p."),
        (
            "model.language_model.",
            "",
            "model.vision_tower.vision_model.",
            "model.m_p.",
        ),
    ),
    "qwen2-vl": (
        ("model.", "", "visual.", "visual.merger."),
        ("model.language_model.", "", "model.visual.", "model.visual.merger."),
    ),
    "of transformers 5.10": (
        ("model.language_model.model.", "", "model.vision_tower.", "model.m_p."),
        ("model.language_model.", "", "model.vision_tower.", "model.m_p."),
    ),
    "omni": (
        ("thinker.model.", "thinker.", "thinker.visual.", "thinker.audio_tower."),
        ("model.language_model.", "", "model.visual.", "model.audio_tower."),
    ),
    "in a compiled PEFT model": (
        ("model.", "", "visual.", "visual.merger."),
        (
            "_orig_mod.base_model.model.model.language_model.",
            "_orig_mod.base_model.model.",
            "_orig_mod.base_model.model.model.visual.",
            "_orig_mod.base_model.model.model.visual.merger.",
        ),
    ),
}


def composite(prefixes):
    text, head, vision, projector = prefixes
    words = "multi_modal_projector"
    return [
        *under(text, SIZES),
        *under(head, HEAD),
        *under(vision, TOWER),
        *under(projector.replace("m_p", words), PROJECTOR),
    ]


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_stored_and_in_memory_names_of_vision_language_models(kind):
    shapes = [*SIZES.values(), *HEAD.values(), *TOWER.values(), *PROJECTOR.values()]
    one, other = map(composite, VISION_LANGUAGE[kind])
    both_ways(
        dict(zip(one, shapes, strict=True)),
        dict(zip(other, shapes, strict=True)),
        dict(zip(one, other, strict=True)),
    )


def test_a_bare_tower_is_the_one_whose_tensors_it_has():
    """Both towers of the whole have layers of the same names; attention even of the same shapes."""
    whole = under("language_model.model.", SIZES) | under("vision_tower.", TOWER)
    both_ways(whole, TOWER, {f"vision_tower.{name}": name for name in TOWER})
    both_ways(whole, SIZES, {f"language_model.model.{name}": name for name in SIZES})


UNDECIDED = {
    "two copies": (SIZES, under("student.", SIZES) | under("teacher.", SIZES)),
    "two alike towers": (TOWER, under("left.", TOWER) | under("right.", TOWER)),
    "a part that both towers have": (
        {f"layers.{i}.self_attn.q_proj.weight": (6, 6) for i in range(3)},
        under("text_model.", SIZES) | under("vision_model.", TOWER),
    ),
}


@pytest.mark.parametrize("kind", UNDECIDED)
def test_what_two_could_claim_is_paired_with_none_and_said(kind):
    one, other = UNDECIDED[kind]
    both_ways(one, other, {})
    doubts = match_names(one, other).doubts
    assert set(one) <= set(doubts)
    assert all("equally good" in why for why in doubts.values())


UNRELATED = {
    "encoder and decoder": (under("encoder.", TOWER), under("decoder.", TOWER)),
    "one norm of another tower": (
        {"norm.weight": (6,), "bias": (2,)},
        under("vision.", TOWER | {"norm.weight": (6,)}),
    ),
    "layers of other numbers": (
        {f"layers.{i}.w": (3, 2) for i in range(3)},
        {f"layers.{i}.w": (3, 2) for i in range(3, 6)},
    ),
}


@pytest.mark.parametrize("kind", UNRELATED)
def test_what_only_looks_alike_is_not_paired(kind):
    both_ways(*UNRELATED[kind], {})


def test_a_copy_beside_the_model_is_left_alone():
    both_ways(MODEL, MODEL | under("ema.", MODEL), {name: name for name in MODEL})
    names = {name: f"model.{name}" for name in SIZES}
    both_ways(SIZES, under("model.", SIZES) | under("ema.", SIZES), names)


def test_a_partial_checkpoint_finds_its_place():
    few = {name: shape for name, shape in SIZES.items() if "q_proj" in name}
    expected = {f"model.language_model.{n}": f"model.{n}" for n in few}
    both_ways(under("model.language_model.", SIZES), under("model.", few), expected)


def test_the_trained_copy_of_a_head_is_taken():
    plain = SIZES | {"score.weight": (2, 6)}
    peft = under("base_model.model.", SIZES) | {
        "base_model.model.score.original_module.weight": (2, 6),
        "base_model.model.score.modules_to_save.default.weight": (2, 6),
    }
    found = match_names(plain, peft).pairs
    assert found["score.weight"] == "base_model.model.score.modules_to_save.default.weight"
    assert len(found) == len(plain)
