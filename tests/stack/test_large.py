"""Checkpoints as large or as odd as one likes: the work grows with the names, not faster."""

from __future__ import annotations

import pytest

from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import find, find_sites, group_sites, parse_layers
from tdecomp.stack.scheme import choose_scheme
from tests.waiting import cpu_seconds

MANY = 10_000
CONFIG = {"model_type": "llama", "hidden_size": 2, "num_attention_heads": 1}
Q = "model.layers.{}.self_attn.q_proj.weight"
STRANGE = [f"{i:b}".replace("0", "!").replace("1", "?") for i in range(MANY)]  # all one group name

LARGE = {
    "layers": ({Q.format(i): (2, 2) for i in range(MANY)}, {}),
    "layers far apart": ({Q.format(i * 10**5): (2, 2) for i in range(1, MANY)}, {}),
    "a shape each": ({Q.format(i): (2, i + 1) for i in range(MANY)}, {}),
    "a role each": ({f"x.{i}.a{i}.w.weight": (2, 2) for i in range(MANY)}, {}),
    "a prefix each": ({f"{s}.{Q.format(0)}": (2, 2) for s in STRANGE}, {}),
    "each alone": ({Q.format(i): (2, 2) for i in range(MANY)}, {"share": ()}),
    "targets": (
        {Q.format(i): (2, 2) for i in range(MANY)},
        {"targets": [f"layers.{i}.self_attn.q_proj" for i in range(MANY)]},
    ),
    "steps": (
        {
            f"model.layers.{i}.mlp.experts.{j}.gate_proj.weight": (2, 2)
            for i in range(140)
            for j in range(i + 1)
        },
        {},
    ),
    "one name of many segments": (
        {Q.format(0): (2, 2), "a" + ".b" * 10 * MANY + ".weight": (2, 2)},
        {"targets": "all-linear"},
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_the_work_grows_with_the_names(kind):
    shapes, options = LARGE[kind]
    share = options.get("share")
    with cpu_seconds(8):  # it takes one or two, comparing pairs fifteen
        survey = find_sites(shapes, CONFIG, targets=options.get("targets"))
        groups = group_sites(survey.sites, share=share)
    assert sum(len(group.sites) for group in groups) == len(shapes)
    assert len({group.name.lower() for group in groups}) == len(groups)


def test_fused_tensors_of_very_many_experts():
    config = CONFIG | {"model_type": "mixtral"}
    name = "layers.0.mlp.experts.gate_up_proj"
    with cpu_seconds(8):
        assert len(find_sites({name: (4096, 4, 2)}, config).sites) == 2 * 4096
        found = find_sites({name: (10**9, 4, 2), "layers.1.mlp.down_proj.weight": (2, 2)}, config)
    assert found.uncovered == ((name, "more than 4096 matrices in one tensor"),)


def test_families_are_compared_without_looking_at_every_expert():
    fused = {f"layers.{i}.mlp.experts.gate_up_proj": (4096, 4, 2) for i in range(1000)}
    with cpu_seconds(8):
        assert choose_scheme(fused, {}, ()).family == "moe"


def test_more_sites_than_are_taken(monkeypatch):
    monkeypatch.setattr(find, "_MOST_SITES", 5)
    shapes = {Q.format(i): (2, 2) for i in range(6)}
    assert len(find_sites(shapes, CONFIG, layers=range(5)).sites) == 5
    with pytest.raises(SiteError, match="more than 5 sites: .* --layers"):
        find_sites(shapes, CONFIG)


@pytest.mark.parametrize(
    "text", ["0-999999999999", "0-100000", "٣", "0-٣", "1" * 5000, "1e3", "0x1"]
)
def test_layers_are_numbers_up_to_a_limit(text):
    with pytest.raises(ArgumentError, match="at most 99999"):
        parse_layers(text)


def labels(number: str) -> list[object]:
    shapes = {f"model.layers.{number}.self_attn.q_proj.weight": (2, 2), "norm.weight": (2,)}
    survey = find_sites(shapes, CONFIG, patterns=["layers.{layer}.self_attn.{proj}"])
    return [dict(site.labels)["layer"] for site in survey.sites]


@pytest.mark.parametrize(
    ("number", "label"), [("0", 0), ("007", 7), ("9" * 9, 999_999_999)], ids=str
)
def test_numbers_in_names(number, label):
    assert labels(number) == [label]


@pytest.mark.parametrize(
    "number", ["1" * 10, "9" * 5000, "-1", "٣", "1.5", "1e3", "²", ""], ids=len
)
def test_what_is_not_a_layer_number(number):
    with pytest.raises(SiteError, match="no site"):
        labels(number)
