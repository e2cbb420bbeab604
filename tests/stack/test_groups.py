"""Grouping: every site in one cell of one full grid, along the modes that are shared."""

import json
import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdecomp.errors import ArgumentError, SiteError
from tdecomp.stack import Group, Site, find_sites, group_sites

CONFIG = {
    "model_type": "llama",
    "hidden_size": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
}
ROWS = {"q_proj": 8, "k_proj": 4, "v_proj": 4}


def site(layer: int, proj: str, *, shape=(3, 2), role="attn_in", prefix="", **more) -> Site:
    name = f"{prefix}.{layer}.{proj}.weight"
    return Site(
        tensor=name,
        index=(),
        transpose=False,
        labels=(("layer", layer), ("proj", proj)),
        shape=shape,
        role=role,
        prefix=prefix,
        **more,
    )


def attention(config=CONFIG, n_layers: int = 3) -> tuple[Site, ...]:
    shapes = {
        f"layers.{i}.self_attn.{p}.weight": (n, 6) for i in range(n_layers) for p, n in ROWS.items()
    }
    return find_sites(shapes, config).sites


def check(groups: tuple[Group, ...], sites: tuple[Site, ...]):
    """Each site is in exactly one cell, and that cell has its labels."""
    assert sorted(s.path for g in groups for s in g.sites) == sorted(s.path for s in sites)
    assert len({g.name.lower() for g in groups}) == len(groups)
    for group in groups:
        assert math.prod(group.shape[:-2]) == len(group.sites)
        assert len({(s.prefix, s.role, s.shape) for s in group.sites}) == 1
        for cell, member in zip(product(*group.labels), group.sites, strict=True):
            if group.grid == "flat site mode":
                assert cell == (member.path,)
            else:
                labels = dict(member.labels)
                assert cell == tuple(labels[m] for m in group.modes[:-2])


cells = st.sets(st.tuples(st.integers(0, 4), st.sampled_from("qkvo")), min_size=1)


@given(cells)
def test_incomplete_grids_become_full_ones_or_a_flat_mode(present):
    sites = tuple(site(*cell) for cell in sorted(present))
    groups = group_sites(sites)
    check(groups, sites)
    assert len(groups) <= 4
    layers, projs = zip(*present, strict=True)
    full = len(present) == len(set(layers)) * len(set(projs))
    assert ({g.grid for g in groups} == {"full"}) == full


@given(cells, st.sampled_from([("layer",), ("proj",), (), ("site",), ("layer", "proj")]))
def test_any_share_keeps_every_site(present, share):
    sites = tuple(site(*cell) for cell in sorted(present))
    groups = group_sites(sites, share=share)
    check(groups, sites)
    for group in groups:
        assert group.grid == "flat site mode" or group.modes[:-2] == share


def test_projections_with_the_same_layers_stay_together():
    sites = [site(i, p) for i in range(4) for p in ("q", "k", "v") if i < 2 or p == "q"]
    groups = group_sites(sites)
    assert [(g.labels, g.grid) for g in groups] == [
        (((0, 1, 2, 3), ("q",)), "sub-grid"),
        (((0, 1), ("k", "v")), "sub-grid"),
    ]
    assert [g.name for g in groups] == ["attn_in.3x2", "attn_in.3x2-2"]


def test_a_hole_in_the_middle():
    sites = [site(i, p) for i in range(5) for p in "qkv" if (i, p) != (2, "k")]
    groups = group_sites(sites)
    assert sorted(g.shape for g in groups) == [(4, 1, 3, 2), (5, 2, 3, 2)]


def test_ragged_beyond_four_grids_is_flat():
    sites = [site(i, f"p{j}") for i in range(6) for j in range(6) if j <= i]
    (group,) = group_sites(sites)
    assert group.grid == "flat site mode"
    assert group.modes == ("site", "out", "in")
    assert group.labels[0][:2] == (".0.p0", ".1.p0")


def test_same_labels_twice_is_flat():
    (group,) = group_sites(
        [
            site(0, "q"),
            Site(
                tensor="twin",
                index=(),
                transpose=False,
                labels=site(0, "q").labels,
                shape=(3, 2),
                role="attn_in",
            ),
        ]
    )
    assert group.labels == ((".0.q", "twin"),)


def test_layers_are_numbers_and_names_keep_their_order():
    (group,) = group_sites([site(i, p) for i in (10, 9, 2) for p in ("q", "k", "a")])
    assert group.labels == ((2, 9, 10), ("q", "k", "a"))


def test_size_one_modes_are_kept():
    (group,) = group_sites([site(5, "q")])
    assert group.modes == ("layer", "proj", "out", "in")
    assert group.shape == (1, 1, 3, 2)
    assert group.grid == "full"


def test_roles_towers_and_shapes_stay_apart():
    sites = [
        site(0, "q", prefix="text.layers"),
        site(0, "k", prefix="text.layers", shape=(1, 2)),
        site(0, "o", prefix="text.layers", role="attn_out"),
        site(0, "q", prefix="vision layers/x"),
    ]
    assert [g.name for g in group_sites(sites)] == [
        "text.layers.attn_in.3x2",
        "text.layers.attn_in.1x2",
        "text.layers.attn_out.3x2",
        "vision_layers_x.attn_in.3x2",
    ]


def test_names_say_what_is_not_shared():
    sites = [site(i, p) for i in range(2) for p in "qk"]
    assert [g.name for g in group_sites(sites, share=["layer"])] == [
        "attn_in.q.3x2",
        "attn_in.k.3x2",
    ]
    alone = group_sites(sites, share=[])
    assert alone[0].name == "attn_in.layer0.q.3x2"
    assert {g.modes for g in alone} == {("out", "in")}


def test_grouped_query_attention_as_two_groups():
    groups = group_sites(attention())
    assert [(g.name, g.shape) for g in groups] == [
        ("attn_in.8x6", (3, 1, 8, 6)),
        ("attn_in.4x6", (3, 2, 4, 6)),
    ]


def test_grouped_query_attention_as_one_stack_of_heads():
    (group,) = group_sites(attention(), share=["layer", "head"])
    assert group.name == "attn_in.heads.2x6"
    assert group.modes == ("layer", "head", "hd", "in")
    assert group.shape == (3, 8, 2, 6)
    assert group.labels[1][:5] == ("q_proj.0", "q_proj.1", "q_proj.2", "q_proj.3", "k_proj.0")
    assert group.sites[5].index == ((2, 4),)
    assert group.sites[5].path == "layers.0.self_attn.k_proj.1"


def test_heads_without_layers_and_flat():
    assert [g.modes for g in group_sites(attention(), share=["head"])] == [("head", "hd", "in")] * 3
    (flat,) = group_sites(attention(), share=["site", "head"])
    assert flat.modes == ("site", "hd", "in")
    assert flat.shape == (24, 2, 6)


def test_sites_without_heads_stay_whole_in_a_head_stack():
    sites = (*attention(), site(0, "o_proj", role="attn_out"), site(1, "o_proj", role="attn_out"))
    groups = group_sites(sites, share=["layer", "head"])
    assert [g.modes for g in groups] == [("layer", "head", "hd", "in"), ("layer", "out", "in")]


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}])
def test_heads_need_their_number(config):
    with pytest.raises(SiteError, match="num_attention_heads"):
        group_sites(attention(config), share=["head"])


def test_unknown_mode_to_share():
    with pytest.raises(ArgumentError, match="'expert'.*layer, proj, head, site"):
        group_sites(attention(), share=["expert"])


def test_share_is_a_sequence():
    with pytest.raises(ArgumentError, match="sequence"):
        group_sites(attention(), share="layer")


def test_no_sites():
    with pytest.raises(SiteError, match="no sites"):
        group_sites([])


def test_a_group_is_a_full_grid():
    with pytest.raises(SiteError, match="2 cells"):
        Group(name="g", modes=("layer", "out", "in"), labels=((0, 1),), sites=(site(0, "q"),))


@pytest.mark.parametrize("share", [None, ("layer", "head"), ("site",), ()])
def test_groups_survive_json(share):
    for group in group_sites(attention(), share=share):
        assert Group.from_json(json.loads(json.dumps(group.to_json()))) == group


def test_grouping_groups_of_heads_again_changes_nothing():
    (group,) = group_sites(attention(), share=["layer", "head"])
    assert group_sites(group.sites, share=["layer", "head"]) == (group,)
