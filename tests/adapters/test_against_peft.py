"""Our rows against PEFT's own layers, given the same factors; the factors are carried over by name.

One small model for all: a layer with out > in, and one with out < in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from tdecomp._xp import tol
from tdecomp.adapters import Bound, Grid, bind, method
from tdecomp.adapters.wraps import WRAPS

Arrays = dict[str, Any]
LAYERS = {"up": (36, 24), "down": (12, 36)}  # (out, in)
LARGEST = {"out": 36, "in": 36}  # what the layers share is as large as this


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        for name, (n_out, n_in) in LAYERS.items():
            setattr(self, name, nn.Linear(n_in, n_out))

    def forward(self, x):
        return self.down(self.up(x))


def lora(layer: Any) -> Arrays:
    return {"b": layer.lora_B["default"].weight, "a": layer.lora_A["default"].weight}


def dora(layer: Any) -> Arrays:
    return lora(layer) | {"magnitude": layer.lora_magnitude_vector["default"].weight}


def vera(layer: Any) -> Arrays:
    return {
        "b": layer.vera_lambda_b["default"],
        "up": layer.vera_B["default"],
        "d": layer.vera_lambda_d["default"],
        "down": layer.vera_A["default"],
    }


def hira(layer: Any) -> Arrays:
    return {"b": layer.hira_B["default"], "a": layer.hira_A["default"]}


def loha(layer: Any) -> Arrays:
    return {
        "b1": layer.hada_w1_a["default"],
        "a1": layer.hada_w1_b["default"],
        "b2": layer.hada_w2_a["default"],
        "a2": layer.hada_w2_b["default"],
    }


def lokr(layer: Any) -> Arrays:
    second = {"b": layer.lokr_w2_a["default"], "a": layer.lokr_w2_b["default"]}
    return {"left": layer.lokr_w1["default"]} | second


def lokr_full(layer: Any) -> Arrays:
    return {"left": layer.lokr_w1["default"], "right": layer.lokr_w2["default"]}


def gralora(layer: Any) -> Arrays:
    """PEFT keeps ``(in block, y, (out block, s))`` and ``(out block, (in block, s), x)``."""
    a, b = layer.gralora_A["default"], layer.gralora_B["default"]
    k = len(a)
    return {
        "b": b.unflatten(1, (k, -1)),  # (p, q, s, x)
        "a": a.unflatten(2, (k, -1)).permute(0, 2, 3, 1),  # (q, p, s, y)
    }


def gralora_hybrid(layer: Any) -> Arrays:
    b, a = (side["default"].weight for side in (layer.gralora_B_general, layer.gralora_A_general))
    whole = {"b_whole": b.unflatten(0, (2, -1)), "a_whole": a.unflatten(1, (2, -1))}
    return gralora(layer) | whole


def miss(layer: Any) -> Arrays:
    return {"block": layer.miss_block["default"].T}


def bat(layer: Any) -> Arrays:
    return {"block": layer.miss_block["default"]}


def c3a(layer: Any) -> Arrays:
    return {"kernel": layer.c3a_kernel["default"]}


def fourierft(layer: Any) -> Arrays:
    """PEFT keeps where the coefficients stand, we keep what the waves there look like."""
    (n_out, n_in), (rows, columns) = layer.base_layer.weight.shape, layer.indices["default"]
    up = 2 * torch.pi * torch.outer(torch.arange(n_out).double(), rows.double()) / n_out
    down = 2 * torch.pi * torch.outer(columns.double(), torch.arange(n_in).double()) / n_in
    return {
        "spectrum": layer.fourierft_spectrum["default"],
        "cos_out": up.cos(),
        "cos_in": down.cos(),
        "sin_out": up.sin(),
        "sin_in": down.sin(),
    }


def randlora(layer: Any) -> Arrays:
    """PEFT joins (r, n) on one side and (n, r) on the other: its random bases, in our order."""
    strength, weights = layer.randlora_lambda["default"], layer.randlora_gamma["default"]
    (r, n), short = strength.shape, weights.shape[1]
    long = max(layer.base_layer.weight.shape)
    bases = layer.randlora_B["default"][:long, :n]
    return {
        "bases": bases.reshape(long, r, n).transpose(1, 2),
        "strength": strength,
        "base": layer.randlora_A["default"][:, 0, :short],
        "weights": weights,
    }


@dataclass(frozen=True)
class Case:
    """One method in both libraries."""

    row: str
    config: Callable[..., Any]
    options: Mapping[str, Any]
    carry: Callable[[Any], Arrays]
    rank: Any = None
    alpha: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    dtype: str = "float64"  # that PEFT computes in

    def __str__(self) -> str:
        return f"{self.row}-{'-'.join(map(str, self.options.values()))}"

    def bound(self, shape: tuple[int, int]) -> Bound:
        grid = Grid.full(shape, layer=1)
        return bind(method(self.row), grid, self.rank, alpha=self.alpha, sizes=self.sizes)

    def arrays(self, layer: Any) -> Arrays:
        """PEFT's factors as ours, float64; constants that PEFT does not store as we start them."""
        w = weight(layer)
        bound = self.bound(w.shape)
        found = {n: x.detach().double().numpy().copy() for n, x in self.carry(layer).items()}
        assert found.keys() >= {f.name for f in bound.factors if f.trainable}
        modes = {f.name: f.modes for f in bound.factors}
        given = {n: x[None] if "site" in modes[n] else x for n, x in found.items()}
        return bound.start(lambda _: w, given=given)


_LORA = {"r": 4, "lora_alpha": 6}
_GRALORA = {"r": 4, "alpha": 6, "gralora_k": 2}
_SPLIT = {"r": 4, "k": 2}
_FOURIER = {"n_frequency": 30, "scaling": 7.0}
CASES = (
    Case("lora", peft.LoraConfig, _LORA, lora, 4, 6),
    Case("rslora", peft.LoraConfig, _LORA | {"use_rslora": True}, lora, 4, 6),
    Case("dora", peft.LoraConfig, _LORA | {"use_dora": True}, dora, 4, 6),
    Case("vera", peft.VeraConfig, {"r": 4}, vera, 4, sizes=LARGEST),
    Case("hira", peft.HiraConfig, {"r": 4}, hira, 4),
    Case("loha", peft.LoHaConfig, {"r": 4, "alpha": 6}, loha, 4, 6),
    Case("lokr", peft.LoKrConfig, {"r": 2, "alpha": 6}, lokr, 2, 6),
    Case("lokr_full", peft.LoKrConfig, {"r": 8, "alpha": 6}, lokr_full, alpha=6 / 8),
    Case("gralora", peft.GraloraConfig, _GRALORA, gralora, _SPLIT, 6),
    Case(
        "gralora_hybrid",
        peft.GraloraConfig,
        _GRALORA | {"hybrid_r": 3},
        gralora_hybrid,
        _SPLIT | {"t": 3},
        6,
    ),
    Case("miss", peft.MissConfig, {"r": 4}, miss, 4),
    Case("miss", peft.MissConfig, {"r": 5}, miss, 5),  # divides neither width
    Case("bat", peft.MissConfig, {"r": 4, "init_weights": "bat"}, bat, 4),
    Case("c3a", peft.C3AConfig, {"block_size": 4}, c3a, {"b": 4}, dtype="float32"),
    Case("c3a", peft.C3AConfig, {"block_size": 12}, c3a, {"b": 12}, dtype="float32"),
    Case("fourierft", peft.FourierFTConfig, _FOURIER, fourierft, 30, 7.0, dtype="float32"),
    Case("randlora", peft.RandLoraConfig, {"r": 4, "randlora_alpha": 6}, randlora, 4, 6),
    Case("randlora", peft.RandLoraConfig, {"r": 5, "randlora_alpha": 6}, randlora, 5, 6),
)


def case_of(row: str) -> Case:
    return next(case for case in CASES if case.row == row)


def adapted(case: Case) -> Any:
    """PEFT's model as it starts, float64."""
    torch.manual_seed(0)
    config = case.config(target_modules=list(LAYERS), **case.options)
    return peft.get_peft_model(TwoLayers(), config).double()


def filled(case: Case) -> Any:
    """PEFT's model with random values in all that it trains."""
    model = adapted(case)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


def layers(model: Any):
    return [getattr(model.base_model.model, name) for name in LAYERS]


def weight(layer: Any) -> np.ndarray:
    return layer.base_layer.weight.detach().numpy().copy()


table = pytest.mark.parametrize("case", CASES, ids=str)


def assert_close(found: np.ndarray, expected: np.ndarray, case: Case) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * tol(case.dtype, 36 * 36))


@table
def test_the_adapted_weight_is_what_peft_merges(case):
    for layer in layers(filled(case)):
        w, arrays = weight(layer), case.arrays(layer)
        layer.merge()
        found = case.bound(w.shape).weight(w, arrays, 0)
        assert np.abs(found - w).max() > 0.01
        assert_close(found, weight(layer), case)


@table
def test_the_adapted_weight_multiplies_x_as_peft_does(case):
    for layer in layers(filled(case)):
        w = weight(layer)
        x = torch.randn(5, 3, w.shape[1], dtype=torch.float64)
        with torch.no_grad():
            expected = layer(x).numpy()
        bias = layer.base_layer.bias.detach().numpy()
        found = x.numpy() @ case.bound(w.shape).weight(w, case.arrays(layer), 0).T + bias
        assert_close(found, expected, case)


@table
def test_as_much_is_trained_as_in_peft(case):
    model = adapted(case)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(case.bound(shape).n_trainable for shape in LAYERS.values()) == trained


@table
def test_it_starts_at_zero_where_peft_does(case):
    moved = []
    for layer in layers(adapted(case)):
        w = weight(layer)
        layer.merge()
        moved.append(np.abs(weight(layer) - w).max())
    spec = method(case.row)
    assert spec.starts_at_zero == (max(moved) < tol("float32", 36))  # PEFT starts in float32


def frequencies(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Of the waves that are the columns, from their second rows."""
    turns = np.arctan2(sin[1], cos[1]) / (2 * np.pi)
    return np.rint(turns * len(cos)).astype(int) % len(cos)


def test_our_waves_are_those_of_peft_at_our_frequencies():
    case = case_of("fourierft")
    for layer in layers(filled(case)):
        bound = case.bound(layer.base_layer.weight.shape)
        spectrum = layer.fourierft_spectrum["default"].detach().numpy()
        arrays = bound.start() | {"spectrum": spectrum[None]}
        rows = frequencies(arrays["cos_out"], arrays["sin_out"])
        columns = frequencies(arrays["cos_in"].T, arrays["sin_in"].T)
        assert len(set(zip(rows, columns, strict=True))) == len(rows)
        layer.indices["default"] = torch.from_numpy(np.stack([rows, columns]))
        expected = layer.get_delta_weight("default").detach().numpy()
        assert_close(bound.delta(arrays, 0), expected, case)


def test_doras_norm_is_out_of_the_gradient_as_in_peft():
    case = case_of("dora")
    for layer in layers(filled(case)):
        x = torch.randn(5, layer.in_features, dtype=torch.float64)
        theirs = dora(layer)
        layer(x).square().sum().backward()
        ours = {n: p.detach().clone().requires_grad_() for n, p in theirs.items()}
        delta = 6 / 4 * ours["b"] @ ours["a"]
        base = layer.base_layer
        w = WRAPS["rows"].apply(base.weight, delta, ours, torch.Tensor.detach)
        nn.functional.linear(x, w, base.bias).square().sum().backward()
        for name, parameter in theirs.items():
            assert_close(ours[name].grad.numpy(), parameter.grad.numpy(), case)


def test_kasa_takes_off_what_peft_does():
    options = {"r": 4, "lora_alpha": 6, "kasa_config": peft.KasaConfig()}
    case = Case("kasa", peft.LoraConfig, options, lora, 4, 6)
    whole = TwoLayers().double()
    config = case.config(target_modules=list(LAYERS), **options)
    model = peft.get_peft_model(deepcopy(whole), config)
    for name, layer in zip(LAYERS, layers(model), strict=True):
        w = getattr(whole, name).weight.detach().numpy()
        theirs = lora(layer) | {"sigma": layer.lora_diag["default"]}
        nn.init.normal_(theirs["b"])
        found = {n: x.detach().double().numpy()[None] for n, x in theirs.items()}
        bound = case.bound(w.shape)
        layer.merge()
        expected, start = weight(layer), bound.start(lambda _, w=w: w, given=found)
        np.testing.assert_allclose(
            bound.weight(w, start, 0), expected, rtol=0, atol=5 * tol("float32", 36 * 36)
        )


def test_scales_are_those_of_peft_by_default():
    for row, factor in (("loha", 1.0), ("lokr", 1.0), ("gralora", 2.0), ("randlora", 20.0)):
        assert bind(method(row), Grid.full((24, 36), layer=1), {"r": 4}).scale() == factor
