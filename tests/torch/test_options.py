"""What `attach` can be told besides method, weights and rank: folding, heads, masks of ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import method, principal_directions
from tdecomp_torch import attach, load_adapter

from .cases import HIDDEN, adapted, assert_close, inputs, seeded, tiny

RESIDUAL = ("dota", "svfit", "loldu", "lamda")
QKV = ["q_proj", "k_proj", "v_proj"]


def trained(adapter):
    """The adapter with other numbers in its trained factors."""
    with torch.no_grad():
        for k, factor in enumerate(adapter.factors().values()):
            factor.add_(0.1 * seeded(lambda f=factor: torch.randn_like(f), k))
    return adapter


def x_of():
    return inputs(2, 5, HIDDEN)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -- fold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_folded_start_gives_the_same_rows(name):
    beside = trained(attach(tiny(), name, targets=QKV, rank=2)).model
    folded = trained(attach(tiny(), name, targets=QKV, rank=2, fold=True)).model
    assert_close(folded(x_of()), beside(x_of()))


@pytest.mark.parametrize("name", RESIDUAL)
def test_detaching_puts_the_weights_back(name):
    model = tiny()
    before = weights(model)
    adapter = trained(attach(model, name, targets=QKV, rank=2, fold=True))
    assert not torch.equal(
        model.layers[0].self_attn.q_proj.weight, before["layers.0.self_attn.q_proj.weight"]
    )
    adapter.merge()
    adapter.unmerge()
    adapter.detach()
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], p) for name, p in before.items())


@pytest.mark.parametrize("merged", [False, True])
def test_a_folded_adapter_is_saved_with_its_start(tmp_path, merged):
    adapter = trained(attach(tiny(), "dota", targets=QKV, rank=2, fold=True))
    expected = adapter.model(x_of())
    if merged:
        adapter.merge()
    adapter.save(tmp_path / "adapter")
    model = tiny()
    before = weights(model)
    again = load_adapter(model, tmp_path / "adapter")
    assert torch.equal(model(x_of()), expected)
    assert not again.notes
    again.detach()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_fold_is_alone_on_its_weights():
    model = tiny()
    attach(model, "dota", targets=["q_proj"], rank=2, fold=True)
    with pytest.raises(ArgumentError, match="has an adapter already"):
        attach(model, "lora", targets=["q_proj"], rank=2, name="second")
    attach(model, "lora", targets=["v_proj"], rank=2, name="second")
    with pytest.raises(ArgumentError, match="has an adapter already"):
        attach(model, "dota", targets=["v_proj"], rank=2, name="third", fold=True)


def test_only_a_start_that_is_subtracted_can_be_folded():
    with pytest.raises(ArgumentError, match="base='add'"):
        attach(tiny(), "lora", targets=QKV, rank=2, fold=True)


# -- heads as weights of their own ------------------------------------------------------------


class Grouped(nn.Module):
    """Queries of four heads, keys and values of two."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"to_dict": lambda self: dict(GROUPED)})()
        self.layers = nn.ModuleList([Projections(), Projections()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Projections(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.Module()
        for name, heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2)):
            self.self_attn.add_module(name, nn.Linear(8, 3 * heads))

    def forward(self, x):
        q, k, v = (getattr(self.self_attn, name)(x) for name in QKV)
        return x + (q.unflatten(-1, (2, 6)).sum(-2) * torch.sigmoid(k) + v) @ torch.eye(6, 8).to(x)


GROUPED = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 3,
}


@pytest.mark.parametrize(
    "name", ["lorta", "tenslora_att_qkv_depth", "tenslora_att_depth_cp", "metatt_heads"]
)
def test_heads_of_all_projections_are_one_stack(name):
    model = seeded(Grouped).double()
    adapter = trained(attach(model, name, targets=QKV, rank=2, share=("layer", "head")))
    (group,) = adapter.groups
    assert (group.grid.shape, group.grid.n_sites) == ((3, 8), 2 * (4 + 2 + 2))
    assert dict(group.grid.modes)["head"][:5] == (
        "q_proj.0",
        "q_proj.1",
        "q_proj.2",
        "q_proj.3",
        "k_proj.0",
    )
    dense = group.tensor(
        {n: f.detach().numpy() for n, f in adapter.pool.factors(0).items()}
    ).to_dense()
    found = adapter.delta("layers.1.self_attn.k_proj")
    assert_close(found, torch.as_tensor(dense[8 + 4 : 8 + 6].reshape(6, 8)))
    x = inputs(5, 8)
    expected = model(x)
    adapter.merge()
    assert_close(model(x), expected)


def test_heads_need_a_method_that_has_them_and_weights_that_have_them():
    with pytest.raises(ArgumentError, match="does not split heads"):
        attach(seeded(Grouped), "lotr", targets=QKV, rank=2, share=("layer", "head"))
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(SiteError, match="number of heads"):
        attach(plain, "lorta", rank=2, share=("layer", "head"))


# -- ranks left out ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "lotr", "lorta", "tenslora_qkv_depth", "tt_lora", "dora"])
def test_ranks_are_left_out_in_training_only(name):
    model, adapter = adapted(name, rank_dropout=0.5)
    whole, _ = adapted(name)
    assert torch.equal(model.eval()(x_of()), whole.eval()(x_of()))
    model.train()
    first, second = seeded(lambda: model(x_of()), 1), seeded(lambda: model(x_of()), 2)
    assert not torch.equal(first, second)


def test_a_rank_is_left_out_whole_and_the_others_are_scaled_up():
    model = nn.Sequential(nn.Linear(5, 4, bias=False)).double()
    adapter = trained(attach(model, "lora", rank=3, rank_dropout=0.4))
    factors = adapter.pool.factors(0)
    b, a = factors["b"][0].detach(), factors["a"][0].detach()
    x = inputs(7, 5)
    base = x @ model[0].weight.detach().T
    scale = adapter.groups[0].scale()
    possible = [
        base + scale * (x @ a.T * torch.tensor(mask, dtype=x.dtype) / 0.6) @ b.T
        for mask in ([i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1))
    ]
    seen = set()
    for seed in range(30):
        found = seeded(lambda: model(x), seed).detach()
        (which,) = [k for k, rows in enumerate(possible) if torch.allclose(rows, found)]
        seen.add(which)
    assert len(seen) > 4


@pytest.mark.parametrize("value", [-0.1, 1.0, "0.1"])
def test_shares_that_are_none_are_refused(value):
    with pytest.raises(ArgumentError, match="rank_dropout="):
        attach(tiny(), "lora", targets=QKV, rank=2, rank_dropout=value)


# -- transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rank"), [("c3a", {"b": 4}), ("c3a", {"b": 2}), ("fourierft", 9)])
def test_a_transform_is_its_einsum(name, rank):
    by_transform = trained(attach(tiny(), name, targets=QKV, rank=rank)).model
    spec = replace(method(name), fast="")
    by_einsum = trained(attach(tiny(), spec, targets=QKV, rank=rank)).model
    found, expected = by_transform(x_of()), by_einsum(x_of())
    assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    for p, q in zip(by_transform.parameters(), by_einsum.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_close(p.grad, q.grad)


# -- arrays of the user -----------------------------------------------------------------------


def test_a_new_adapter_is_made_of_old_ones():
    model = tiny()
    old = []
    for seed in (1, 2):
        adapter = adapted("lora", model, seed=seed, name=f"old{seed}", targets=QKV)[1]
        old.append(adapter.to_lora())
        adapter.detach()
    directions = principal_directions(old, 4)
    new = attach(model, "eigenlorax", targets=QKV, rank={"r": 3, "k": 4}, given=directions)
    found = new.delta("layers.1.self_attn.v_proj")
    basis = torch.as_tensor(directions["directions_in"]["layers.1.self_attn.v_proj"])
    assert_close(found @ basis.T @ basis, found)
    assert found.norm() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"core": {}}, "nothing is given for 'core' of layers.0.self_attn.q_proj"),
        ({"left": {}}, "'left', which has the axes out r"),
        ({"core": {"layers.0.self_attn.q_proj": "x"}}, "'core of layers.0.self_attn.q_proj' is no"),
    ],
    ids=["missing", "shared", "no array"],
)
def test_arrays_by_module_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        attach(tiny(), "lotr", targets=["q_proj"], rank=2, given=given)


@pytest.mark.parametrize("name", ["lora_xs", "lora"])
def test_progress_runs_from_nothing_to_all(name):
    seen = []
    attach(tiny(), name, targets=[*QKV, "o_proj"], rank=2, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 2 or name == "lora"


def test_an_adapter_that_is_off_computes_nothing(monkeypatch):
    model, adapter = adapted("tenslora_qkv_depth")

    def computed():
        raise AssertionError("products were taken")

    monkeypatch.setattr(adapter.pool, "_computed", computed)
    with adapter.disabled():
        model(x_of())
    adapter.merge()
    model(x_of())
    adapter.unmerge()
    with pytest.raises(AssertionError, match="products were taken"):
        model(x_of())
