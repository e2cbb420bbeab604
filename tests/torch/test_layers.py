"""Laws of adapted layers: for every row of the catalogue, numpy's dense weights are the oracle."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tdecomp import ArgumentError, SiteError
from tdecomp.adapters import CATALOGUE, Spec, method
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import (
    AKIN,
    HIDDEN,
    METHODS,
    MODELS,
    Branches,
    Tables,
    adapted,
    adapted_case,
    assert_close,
    dense_copy,
    inputs,
    new_weights,
    oracle,
    random_factors,
    seeded,
    set_random,
    tiny,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEP = 4
"""Where a schedule is neither at its start nor at its end."""

every_method = pytest.mark.parametrize("name", METHODS)
every_dtype = pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[pytest.mark.slow] * (d == torch.float16)) for d in DTYPES],
    ids=str,
)

_FEW = ("lora", "lotr", "tenslora_att_qkv_depth", "kradapter", "hira", "dora", "svfit", "c3a")
few_methods = pytest.mark.parametrize("name", _FEW)


def x_of(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return inputs(2, 5, HIDDEN, dtype=dtype)


def bits(tensors) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]


def same_bits(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def dense_weights_of(adapter) -> list[torch.Tensor]:
    return [target.module.weight for target in adapter.targets]


# -- the product is that of the dense weights ---------------------


def taken_by(name: str) -> list[str]:
    """Models that a row is tried on."""
    return [
        model
        for model, case in MODELS.items()
        if case.takes(name)
        and (name in _FEW or model not in ("middle part", "one image"))
        and (name not in AKIN or model == "projections")
    ]


@pytest.mark.parametrize("name", CATALOGUE)
def test_forward_is_that_of_the_dense_weights(name):
    for model in taken_by(name):
        plain, changed, adapter, x = adapted_case(name, model, step=STEP)
        dense = dense_copy(adapter, plain)
        assert not torch.allclose(dense(x), plain(x)), model
        assert_close(changed(x), dense(x))


def test_given_directions_are_used():
    plain = tiny()
    changed, adapter = adapted("eigenlorax")
    assert_close(changed(x_of()), dense_copy(adapter, plain)(x_of()))


@pytest.mark.parametrize("name", CATALOGUE)
def test_delta_of_a_module_is_that_of_the_equation(name):
    _, adapter = adapted(name, step=STEP)
    expected = oracle(adapter, lambda bound, w, arrays, k: bound.delta(arrays, k, STEP))
    assert expected.keys() == {target.path for target in adapter.targets}
    for path, delta in expected.items():
        assert_close(adapter.delta(path), torch.as_tensor(delta))


def test_delta_of_a_fused_module_is_zero_where_no_site_is():
    _, _, adapter, _ = adapted_case("lotr", "middle part")
    delta = adapter.delta("h.0.attn.c_attn")
    expected = oracle(adapter, lambda bound, w, arrays, k: w + bound.delta(arrays, k))
    base = oracle(adapter, lambda bound, w, arrays, k: w)
    assert_close(delta, torch.as_tensor(expected["h.0.attn.c_attn"] - base["h.0.attn.c_attn"]))
    assert not delta[:HIDDEN].any()
    assert delta[HIDDEN : 2 * HIDDEN].any()
    assert not delta[2 * HIDDEN :].any()


@every_method
def test_few_and_many_tokens_give_the_same_rows(name):
    changed, _ = adapted(name, step=STEP)
    layer = changed.layers[0].self_attn.q_proj
    x = inputs(70, HIDDEN)
    for tokens in (0, 1, 31, 32):
        assert_close(layer(x[:tokens]), layer(x)[:tokens])


@pytest.mark.parametrize("shape", [(HIDDEN,), (1, HIDDEN), (2, 1, 3, HIDDEN)], ids=str)
def test_any_number_of_leading_axes_is_kept(shape):
    plain = tiny()
    changed, adapter = adapted("lotr")
    dense = dense_copy(adapter, plain)
    x = inputs(*shape)
    assert_close(changed.layers[1].self_attn.k_proj(x), dense.layers[1].self_attn.k_proj(x))


def test_an_input_by_keyword_is_read():
    changed, _ = adapted("lora")
    layer, x = changed.layers[0].self_attn.q_proj, x_of()
    assert torch.equal(layer(input=x), layer(x))


# -- merging ---------------------


@every_method
def test_merged_forward_is_the_adapted_one(name):
    changed, adapter = adapted(name, step=STEP)
    before = changed(x_of())
    adapter.merge()
    assert_close(changed(x_of()), before)


@pytest.mark.parametrize("model", [m for m in MODELS if m != "projections"])
@pytest.mark.parametrize("name", ["lora", "lotr", "dora", "map", "loha"])
def test_merged_forward_of_other_modules_is_the_adapted_one(name, model):
    plain, changed, adapter, x = adapted_case(name, model)
    before = changed(x)
    state = adapter.merged_state_dict()
    adapter.merge()
    assert_close(changed(x), before)
    plain.load_state_dict(state)
    assert torch.equal(plain(x), changed(x))


@every_dtype
@every_method
def test_merge_and_unmerge_restores_every_bit(name, dtype):
    changed, adapter = adapted(name, tiny(dtype), step=STEP)
    before, output = bits(dense_weights_of(adapter)), changed(x_of(dtype))
    adapter.merge()
    assert not same_bits(dense_weights_of(adapter), before)
    adapter.unmerge()
    assert same_bits(dense_weights_of(adapter), before)
    assert torch.equal(changed(x_of(dtype)), output)


@pytest.mark.parametrize("keep", ["cpu", "device"])
@few_methods
def test_originals_are_kept_where_they_are_asked_to_be(name, keep):
    _, adapter = adapted(name)
    before = bits(dense_weights_of(adapter))
    assert adapter.merge(keep=keep) == sum(w.numel() * w.element_size() for w in before)
    assert same_bits(adapter.attached.originals.weights.values(), before)
    adapter.unmerge()
    assert same_bits(dense_weights_of(adapter), before)


def test_merging_without_originals_is_not_undone():
    changed, adapter = adapted("lora")
    assert adapter.merge(keep=None) == 0
    merged = changed(x_of())
    with pytest.raises(ArgumentError, match="without keeping"):
        adapter.unmerge()
    assert torch.equal(changed(x_of()), merged)


def test_kept_weights_are_not_in_the_state_dict():
    changed, adapter = adapted("lora")
    before = set(changed.state_dict())
    adapter.merge()
    assert set(changed.state_dict()) == before


class Tied(nn.Module):
    """An output head that is the embedding."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(10, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.wte.weight

    def forward(self, positions):
        return self.out(self.wte(positions))


def test_tied_weights_are_merged_only_apart():
    model = seeded(Tied).double()
    positions = torch.arange(4)
    changed, adapter = adapted("lora", model, targets=["out"])
    before, output, weight = model.wte.weight.clone(), changed(positions), model.wte.weight
    with pytest.raises(SiteError, match="wte"):
        adapter.merge()
    assert torch.equal(model.out.weight, before)
    assert not adapter.is_merged
    adapter.merge(untie=True)
    assert torch.equal(model.wte.weight, before)
    assert_close(changed(positions), output)
    adapter.unmerge()
    assert model.out.weight is weight
    assert torch.equal(changed(positions), output)


# -- files ---------------------


@every_dtype
@every_method
def test_loading_gives_the_bits_that_were_saved(name, dtype, tmp_path):
    changed, adapter = adapted(name, tiny(torch.float32), step=STEP, dtype=dtype)
    adapter.save(tmp_path / "saved")
    again = tiny(torch.float32)
    loaded = load_adapter(again, tmp_path / "saved")
    assert loaded.factors().keys() == adapter.factors().keys()
    assert same_bits(loaded.pool.buffers(), adapter.pool.buffers())
    assert same_bits(random_factors(loaded), random_factors(adapter))
    assert {p.dtype for p in random_factors(loaded)} == {dtype}
    x = x_of(torch.float32)
    assert torch.equal(again(x), changed(x))
    assert loaded.groups == adapter.groups
    assert loaded.at_step == STEP


@pytest.mark.slow
@pytest.mark.parametrize("name", AKIN)
def test_a_row_made_as_others_starts_merges_and_loads(name, tmp_path):
    start, _ = adapted(name, tiny(torch.float32), random=False)
    x = x_of(torch.float32)
    if CATALOGUE[name].starts_at_zero:
        assert_close(start(x), tiny(torch.float32)(x))
    changed, adapter = adapted(name, tiny(torch.float32))
    output, before = changed(x), bits(dense_weights_of(adapter))
    adapter.save(tmp_path / "saved")
    again = tiny(torch.float32)
    loaded = load_adapter(again, tmp_path / "saved")
    assert same_bits(random_factors(loaded), random_factors(adapter))
    assert torch.equal(again(x), output)
    adapter.merge()
    assert_close(changed(x), output)
    adapter.unmerge()
    assert same_bits(dense_weights_of(adapter), before)


# -- how it starts, on and off ---------------------


@pytest.mark.parametrize("name", [n for n in METHODS if CATALOGUE[n].starts_at_zero])
def test_nothing_changes_at_the_start_where_the_row_says_so(name):
    plain = tiny()
    changed, _ = adapted(name, random=False)
    assert_close(changed(x_of()), plain(x_of()))


@every_dtype
@every_method
def test_disabled_is_the_original_bit_by_bit(name, dtype):
    plain = tiny(dtype)
    changed, adapter = adapted(name, tiny(dtype), step=STEP)
    with adapter.disabled():
        assert torch.equal(changed(x_of(dtype)), plain(x_of(dtype)))
        assert not adapter.active
    assert adapter.active
    assert not torch.equal(changed(x_of(dtype)), plain(x_of(dtype)))


def test_disabled_ends_when_an_error_is_raised():
    _, adapter = adapted("lora")
    with pytest.raises(KeyError), adapter.disabled():
        raise KeyError
    assert adapter.active


@few_methods
def test_attach_keeps_the_state_of_the_model(name):
    plain, model = tiny(), tiny()
    changed, adapter = adapted(name, model)
    assert changed is model
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("tdecomp_")}
    expected = plain.state_dict()
    assert list(state) == list(expected)
    assert same_bits(state.values(), expected.values())
    own = set(model.state_dict()) - set(expected)
    assert own == {f"tdecomp_default.{key}" for key in adapter.pool.state_dict()}


@few_methods
def test_attach_freezes_and_detach_restores_everything(name):
    plain, model = tiny(), tiny()
    model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    modules = list(model.modules())
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in modules]
    _, adapter = adapted(name, model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"tdecomp_default.{key}" for key in adapter.factors()}
    assert adapter.detach() is model
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in modules] == hooks
    for module in modules:  # what torch keeps beside the hooks
        assert not module._forward_hooks_with_kwargs
        assert not module._forward_hooks_always_called
    assert torch.equal(model(x_of()), plain(x_of()))


def test_detach_of_one_adapter_leaves_the_other():
    model, plain = tiny(), tiny()
    _, first = adapted("lora", model, name="first", seed=5)
    alone = model(x_of())
    _, second = adapted("lotr", model, name="second", seed=6)
    second.detach()
    assert torch.equal(model(x_of()), alone)
    assert all(p.requires_grad for p in random_factors(first))
    first.detach()
    assert torch.equal(model(x_of()), plain(x_of()))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in_order", "reversed"])
def test_flags_are_restored_whatever_adapter_goes_first(order):
    model = tiny()
    adapters = [adapted("lora", model, name=n)[1] for n in ("first", "second")]
    for k in order:
        adapters[k].detach()
    assert all(p.requires_grad for p in model.parameters())


def test_also_train_names_what_is_trained_besides():
    model = tiny()
    _, adapter = adapted("lora", model, also_train=["head", "o_proj.weight"])
    expected = {"head.weight", "head.bias"} | {
        f"layers.{k}.self_attn.o_proj.weight" for k in (0, 1)
    }
    assert set(adapter.trained_besides()) == expected
    model(x_of()).square().sum().backward()
    assert all(p.grad is not None for p in adapter.trained_besides().values())
    adapter.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_trained_besides_is_saved(tmp_path):
    changed, adapter = adapted("lora", also_train=["head"])
    with torch.no_grad():
        changed.head.weight.mul_(3)
    adapter.save(tmp_path / "saved")
    again = tiny()
    loaded = load_adapter(again, tmp_path / "saved")
    assert torch.equal(again(x_of()), changed(x_of()))
    assert loaded.trained_besides().keys() == adapter.trained_besides().keys()


def test_given_arrays_are_neither_changed_nor_shared():
    rng = np.random.default_rng(0)
    given = {"a": rng.standard_normal((6, 2, HIDDEN)), "b": rng.standard_normal((6, 12, 2))}
    kept = {name: array.copy() for name, array in given.items()}
    changed, adapter = adapted(
        "lora", random=False, given=given, targets=["q_proj", "k_proj", "v_proj"]
    )
    assert np.array_equal(adapter.factors()["12x8__b"].detach().numpy(), given["b"])
    set_random(adapter)
    assert all(np.array_equal(given[name], kept[name]) for name in given)


# -- several uses, several adapters ---------------------


class Twice(nn.Module):
    """One layer that is called twice, under two names."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6)])
        self.same = self.layers[0]

    def forward(self, x):
        return self.same(torch.tanh(self.layers[0](x)))


def test_a_module_called_twice_is_one_site():
    model = seeded(Twice).double()
    plain = copy.deepcopy(model)
    _, adapter = adapted("lora", model, targets=["0"])
    assert [g.grid.n_sites for g in adapter.groups] == [1]
    dense = dense_copy(adapter, plain)
    x = inputs(3, 6)
    assert_close(model(x), dense(x))
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    b, a = adapter.factors().values()
    assert_close(b.grad[0], dense.same.weight.grad @ a[0].T)


def test_several_adapters_add_up():
    plain, model = tiny(), tiny()
    _, first = adapted("lora", model, name="first", seed=5)
    _, second = adapted("lotr", model, name="second", seed=6, targets=["q_proj", "o_proj"])
    dense = copy.deepcopy(plain)
    with torch.no_grad():
        for path, module in dense.named_modules():
            for adapter in (first, second):
                if path in {t.path for t in adapter.targets}:
                    module.weight += adapter.delta(path)
    assert_close(model(x_of()), dense(x_of()))
    with first.disabled(), second.disabled():
        assert torch.equal(model(x_of()), plain(x_of()))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in_order", "reversed"])
def test_several_adapters_merge_in_any_order_and_unmerge_the_last_first(order):
    model = tiny()
    adapters = [
        adapted("lora", model, name="first", seed=5)[1],
        adapted("lotr", model, name="second", seed=6)[1],
    ]
    before, weights = model(x_of()), bits(model.parameters())
    for k in order:
        adapters[k].merge()
        assert_close(model(x_of()), before)
    for k in reversed(order):
        adapters[k].unmerge()
    assert same_bits(model.parameters(), weights)
    assert torch.equal(model(x_of()), before)


REPLACED = Spec.parse("in its place", "b: site out r, a: site r in", "normal", base="replace")


@pytest.mark.parametrize("name", ["dora", "replace"])
def test_methods_that_do_not_add_are_alone_on_a_module(name):
    spec = REPLACED if name == "replace" else method(name)
    for pair in ((spec, "lora"), ("lora", spec)):
        model = tiny()
        adapted(pair[0], model, name="first")
        names = set(dict(model.named_modules()))
        with pytest.raises(ArgumentError, match="detach the other one"):
            adapted(pair[1], model, name="second", targets=["q_proj"])
        assert set(dict(model.named_modules())) == names
        adapted(pair[1], tiny(), name="second", targets=["q_proj"])


def test_methods_that_do_not_add_can_be_on_other_modules():
    model = tiny()
    _, first = adapted("dora", model, name="first", targets=["q_proj"])
    plain = tiny()
    _, second = adapted("map", model, name="second", targets=["o_proj"])
    dense = dense_copy(second, dense_copy(first, plain))
    assert_close(model(x_of()), dense(x_of()))


# -- what else the language has ---------------------


@pytest.mark.parametrize("bias", ["q_proj", "k_proj"])
def test_a_method_can_stand_in_for_the_weight(bias):
    plain = tiny()
    changed, adapter = adapted(REPLACED, targets=[bias])
    dense = dense_copy(adapter, plain)
    assert_close(changed(x_of()), dense(x_of()))
    adapter.merge()
    assert_close(changed(x_of()), dense(x_of()))


@pytest.mark.parametrize("base", ["residual", "truncate"])
def test_other_bases_are_those_of_the_dense_weights(base):
    spec = replace(method("lora"), base=base)
    plain = tiny()
    changed, adapter = adapted(spec)
    assert_close(changed(x_of()), dense_copy(adapter, plain)(x_of()))


@pytest.mark.parametrize("name", ["lora", "lotr", "tenslora_qkv_depth_cp", "loha", "svfit"])
def test_gates_switch_ranks_off(name):
    spec = method(name).gated("r")
    plain, model = tiny(), tiny()
    _, adapter = adapted(spec, model)
    assert_close(model(x_of()), dense_copy(adapter, plain)(x_of()))
    with torch.no_grad():
        for key, factor in adapter.factors().items():
            if key.endswith("gate_r"):
                factor.zero_()
    if spec.base == "add":
        assert_close(model(x_of()), plain(x_of()))


def test_a_gate_starts_as_no_gate():
    plain, _ = adapted("dcft", random=False)
    gated, _ = adapted(method("dcft").gated("r"), random=False)
    assert_close(gated(x_of()), plain(x_of()))


@pytest.mark.parametrize(
    "share",
    [None, [], ["layer"], ["proj"], ["in"], ["in", "out"], ["layer", "in"]],
    ids=lambda s: "default" if s is None else "_".join(s) or "none",
)
@pytest.mark.parametrize("name", ["lora", "lotr", "fact_tk", "tenslora_att_qkv_depth", "vera"])
def test_any_sharing_is_that_of_the_dense_weights(name, share):
    plain = tiny()
    changed, adapter = adapted(name, share=share)
    assert_close(changed(x_of()), dense_copy(adapter, plain)(x_of()))


class Widths(nn.Module):
    """Grouped queries: two shapes that read one width."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for layer in self.layers:
            layer.q_proj, layer.k_proj = nn.Linear(6, 8), nn.Linear(6, 4)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer.q_proj(x)[..., :6] + layer.k_proj(x).mean(-1, keepdim=True)
        return x


def test_groups_of_one_width_share_the_factor_over_in():
    plain = seeded(Widths).double()
    apart = adapted("lotr", copy.deepcopy(plain))[1]
    model, adapter = adapted("lotr", copy.deepcopy(plain), share=["in"])
    assert [g.grid.shape for g in adapter.groups] == [(8, 6), (4, 6)]
    assert set(apart.factors()) - set(adapter.factors()) == {"8x6__right", "4x6__right"}
    assert set(adapter.factors()) - set(apart.factors()) == {"in6__right"}
    assert adapter.n_trainable == apart.n_trainable - 2 * 6
    dense = dense_copy(adapter, plain)
    x = inputs(3, 6)
    assert_close(model(x), dense(x))
    model(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in random_factors(adapter))


def test_layers_that_are_kept_apart_have_factors_of_their_own():
    _, adapter = adapted("lotr", share=["proj"])
    names = [g.grid.name for g in adapter.groups]
    assert len(names) == len(set(names)) == 4
    assert {g.grid.n_sites for g in adapter.groups} == {3, 1}


# -- schedules ---------------------


@pytest.mark.parametrize("step", [0, 1, 5, 10, 20])
def test_the_scale_follows_the_schedule(step):
    plain = tiny()
    changed, adapter = adapted("singlora", rank={"r": 2, "T": 10}, step=step)
    assert_close(changed(x_of()), dense_copy(adapter, plain)(x_of()))
    whole = adapted("singlora", rank={"r": 2, "T": 10}, step=10)[1]
    path = "layers.1.self_attn.o_proj"
    assert_close(adapter.delta(path), min(step / 10, 1) * whole.delta(path))


@pytest.mark.parametrize(("step", "frozen"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_frozen_columns_get_no_gradient(step, frozen):
    """LaMDA's B stops to train from its first column on, within 30 % of T steps."""
    changed, adapter = adapted("lamda", rank={"r": 4, "T": 10}, step=step)
    free, other = adapted("lamda", rank={"r": 4, "T": 10}, step=0)
    assert torch.equal(changed(x_of()), free(x_of()))
    for model in (changed, free):
        model(x_of()).square().sum().backward()
    for (key, factor), same in zip(adapter.factors().items(), random_factors(other), strict=True):
        n = frozen if key.endswith("__b") else 0
        grad = torch.zeros_like(factor) if factor.grad is None else factor.grad
        assert not grad[..., :n].any()
        assert_close(grad[..., n:], same.grad[..., n:])


def test_terms_of_old_tasks_are_frozen():
    changed, adapter = adapted("itl", rank={"k": 4, "old": 3})
    changed(x_of()).square().sum().backward()
    for key, factor in adapter.factors().items():
        if key.endswith(("__u", "__v")):
            assert not factor.grad[..., :3].any()
            assert factor.grad[..., 3:].any()


# -- what reads one input in different ways ---------------------


@pytest.mark.parametrize("name", ["lotr", "vera", "fourierft"])
def test_convolutions_of_one_shape_read_one_image_each_in_their_way(name):
    plain = seeded(Branches).double()
    model, adapter = adapted(name, copy.deepcopy(plain), targets=["plain", "wide"])
    assert [g.grid.n_sites for g in adapter.groups] == [2]
    x = inputs(2, 2, 7, 8)
    assert_close(model(x), dense_copy(adapter, plain)(x))


class InPlace(nn.Module):
    """Something is written to the input between two layers that read it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

    def forward(self, x):
        x = x * 1
        first = self.layers[0](x)
        return first + self.layers[1](x.tanh_())


def test_an_input_that_changed_is_read_anew():
    plain = seeded(InPlace).double()
    model, adapter = adapted("lotr", copy.deepcopy(plain))
    x = inputs(3, 6)
    with torch.no_grad():
        assert_close(model(x), dense_copy(adapter, plain)(x))


class Halves(nn.Module):
    """One input is read without and then with a gradient."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

    def forward(self, x):
        with torch.no_grad():
            first = self.layers[0](x)
        return first + self.layers[1](x)


def test_a_product_without_a_gradient_is_not_used_for_one():
    plain = seeded(Halves).double()
    model, adapter = adapted("lotr", copy.deepcopy(plain))
    dense, x = dense_copy(adapter, plain), inputs(3, 6)
    model(x).square().sum().backward()
    right = adapter.factors()["4x6__right"]
    dense(x).square().sum().backward()
    left, core = (adapter.factors()[f"4x6__{n}"] for n in ("left", "core"))
    scale = adapter.groups[0].scale()
    expected = scale * (left @ core[1]).T @ dense.layers[1].weight.grad
    assert_close(right.grad, expected)


class OddlyNamed(nn.Module):
    """A table and a Conv1D whose names say nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Embedding(10, 6), Conv1D(4, 6)

    def forward(self, positions):
        return self.second(self.first(positions))


@pytest.mark.parametrize("target", ["first", "second"])
def test_layouts_are_those_of_the_modules_not_of_their_names(target):
    plain = seeded(OddlyNamed).double()
    model, adapter = adapted("lora", copy.deepcopy(plain), targets=[target])
    positions = torch.arange(5)
    assert_close(model(positions), dense_copy(adapter, plain)(positions))


def test_padding_of_an_embedding_is_adapted_like_any_row():
    plain = seeded(Tables).double()
    plain.wte = nn.Embedding(10, 6, padding_idx=2).double()
    model, adapter = adapted("lora", copy.deepcopy(plain), targets=["wte"])
    positions = torch.tensor([[2, 3, 2]])
    assert_close(model(positions), dense_copy(adapter, plain)(positions))


# -- copies ---------------------


@few_methods
def test_a_deep_copy_works_and_is_independent(name):
    model, adapter = adapted(name, step=STEP)
    model(x_of()).sum().backward()
    with torch.no_grad():
        before = model(x_of())
        other, handle = copy.deepcopy((model, adapter))
        assert torch.equal(other(x_of()), before)
        for factor in random_factors(adapter):
            factor.mul_(2)
        changed = model(x_of())
        assert torch.equal(other(x_of()), before)
        assert not torch.equal(changed, before)
        set_random(handle, seed=9)
        assert torch.equal(model(x_of()), changed)
        assert_close(other(x_of()), dense_copy(handle, tiny())(x_of()))
    assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in model.parameters())
    handle.detach()
    assert torch.equal(other(x_of()), tiny()(x_of()))
    assert torch.equal(model(x_of()), changed)


def test_new_weights_are_those_of_the_numpy_core():
    _, adapter = adapted("bora")
    for path, w in new_weights(adapter).items():
        target = next(t for t in adapter.targets if t.path == path)
        found = target.hook.adapted_weight(target.module, target.hook.places[0])
        assert_close(found, torch.as_tensor(w))


def test_attach_refuses_a_spec_that_is_none():
    with pytest.raises(ArgumentError, match="name of a method or a Spec"):
        attach(tiny(), 3)  # pyright: ignore[reportArgumentType]
