"""Laws of a few tokens without gradient, as in generation: the same numbers by a shorter way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tdecomp_torch.forward.products import SiteProduct, _ByTerms
from tests.torch.cases import HIDDEN, METHODS, adapted, assert_close, dense_copy, inputs, tiny

CHAINS = ("lora", "lotr", "vera", "lora_xs", "tenslora_qkv_depth", "metatt")


def x_of() -> torch.Tensor:
    return inputs(1, 1, HIDDEN)


@torch.no_grad()
def quiet(model: Any, x: torch.Tensor | None = None) -> torch.Tensor:
    return model.eval()(x_of() if x is None else x)


@pytest.mark.parametrize("method", METHODS)
def test_one_token_is_that_of_the_dense_weights(method):
    model, adapter = adapted(method)
    dense = dense_copy(adapter, tiny())
    for x in (x_of(), inputs(3, 2, HIDDEN), inputs(0, 2, HIDDEN)):
        for _ in range(2):
            assert_close(quiet(model, x), dense(x))
        assert_close(model(x), dense(x))


@pytest.mark.parametrize("method", CHAINS)
def test_the_shorter_way_is_taken(method, monkeypatch):
    model, _ = adapted(method)
    taken = []
    quickly, onto = _ByTerms.quickly, _ByTerms.onto

    def counted(self: SiteProduct, *args: Any) -> Any:
        found = quickly(self, *args)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(_ByTerms, "quickly", counted)
    quiet(model)
    assert all(taken)
    assert len(taken) == sum(len(grid.sites) for grid in adapted(method)[1].grids)
    taken.clear()
    quiet(model, inputs(8, 8, HIDDEN))
    model(x_of())
    model.train()
    with torch.no_grad():
        model(x_of())
    assert not taken
    monkeypatch.setattr(_ByTerms, "onto", lambda *args, **kwargs: pytest.fail("the longer way"))
    quiet(model)
    monkeypatch.setattr(_ByTerms, "onto", onto)


@pytest.mark.parametrize("method", [*CHAINS, "randlora", "lorta"])
@pytest.mark.parametrize("how", ["in place", "data", "another tensor", "copy", "state"])
def test_what_is_written_to_factors_is_seen(method, how):
    model, adapter = adapted(method)
    before = quiet(model)
    quiet(model)
    if how == "copy":
        model = copy.deepcopy(model)
    pool = model.tdecomp_default
    with torch.no_grad():
        for key, factor in list(pool.named_parameters()):
            new = factor.detach() * 1.5
            if how == "data":
                factor.data = new
            elif how == "another tensor":
                setattr(pool, key, torch.nn.Parameter(new))
            elif how == "state":
                model.load_state_dict({f"tdecomp_default.{key}": new}, strict=False)
            else:
                factor.copy_(new)
    after = quiet(model)
    assert not torch.allclose(after, before)
    assert_close(after, model(x_of()))
    if how == "copy":
        assert torch.equal(quiet(adapter.model), before)


def test_inference_mode_autocast_and_other_precisions():
    model, adapter = adapted("lora")
    expected = quiet(model)
    with torch.inference_mode():
        assert torch.equal(model(x_of()), expected)
    assert torch.equal(quiet(model), expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.tdecomp_default.float()
    x = x_of().to(torch.bfloat16)
    assert_close(quiet(half, x).float(), expected.float(), 1 << 24)
    single = copy.deepcopy(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert quiet(single, x_of().float()).dtype == torch.bfloat16
    with adapter.disabled():
        assert_close(quiet(model), tiny()(x_of()))
    adapter.detach()
    assert_close(quiet(model), tiny()(x_of()))


def test_a_module_called_by_itself_computes_its_own():
    model, _ = adapted("lotr")
    layer = model.eval().layers[0].self_attn.q_proj
    with torch.no_grad():
        alone = layer(x_of())
    assert_close(alone, layer(x_of()))
