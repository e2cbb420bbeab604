"""Two checkpoints as stacks of deltas: what is covered, what is not, and why."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp.files.delta import open_delta
from tests.pairs import CONFIG, make_pair, weights, write_folder


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path)


def test_groups_and_their_deltas(pair):
    delta = open_delta(*pair)
    assert [(g.name, g.shape) for g in delta.groups] == [
        ("attn_in.16x16", (3, 1, 16, 16)),
        ("attn_in.8x16", (3, 2, 8, 16)),
        ("attn_out.16x16", (3, 1, 16, 16)),
        ("mlp_in.24x16", (3, 2, 24, 16)),
        ("mlp_out.16x24", (3, 1, 16, 24)),
    ]
    for stack in delta.stacks:
        dense = stack.dense()
        assert dense.dtype == np.float32
        for i, site in enumerate(stack.group.sites):
            expected = delta.pair.tuned.read(site.tensor) - delta.pair.base.read(site.tensor)
            np.testing.assert_array_equal(dense.reshape(-1, *site.shape)[i], expected)


def test_every_tensor_is_covered_or_has_a_reason(pair):
    delta = open_delta(*pair)
    rows = delta.uncovered()
    covered = {s.tensor for g in delta.groups for s in g.sites}
    assert covered | {r.tensor for r in rows} == set(delta.pair.base.names)
    assert {r.reason for r in rows} == {"embedding", "not a matrix"}
    for row in rows:
        assert row.energy == pytest.approx(np.sum(delta.pair.delta(row.tensor) ** 2.0), rel=1e-5)


def test_heads_are_slices_of_one_stack(pair):
    (stack,) = (s for s in open_delta(*pair, share=["layer", "head"]).stacks if "head" in s.modes)
    assert stack.modes == ("layer", "head", "hd", "in")
    assert stack.shape == (3, 8, 4, 16)


def test_a_partly_covered_tensor_counts_the_rest(tmp_path):
    config = CONFIG | {"model_type": "phi3"}
    rng = np.random.default_rng(0)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    old = {name: rng.standard_normal((32, 16)).astype(np.float32)}
    new = {name: old[name] + rng.standard_normal((32, 16)).astype(np.float32)}
    base = write_folder(tmp_path / "b", old, config=config)
    tuned = write_folder(tmp_path / "t", new, config=config)
    (row,) = open_delta(base, tuned, targets=["qkv_proj.q"]).uncovered()
    assert row.tensor == name
    assert row.energy == pytest.approx(np.sum((new[name] - old[name])[16:] ** 2.0), rel=1e-5)


def changed(tmp_path, change, config=None):
    """A pair whose tuned side was changed by a function of its tensors."""
    arrays = weights(np.random.default_rng(0))
    base = write_folder(tmp_path / "base", arrays)
    tuned = write_folder(tmp_path / "tuned", change(dict(arrays)), config=config)
    return base, tuned


def without(*words):
    return lambda arrays: {n: a for n, a in arrays.items() if not any(w in n for w in words)}


def test_a_site_only_in_the_base_is_reported(tmp_path):
    rows = open_delta(*changed(tmp_path, without("layers.2.mlp.down"))).uncovered()
    assert ("model.layers.2.mlp.down_proj.weight", "only in the base") in {
        (r.tensor, r.reason) for r in rows
    }


def test_other_tensors_only_in_one_are_reported(tmp_path):
    extra = lambda arrays: arrays | {"score.weight": np.ones((2, 16), np.float32)}
    rows = open_delta(*changed(tmp_path, extra)).uncovered()
    assert ("score.weight", "only in the tuned model") in {(r.tensor, r.reason) for r in rows}


def test_a_resized_vocabulary_is_reported(tmp_path):
    def resize(arrays):
        name = "model.embed_tokens.weight"
        return arrays | {name: np.concatenate([arrays[name], np.ones((2, 16), np.float32)])}

    rows = {r.tensor: r.reason for r in open_delta(*changed(tmp_path, resize)).uncovered()}
    assert rows["model.embed_tokens.weight"] == "(40, 16) in the base, (42, 16) in the tuned model"


def test_fewer_layers_are_another_architecture(tmp_path):
    pair = changed(tmp_path, without("layers.2."), config=CONFIG | {"num_hidden_layers": 2})
    with pytest.raises(td.SiteError, match="num_hidden_layers 3 and 2"):
        open_delta(*pair)


def test_another_width_is_another_architecture(tmp_path):
    narrow = lambda arrays: {n: a[..., :8].copy() for n, a in arrays.items()}
    with pytest.raises(td.SiteError, match="no tensor in common|different architectures"):
        open_delta(*changed(tmp_path, narrow))


def test_one_reshaped_site_is_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    wide = lambda arrays: arrays | {name: np.ones((30, 16), np.float32)}
    with pytest.raises(td.SiteError, match=r"layers.1.mlp.up_proj.weight is \(24, 16\)"):
        open_delta(*changed(tmp_path, wide))


def test_a_body_is_paired_with_the_model_that_wraps_it(tmp_path):
    wrap = lambda arrays: {f"inner.{n}": a for n, a in arrays.items()}
    delta = open_delta(*changed(tmp_path, wrap))
    assert delta.groups[0].sites[0].tensor.startswith("model.layers.0")


@pytest.mark.parametrize(("room", "again"), [(0, 3), (2 * 1024 + 1000, 1), (1 << 30, 0)])
def test_slices_are_kept_for_the_next_pass_as_far_as_there_is_room(pair, monkeypatch, room, again):
    """And all are read again once another group has been."""
    delta, reads = open_delta(*pair), []
    original = type(delta.pair).delta

    def counted(self, name, *rest, **options):
        reads.append(name)
        return original(self, name, *rest, **options)

    plain = [list(stack) for stack in delta.stacks]
    monkeypatch.setattr(type(delta.pair), "delta", counted)
    kept = delta.stacks_on(None, keep=room)  # the first has three slices of 1024 bytes
    for at, expected in ((0, 3), (0, again), (0, again), (1, 6), (0, 3)):
        reads.clear()
        for one, other in zip(kept[at], plain[at], strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(reads) == expected
