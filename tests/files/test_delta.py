"""Two checkpoints as stacks of deltas: what is covered, what is not, and why."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp.files import delta as delta_module
from tdecomp.files import left_out
from tdecomp.files.delta import Uncovered, open_delta
from tdecomp.files.pair import Pair
from tdecomp.stack import Selection
from tests.pairs import CONFIG, make_pair, weights, write_folder
from tests.waiting import wait_until


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
    (stack,) = (
        s for s in open_delta(*pair, Selection(share=["layer", "head"])).stacks if "head" in s.modes
    )
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
    (row,) = open_delta(base, tuned, Selection(targets=["qkv_proj.q"])).uncovered()
    assert row.tensor == name
    assert row.energy == pytest.approx(np.sum((new[name] - old[name])[16:] ** 2.0), rel=1e-5)
    new[name][20, 3] = np.nan
    tuned = write_folder(tmp_path / "nan", new, config=config)
    (row,) = open_delta(base, tuned, Selection(targets=["qkv_proj.q"])).uncovered()
    assert row.energy is None


def changed(tmp_path, change, config=None):
    """A pair whose tuned side was changed by a function of its tensors."""
    arrays = weights(np.random.default_rng(0))
    base = write_folder(tmp_path / "base", arrays)
    tuned = write_folder(tmp_path / "tuned", change(dict(arrays)), config=config)
    return base, tuned


def without(*words):
    return lambda arrays: {n: a for n, a in arrays.items() if not any(w in n for w in words)}


NAME = "model.layers.2.mlp.down_proj.weight"
ADAPTER = "model.layers.0.self_attn.q_proj.lora_A.default.weight"


def add(name, array):
    return lambda arrays: arrays | {name: array}


def pack(name):
    return lambda arrays: arrays | {name: np.ones(arrays[name].shape, np.int8)}


MISSING = {  # a change of the tuned model, the tensor named, the reason
    "gone": (without(NAME), NAME, "only in the base"),
    "new": (
        add("model.layers.3.mlp.up_proj.weight", np.ones((24, 16), np.float32)),
        "model.layers.3.mlp.up_proj.weight",
        "only in the tuned model",
    ),
    "reshaped": (
        add(NAME, np.ones((16, 30), np.float32)),
        NAME,
        "(16, 24) in the base, (16, 30) in the tuned model",
    ),
    "packed": (pack(NAME), NAME, "stored as codes that are not read"),
    "adapter": (
        add(ADAPTER, np.ones((2, 16), np.float32)),
        ADAPTER,
        "only in the tuned model, of an adapter that is not merged",
    ),
}


@pytest.mark.parametrize("change", MISSING)
def test_a_site_without_a_partner_is_refused_or_unknown(change, tmp_path):
    """Of either side; never counted as no change."""
    spoil, tensor, reason = MISSING[change]
    models = changed(tmp_path, spoil)
    with pytest.raises(td.SiteError) as caught:
        open_delta(*models)
    way = (
        "merge_and_unload" if change == "adapter" else f"exclude={tensor.removesuffix('.weight')!r}"
    )
    for text in (f"{tensor} is {reason}", way, "allow_missing=True"):
        assert text in str(caught.value)
    rows = open_delta(*models, allow_missing=True).uncovered()
    assert rows[0] == Uncovered(tensor, reason, None, site=True)
    if change != "adapter":
        open_delta(*models, Selection(exclude=[tensor.removesuffix(".weight")]))


UNKNOWN = {
    "head": (add("score.weight", np.ones((2, 16), np.float32)), "score.weight"),
    "norm": (
        without("layers.1.input_layernorm"),
        "model.layers.1.input_layernorm.weight",
    ),
    "integers": (add("table", np.arange(3, dtype=np.int64)), "table"),
    "nan": (
        add("model.layers.1.input_layernorm.weight", np.full(16, np.nan, np.float32)),
        "model.layers.1.input_layernorm.weight",
    ),
}


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_is_not_targeted_blocks_nothing_and_is_unknown(change, tmp_path):
    spoil, tensor = UNKNOWN[change]
    (row,) = [r for r in open_delta(*changed(tmp_path, spoil)).uncovered() if r.energy is None]
    assert (row.tensor, row.site) == (tensor, False)


def test_an_adapter_alone_is_said_to_be_one(tmp_path):
    alone = lambda arrays: {ADAPTER: np.ones((2, 16), np.float32)}
    with pytest.raises(td.SiteError, match="adapter that is not merged.*merge_and_unload"):
        open_delta(*changed(tmp_path, alone))


CONSTANTS = {
    "the same mask": (np.full((8, 8), -np.inf), np.full((8, 8), -np.inf), 0.0),
    "the same NaN": (np.full(5, np.nan), np.full(5, np.nan), 0.0),
    "beside a change": (np.array([1, -np.inf]), np.array([3, -np.inf]), 4.0),
    "a mask that changed": (np.array([0, -np.inf]), np.array([-np.inf, 0]), None),
    "the same integers": (np.arange(5), np.arange(5), 0.0),
    "other integers": (np.arange(5), np.arange(5)[::-1].copy(), None),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_equal_values_have_not_changed_whatever_they_are(kind, tmp_path):
    old, new, energy = CONSTANTS[kind]
    stored = lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a
    arrays = weights(np.random.default_rng(0))
    base = write_folder(tmp_path / "base", arrays | {"model.mask": stored(old)})
    tuned = write_folder(tmp_path / "tuned", arrays | {"model.mask": stored(new)})
    found = {row.tensor: row.energy for row in open_delta(base, tuned).uncovered()}
    assert found["model.mask"] == energy


def test_one_value_that_is_not_finite_makes_a_tensor_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(left_out, "_BLOCK", 3 * 16)
    name = "model.embed_tokens.weight"
    spoiled = np.ones((40, 16), np.float32)
    spoiled[17, 3] = np.inf
    models = changed(tmp_path, add(name, spoiled))
    rows = {row.tensor: row for row in open_delta(*models).uncovered()}
    assert rows[name].energy is None
    assert rows[name].reason.endswith("with NaN or infinite values")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(4, np.float32)),
        ("position_ids", np.arange(5)[None]),
        ("h.0.attn.bias", np.tril(np.ones((1, 1, 3, 3), np.float32))),
        ("h.0.attn.bias", np.tril(np.ones((1, 1, 3, 3), np.uint8))),
    ],
    ids=["frequencies", "positions", "mask", "mask of bytes"],
)
def test_a_constant_that_one_side_does_not_store_is_no_change(name, array, tmp_path):
    rows = open_delta(*changed(tmp_path, add(name, array))).uncovered()
    assert ("constant" in rows[0].reason, rows[0].energy) == (True, 0.0)


@pytest.mark.parametrize("at_once", [left_out._BLOCK, 5 * 16])
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("more", [2, 0, -3])
def test_common_rows_of_a_vocabulary_are_compared_and_the_rest_told(
    more, side, at_once, tmp_path, monkeypatch
):
    """Padding rows of zeros change nothing; a head without partner goes by its own embedding.

    However many rows are measured at once.
    """
    monkeypatch.setattr(left_out, "_BLOCK", at_once)
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    rng = np.random.default_rng(1)
    old = weights(rng)
    new = old | {name: rng.standard_normal((40 + more, 16)).astype(np.float32)}
    new[head] = rng.standard_normal((40 + more, 16)).astype(np.float32)
    first, second = (old, new) if side == "tuned" else (new, old)
    base, tuned = write_folder(tmp_path / "b", first), write_folder(tmp_path / "t", second)
    rows = [r for r in open_delta(base, tuned).uncovered() if r.tensor in (name, head)]
    for tensor in (name, head):
        found = [row.energy for row in rows if row.tensor == tensor]
        n = min(40, 40 + more)
        expected = [np.sum((new[tensor][:n] - old[name][:n]) ** 2.0)]
        longer = new[tensor] if more > 0 else old[name]
        expected += [np.sum(longer[n:] ** 2.0)] * bool(more)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_targeted_head_is_compared_with_the_embedding_it_is_tied_to(tmp_path):
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    old = weights(np.random.default_rng(1))
    old[head] = old[name] + 1
    new = {n: a + 1 for n, a in old.items() if n != head}
    base, tuned = write_folder(tmp_path / "b", old), write_folder(tmp_path / "t", new)
    delta = open_delta(base, tuned, Selection(targets=["lm_head"]))
    assert delta.shapes == {head: (40, 16)}
    np.testing.assert_allclose(delta.stacks[0].dense().squeeze(), new[name] - old[head])
    assert head not in {row.tensor for row in delta.uncovered()}


def test_a_targeted_head_with_more_rows_is_refused_and_can_be_excluded(tmp_path):
    head = "lm_head.weight"
    old = weights(np.random.default_rng(1)) | {head: np.ones((40, 16), np.float32)}
    base = write_folder(tmp_path / "b", old)
    tuned = write_folder(tmp_path / "t", old | {head: np.ones((43, 16), np.float32)})
    targets = ["lm_head", "q_proj"]
    with pytest.raises(td.SiteError, match="40 rows in the base, 43 in the tuned model"):
        open_delta(base, tuned, Selection(targets=targets))
    rows = open_delta(base, tuned, Selection(targets=targets, exclude=["lm_head"])).uncovered()
    assert [row.energy for row in rows if row.tensor == head] == [0, 48]


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


def test_workers_keep_slices_until_nobody_asks(pair, monkeypatch):
    reads, original = [], Pair.delta

    def counted(self, name, *rest, **options):
        reads.append(name)
        return original(self, name, *rest, **options)

    for idle, again in ((3600.0, 0), (0.01, 3)):
        monkeypatch.setattr(delta_module, "_IDLE", idle)
        delta_module._opened.cache_clear()
        (stack, *_) = open_delta(*pair).stacks_on(None, keep_there=None)
        plain = [np.array(matrix) for matrix in stack]
        there = stack.recipe.opened(range(3), beside=False)
        monkeypatch.setattr(Pair, "delta", counted)
        list(map(there.slice, range(3)))
        if again:
            kept = there.read.func.__self__
            assert wait_until(lambda kept=kept: not kept._slices)
        reads.clear()
        for one, other in zip(map(there.slice, range(3)), plain, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(reads) == again
