"""Published starts against PEFT's own layers; what residual starts and steps promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tdecomp.starts import RULES
from tdecomp_torch import activations, attach, capture, captured, gradients
from tests.torch.cases import seeded, tiny
from tests.torch.test_capture import BATCHES, gradients_of, loss

R, ALPHA = 2, 6.0
NAMES = ("first", "last")


class Chain(nn.Module):
    """Two weights that are not square, without biases: odd in its input."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 10, bias=False), nn.Linear(10, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def chain() -> Chain:
    return seeded(Chain)


def tokens() -> Tensor:
    """One example of many tokens, of mean zero, as PEFT's CorDA takes them."""
    x = seeded(lambda: torch.randn(1, 60, 12)) * torch.linspace(0.3, 2, 12)
    return torch.cat([x, -x], dim=1)


def config(init: str, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=[*NAMES], init_lora_weights=init, **options
    )


def theirs(init: str) -> Any:
    """PEFT's model after its own preparation, on the same batch."""
    peft = pytest.importorskip("peft")
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model, x = chain(), tokens()
    if init == "lora_ga":
        given = config(init, lora_ga_config=LoraGAConfig())
        preprocess_loraga(model, given, lambda: loss(model, x.requires_grad_()).backward())
        return peft.get_peft_model(model, given)
    if init == "corda":
        given = config(init, corda_config=CordaConfig(corda_method="ipm"))
        preprocess_corda(model, given, lambda: model(x))
        return peft.get_peft_model(model, given)
    if init == "eva":
        given = config(init, eva_config=peft.EvaConfig(rho=1.0))
        found = peft.get_peft_model(model, given, low_cpu_mem_usage=True)
        peft.initialize_lora_eva_weights(
            found,
            dataloader=[x.reshape(-1, 12)] * 3,
            forward_fn=lambda model, inputs: model(inputs),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
        return found
    return peft.get_peft_model(model, config(init))


def ours(rule: str) -> tuple[nn.Module, Any]:
    model, batches = chain(), [tokens()]
    start: Any = rule
    if "gradients" in RULES[rule].needs:
        start = gradients(batches, loss, rule=rule)
    elif "inputs" in RULES[rule].needs:
        start = activations(batches, rule=rule)
    return model, attach(model, "lora", rank=R, alpha=ALPHA, targets=[*NAMES], start=start)


def pairs(adapter: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        site.path: tuple(adapter.pool.factors(m)[n][k].detach().double().numpy() for n in "ba")
        for m, grid in enumerate(adapter.grids)
        for k, site in enumerate(grid.sites)
    }


def peft_pairs(model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    layers = {name: model.base_model.model.get_submodule(name) for name in NAMES}
    return {
        name: tuple(
            part["default"].weight.detach().double().numpy() for part in (one.lora_B, one.lora_A)
        )
        for name, one in layers.items()
    }


def same_lines(a: np.ndarray, b: np.ndarray) -> None:
    """Rows that are equal up to sign and length."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    assert np.allclose(np.abs(np.sum(a * b, axis=1)), 1, atol=1e-4)


@pytest.mark.parametrize("rule", ["pissa", "olora", "corda"])
def test_weights_are_taken_apart_as_peft_takes_them(rule):
    """Its bases, what it trains and what it leaves of the weight.

    PEFT's CorDA divides the inputs by their largest entry, so that B is longer and A shorter than
    ours by one number; their product is the same.
    """
    peft_model, (model, adapter) = theirs(rule), ours(rule)
    found, expected = pairs(adapter), peft_pairs(peft_model)
    for name in NAMES:
        (b, a), (their_b, their_a) = found[name], expected[name]
        assert np.allclose(b @ a, their_b @ their_a, atol=1e-4 * np.abs(b @ a).max())
        same_lines(b.T, their_b.T)
        same_lines(a, their_a)
        if rule != "corda":
            assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(their_b), rel=1e-4)
        base = peft_model.base_model.model.get_submodule(name).base_layer.weight.detach().numpy()
        left = model.get_submodule(name).weight.detach().numpy() - ALPHA / R * b @ a
        assert np.allclose(left, base, atol=1e-4)


def test_bases_of_inputs_are_those_of_peft_where_their_mean_is_zero():
    """PEFT's principal components are centred, ours are not."""
    found, expected = pairs(ours("eva")[1]), peft_pairs(theirs("eva"))
    for name in NAMES:
        same_lines(found[name][1], expected[name][1])
        assert not found[name][0].any()
        assert not expected[name][0].any()


def test_lora_ga_has_the_bases_of_peft_and_the_lengths_of_the_paper():
    """PEFT multiplies B, and only B, by the singular values and by ``out^¼ / √γ``."""
    found, expected = pairs(ours("lora_ga")[1]), peft_pairs(theirs("lora_ga"))
    g = gradients_of(chain(), [tokens()])[0]
    for name in NAMES:
        (b, a), (their_b, their_a) = found[name], expected[name]
        same_lines(a, their_a)
        same_lines(b.T, their_b.T)
        size = len(b) ** 0.25 / 4
        s = np.linalg.svd(g[name].double().numpy(), compute_uv=False)[R : 2 * R]
        assert np.allclose(np.linalg.norm(a, axis=1), size, rtol=1e-4)
        assert np.allclose(np.linalg.norm(b, axis=0), size, rtol=1e-4)
        assert np.allclose(np.linalg.norm(their_a, axis=1), 1, rtol=1e-4)
        assert np.allclose(np.linalg.norm(their_b, axis=0), size * s, rtol=1e-3)


# -- what is taken off again changes nothing ---------------------

RESIDUAL = [name for name, rule in RULES.items() if rule.residual]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RESIDUAL)
def test_a_residual_start_leaves_the_output_to_rounding(rule, dtype):
    batches = [x.to(dtype) for x in BATCHES]
    before = tiny(dtype)(batches[0])
    model = tiny(dtype)
    start = rule
    if RULES[rule].needs - {"weights"}:
        seen = capture(tiny(dtype), batches, loss=loss, gradients="whole", inputs="whole")
        start = captured(seen, rule)
    attach(model, "lora", rank=R, start=start)
    gap = (model(batches[0]) - before).float().norm() / before.float().norm()
    assert gap < 4 * torch.finfo(dtype).eps
    assert model(batches[0]).dtype == dtype


@pytest.mark.parametrize("rule", RESIDUAL)
def test_a_start_folded_into_bfloat16_moves_every_weight_by_its_rounding(rule):
    batches = [x.bfloat16() for x in BATCHES]
    model, plain = tiny(torch.bfloat16), tiny(torch.bfloat16)
    start = rule
    if RULES[rule].needs - {"weights"}:
        seen = capture(plain, batches, loss=loss, gradients="whole", inputs="whole")
        start = captured(seen, rule)
    adapter = attach(model, "lora", rank=R, start=start, fold=True)
    for grid in adapter.grids:
        for site in grid.sites:
            before = plain.get_submodule(site.module).weight.double()
            folded = model.get_submodule(site.module).weight.double()
            moved = (folded + adapter.delta(site.path).double() - before).abs()
            largest = torch.maximum(folded.abs(), before.abs())
            assert (moved <= torch.finfo(torch.bfloat16).eps * largest + 1e-6).all()


# -- a step is a step of gradient descent ---------------------


@pytest.mark.parametrize(("row", "rank"), [("lora", 2), ("lotr", 3), ("tt_lora", 2)])
@pytest.mark.parametrize("size", [1e-6, 1e-2])
def test_the_loss_after_a_step_is_that_of_the_dense_weights(row, rank, size):
    """``W - η Ĝ`` put into the weights; for small η the loss falls by ``η ⟨G, Ĝ⟩``."""
    model, dense = tiny(), tiny()
    start = gradients(BATCHES, loss, rule="step", size=size)
    adapter = attach(model, row, rank=rank, tokens=64, start=start)
    paths = [site.path for grid in adapter.grids for site in grid.sites]
    steps = {path: adapter.delta(path).detach().double() for path in paths}
    with torch.no_grad():
        for path, step in steps.items():
            dense.get_submodule(path).weight += step
    total = lambda model: float(sum(loss(model, x) for x in BATCHES).detach()) / len(BATCHES)
    assert total(model) == pytest.approx(total(dense), rel=1e-6)
    if size < 1e-4:
        each = gradients_of(tiny(), BATCHES)
        g = {path: torch.stack([own[path] for own in each]).mean(0).double() for path in paths}
        fall = -sum(float((g[path] * step).sum()) for path, step in steps.items())
        assert fall > 0
        assert total(tiny()) - total(dense) == pytest.approx(fall, rel=1e-2)


def test_the_step_of_a_lora_is_the_truncated_gradient():
    adapter = attach(tiny(), "lora", rank=R, start=gradients(BATCHES, loss, rule="step", passes=6))
    each = gradients_of(tiny(), BATCHES)
    for grid in adapter.grids:
        paths = [site.path for site in grid.sites]
        best = []
        for path in paths:
            u, s, vh = np.linalg.svd(torch.stack([g[path] for g in each]).mean(0).numpy())
            best.append((u[:, :R] * s[:R]) @ vh[:R])
        eta = 1e-3 / np.sqrt(np.mean(np.square(best)))
        for path, own in zip(paths, best, strict=True):
            found = adapter.delta(path).detach().double().numpy()
            assert np.allclose(found, -eta * own, atol=1e-4 * eta * np.abs(own).max())
