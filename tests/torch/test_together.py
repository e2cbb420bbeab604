"""Laws of several adapters that are merged at once."""

from __future__ import annotations

import copy

import pytest
import torch

from tdecomp import ArgumentError, DataError
from tdecomp_torch import attach, merge
from tests.torch.cases import HIDDEN, adapted, inputs, tiny

METHODS = {
    "a": ("lora", ["q_proj", "v_proj"]),
    "b": ("lotr", ["v_proj"]),
    "c": ("dora", ["o_proj"]),
}
WEIGHTS = (0.5, -2.0, 0.25)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def three(dtype=torch.float32):
    """A model with three adapters of different methods, which meet in some weights."""
    model = tiny().to(dtype)
    adapters = [
        adapted(method, model, name=name, targets=targets)[1]
        for name, (method, targets) in METHODS.items()
    ]
    return model, adapters


def weights_of(model) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if "tdecomp_" not in name}


def same_bits(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("keep", ["cpu", "device"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerging_restores_every_bit(dtype, keep):
    model, adapters = three(dtype)
    before, outputs = weights_of(model), model(inputs(2, 5, HIDDEN).to(dtype))
    merged = merge(adapters, WEIGHTS, keep=keep)
    assert all(adapter.is_merged for adapter in adapters)
    assert not same_bits(weights_of(model), before)
    later = adapted("lora", model, name="later", targets=["v_proj"])[1]
    later.merge()
    with pytest.raises(ArgumentError, match="'later' was merged after"):
        merged.unmerge()
    later.unmerge()
    later.detach()
    merged.unmerge()
    assert same_bits(weights_of(model), before)
    assert torch.equal(model(inputs(2, 5, HIDDEN).to(dtype)), outputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weights_are_the_weighted_sum_rounded_once(dtype):
    model, adapters = three(dtype)
    before = weights_of(model)
    alone = []
    for adapter in adapters:
        state = adapter.merged_state_dict()
        wide = {name: value.double() for name, value in state.items()}
        for target in adapter.targets:  # before it was rounded
            (place,) = target.hook.places
            wide[f"{target.path}.weight"] = target.hook.adapted_weight(
                target.module, place
            ).double()
        alone.append(wide)
    merge(adapters, WEIGHTS)
    for name, weight in weights_of(model).items():
        base = before[name].double()
        expected = base + sum(w * (one[name] - base) for w, one in zip(WEIGHTS, alone, strict=True))
        assert torch.equal(weight, expected.to(dtype)), name


def test_the_order_does_not_count_and_one_alone_is_its_own_merge():
    model, (a, b, c) = three()
    merged = merge([a, b, c], WEIGHTS)
    first = weights_of(model)
    merged.unmerge()
    other = merge([c, a, b], (WEIGHTS[2], WEIGHTS[0], WEIGHTS[1]))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, first[name], rtol=1e-6, atol=1e-7)
    other.unmerge()
    one = merge([a])
    alone = weights_of(model)
    one.unmerge()
    a.merge()
    assert same_bits(weights_of(model), alone)


def test_numbers_that_are_not_finite_change_nothing():
    model, adapters = three()
    before = weights_of(model)
    with torch.no_grad():
        next(iter(adapters[1].factors().values()))[0] = torch.nan
    with pytest.raises(DataError, match="adapter 'b' is not finite at layers.0.self_attn.v_proj"):
        merge(adapters)
    assert same_bits(weights_of(model), before)
    assert not any(adapter.is_merged for adapter in adapters)


def test_weights_that_do_not_fit_their_dtype_change_nothing():
    model, adapters = three(torch.float16)
    before = weights_of(model)
    with pytest.raises(DataError, match="does not fit float16"):
        merge(adapters[:1], [1e8])
    assert same_bits(weights_of(model), before)


def test_shared_weights_are_untied_and_tied_again():
    model = tiny()
    first, second = (layer.self_attn for layer in model.layers)
    second.q_proj.weight = first.q_proj.weight
    target = ["layers.0.self_attn.q_proj"]
    adapters = [adapted("lora", model, name=name, targets=target)[1] for name in "ab"]
    before = weights_of(model)
    with pytest.raises(Exception, match="untie=True"):
        merge(adapters)
    merged = merge(adapters, untie=True)
    assert torch.equal(second.q_proj.weight, before["layers.0.self_attn.q_proj.weight"])
    assert not torch.equal(first.q_proj.weight, second.q_proj.weight)
    merged.unmerge()
    assert second.q_proj.weight is first.q_proj.weight
    assert same_bits(weights_of(model), before)


def refusals():
    model, (a, b, c) = three()
    other = attach(copy.deepcopy(tiny()), "lora", name="other", targets=["q_proj"], rank=2)
    yield (lambda: merge([])), "no adapters"
    yield (lambda: merge([a, a])), "given twice"
    yield (lambda: merge([a, b], [1.0])), "1 weights for 2 adapters"
    yield (lambda: merge([a, b], [1.0, float("nan")])), "finite numbers"
    yield (lambda: merge([a, other])), "another model"
    yield (lambda: merge(model, "OUT")), "list of adapters.*apply"
    yield (lambda: merge([a], keep="disk")), "keep='disk'"
    merged = merge([a, b], keep=None)
    yield (lambda: merge([b, c])), "'b' is merged already"
    yield (lambda: a.unmerge()), "without keeping"
    yield (lambda: merged.unmerge()), "without keeping"


def test_what_cannot_be_merged_is_refused():
    for act, said in refusals():
        with pytest.raises(ArgumentError, match=said):
            act()


def test_one_of_several_is_not_unmerged_alone():
    _, (a, b, _) = three()
    merged = merge([a, b])
    with pytest.raises(ArgumentError, match="'a', 'b' were merged together"):
        a.unmerge()
    merged.unmerge()
    with pytest.raises(ArgumentError, match="not merged with the others"):
        merged.unmerge()
