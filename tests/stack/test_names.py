"""Names without what wrappers write into them."""

from __future__ import annotations

import itertools

import pytest

from tdecomp.stack.names import WRAPPERS, canonical, canonical_names, is_adapter
from tests.tables import each

WEIGHT = "model.layers.3.self_attn.q_proj.weight"


def wrapped(name: str, segments: str, at: int) -> str:
    words = name.split(".")
    return ".".join([*words[:at], segments.replace("*", "default"), *words[at:]])


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda w: w.segments)
def test_a_wrapper_leaves_no_trace_wherever_it_stands(wrapper):
    places = range(len(WEIGHT.split("."))) if wrapper.anywhere else (0,)
    for at in places:
        assert canonical(wrapped(WEIGHT, wrapper.segments, at)) == WEIGHT


@each(("outer", "inner"), list(itertools.permutations(WRAPPERS, 2)))
def test_wrappers_nest_in_any_order(outer, inner):
    for at in (0, 3) if outer.anywhere or inner.anywhere else (0,):
        nested = f"{outer.segments}.{inner.segments}"
        assert canonical(wrapped(WEIGHT, nested, at)) == WEIGHT


@pytest.mark.parametrize(
    "name",
    [
        WEIGHT,
        "encoder.module.weight",  # a module that is called so
        "base_model.encoder.weight",
        "model.base_model.weight",
        "modules_to_save",
        "layers.0.base_layernorm.weight",
        "",
    ],
)
def test_names_of_models_stay(name):
    assert canonical(name) == name


def test_a_name_that_two_tensors_would_have_is_given_to_none():
    names = ["a.weight", "_orig_mod.a.weight", "module.b.weight"]
    assert canonical_names(names) == {
        names[0]: names[0],
        names[1]: names[1],
        names[2]: "b.weight",
    }


def test_the_trained_copy_of_a_module_has_its_name():
    names = [f"score.{kind}.weight" for kind in ("original_module", "modules_to_save.default")]
    assert list(canonical_names(names).values()) == ["score.original_module.weight", "score.weight"]
    assert canonical_names(names[:1]) == {names[0]: "score.weight"}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("base_model.model.layers.0.q_proj.lora_A.default.weight", True),
        ("layers.0.q_proj.lora_magnitude_vector.default", True),
        ("layers.0.q_proj.base_layer.weight", False),
        ("layers.0.lora_attention.weight", False),
    ],
)
def test_tensors_of_adapters_are_told_from_weights(name, answer):
    assert is_adapter(name) is answer
