"""Our rows against PEFT's own layers, given the same factors; the factors are carried over by name.

One small model for all: a layer with out > in, and one with out < in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import nn

from tdecomp._xp import tol
from tdecomp.adapters import Bound, Grid, bind, method
from tdecomp.adapters.wraps import WRAPS

Arrays = dict[str, Any]
LAYERS = {"up": (36, 24), "down": (12, 36)}  # (out, in)
LARGEST = {"out": 36, "in": 36}  # what the layers share is as large as this


class TwoLayers(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        for name, (n_out, n_in) in LAYERS.items():
            setattr(self, name, nn.Linear(n_in, n_out, bias=bias))

    def forward(self, x):
        return self.down(self.up(x))


def lora(layer: Any) -> Arrays:
    return {"b": layer.lora_B["default"].weight, "a": layer.lora_A["default"].weight}


def dora(layer: Any) -> Arrays:
    return lora(layer) | {"magnitude": layer.lora_magnitude_vector["default"].weight}


def delora(layer: Any) -> Arrays:
    """The norm of the weight is made by us."""
    names = {"b": layer.delora_B, "a": layer.delora_A}
    found = {name: theirs["default"] for name, theirs in names.items()}
    return found | {"strength": layer.delora_lambda["default"].squeeze()}


def vera(layer: Any) -> Arrays:
    return {
        "b": layer.vera_lambda_b["default"],
        "up": layer.vera_B["default"],
        "d": layer.vera_lambda_d["default"],
        "down": layer.vera_A["default"],
    }


def pvera(layer: Any) -> Arrays:
    """The second half of what makes the mean gives the variance, which is not drawn from here."""
    return {
        "b": layer.pvera_lambda_b["default"],
        "up": layer.pvera_B["default"],
        "d": layer.pvera_lambda_d["default"],
        "down": layer.pvera_A["default"][: layer.pvera_lambda_d["default"].numel() // 2],
    }


def ia3(layer: Any) -> Arrays:
    return {"l": layer.ia3_l["default"].flatten() - 1}


def glora(layer: Any) -> Arrays:
    sides = {"a": layer.glora_A["default"], "b": layer.glora_B["default"]}
    found = {f"{name}_up": side.Xd for name, side in sides.items()}
    return found | {f"{name}_down": side.Xu for name, side in sides.items()}


def osf(layer: Any) -> Arrays:
    names = {"u": "U_low", "sigma": "S_low", "vh": "V_low"}
    found = {n: layer.osf_svd_params["default"][theirs] for n, theirs in names.items()}
    start = {f"{n}_0": getattr(layer, f"_osf_{theirs}_init") for n, theirs in names.items()}
    return found | {n: kept["default"] for n, kept in start.items()}


def adamss(layer: Any) -> Arrays:
    """PEFT keeps the rows of each cluster apart."""
    clusters = layer.seg_result["default"]
    b = torch.zeros(layer.out_features, 1, dtype=torch.float64)
    assign = torch.zeros(layer.out_features, len(clusters))
    for k, (rows, part) in enumerate(
        zip(clusters.values(), layer.adamss_B["default"], strict=True)
    ):
        assign[rows, k], b[rows] = 1, part.detach().double()
    return {
        "assign": assign,
        "b": b,
        "a": torch.stack([*layer.adamss_A["default"]]),
        "vh": layer.adamss_newB["default"],
    }


def uni_lora(layer: Any) -> Arrays:
    """PEFT keeps which number stands where, and by what it is divided."""
    theta = layer.unilora_theta_d["default"]
    found: Arrays = {"theta": theta}
    for side in "AB":
        scales = getattr(layer, f"unilora_scales_{side}")["default"].double()
        places = getattr(layer, f"unilora_indices_{side}")["default"].long()
        found[f"pick_{side.lower()}"] = (
            nn.functional.one_hot(places, len(theta)) * scales[..., None]
        )
    return found


def waveft(layer: Any) -> Arrays:
    """What every coefficient gives alone, as the product of a column and a row."""
    n = layer.waveft_n_frequency["default"]
    spectrum = layer.waveft_spectrum["default"].detach().clone()
    rows, columns = [], []
    with torch.no_grad():
        for one in torch.eye(n, dtype=spectrum.dtype):
            layer.waveft_spectrum["default"].copy_(one)
            wave = layer.get_delta_weight("default") / layer.waveft_scaling["default"]
            rows.append(wave[:, wave.abs().sum(0).argmax()])
            columns.append(rows[-1] @ wave / rows[-1].square().sum())
        layer.waveft_spectrum["default"].copy_(spectrum)
    return {"spectrum": spectrum, "rows": torch.stack(rows, 1), "columns": torch.stack(columns)}


def bd_lora(layer: Any) -> Arrays:
    a = layer.lora_A["default"].weight.unflatten(0, (2, -1))
    return {"b": layer.lora_B["default"].weight.unflatten(1, (2, -1)), "a": a}


def bd_lora_out(layer: Any) -> Arrays:
    a = layer.lora_A["default"].weight.unflatten(0, (2, -1))
    return {"b": layer.lora_B["default"].weight.unflatten(0, (2, -1)), "a": a}


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
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.row}-{'-'.join(map(str, self.options.values()))}"

    def bound(self, shape: tuple[int, int]) -> Bound:
        grid = Grid.full(shape, layer=1)
        rank = self.rank(min(shape)) if callable(self.rank) else self.rank
        return bind(method(self.row), grid, rank, alpha=self.alpha, sizes=self.sizes)

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
_NO_BIAS = {"config_C": "none", "config_D_E": "none"}
_BLOCKS = peft.tuners.lora.config.BdLoraConfig
_SPLIT_IN = {"use_bdlora": _BLOCKS(target_modules_bd_a=list(LAYERS), nblocks=2)}
_SPLIT_OUT = {"use_bdlora": _BLOCKS(target_modules_bd_b=list(LAYERS), nblocks=2)}
CASES = (
    Case("lora", peft.LoraConfig, _LORA, lora, 4, 6),
    Case("rslora", peft.LoraConfig, _LORA | {"use_rslora": True}, lora, 4, 6),
    Case("dora", peft.LoraConfig, _LORA | {"use_dora": True}, dora, 4, 6),
    Case("vera", peft.VeraConfig, {"r": 4}, vera, 4, sizes=LARGEST),
    Case("mica", peft.LoraConfig, _LORA | {"init_lora_weights": "mica"}, lora, 4, 6),
    Case("delora", peft.DeloraConfig, {"r": 4}, delora, 4, dtype="float32"),
    Case("pvera", peft.PveraConfig, {"r": 4}, pvera, 4, sizes=LARGEST),
    Case("ia3", peft.IA3Config, {"feedforward_modules": []}, ia3, bias=False),  # scaled, too
    Case("ia3_in", peft.IA3Config, {"feedforward_modules": list(LAYERS)}, ia3),
    Case("glora", peft.GloraConfig, {"r": 4} | _NO_BIAS, glora, 4),
    Case("osf", peft.OSFConfig, {"effective_rank": 8}, osf, lambda short: short - 8),
    Case(
        "adamss",
        peft.AdamssConfig,
        {"r": 6, "num_subspaces": 3},
        adamss,
        {"r": 6, "k": 3},
        bias=False,  # is a column of the weight
    ),
    Case(
        "uni_lora", peft.UniLoraConfig, {"r": 4, "theta_d_length": 50}, uni_lora, {"r": 4, "d": 50}
    ),
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
    Case(
        "miss_mini",
        peft.MissConfig,
        {"r": 5, "init_weights": "mini", "mini_r": 6},
        miss,
        {"r": 5, "m": 6},
    ),
    Case("bat", peft.MissConfig, {"r": 4, "init_weights": "bat"}, bat, 4),
    Case("c3a", peft.C3AConfig, {"block_size": 4}, c3a, {"b": 4}, dtype="float32"),
    Case("c3a", peft.C3AConfig, {"block_size": 12}, c3a, {"b": 12}, dtype="float32"),
    Case("fourierft", peft.FourierFTConfig, _FOURIER, fourierft, 30, 7.0, dtype="float32"),
    Case("waveft", peft.WaveFTConfig, _FOURIER, waveft, 30, 7.0, dtype="float32"),
    Case("bd_lora", peft.LoraConfig, _LORA | _SPLIT_IN, bd_lora, {"r": 4, "n": 2}, 6),
    Case("bd_lora_out", peft.LoraConfig, _LORA | _SPLIT_OUT, bd_lora_out, {"r": 4, "n": 2}, 6),
    Case("randlora", peft.RandLoraConfig, {"r": 4, "randlora_alpha": 6}, randlora, 4, 6),
    Case("randlora", peft.RandLoraConfig, {"r": 5, "randlora_alpha": 6}, randlora, 5, 6),
)


def case_of(row: str) -> Case:
    return next(case for case in CASES if case.row == row)


def adapted(case: Case) -> Any:
    """PEFT's model as it starts, float64."""
    torch.manual_seed(0)
    config = case.config(target_modules=list(LAYERS), **case.options)
    model = peft.get_peft_model(TwoLayers(case.bias), config).double().eval()
    for layer in layers(model):
        if hasattr(layer, "dtype"):  # AdaMSS keeps that of its start
            layer.dtype = torch.float64
    return model


def filled(case: Case) -> Any:
    """PEFT's model with random values in all that it trains."""
    model = adapted(case)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_() if parameter.numel() > 1 else parameter.fill_(1.5)
    return model


def layers(model: Any):
    return [getattr(model.base_model.model, name) for name in LAYERS]


def weight(layer: Any) -> np.ndarray:
    return layer.base_layer.weight.detach().numpy().copy()


SLOW = {"adamss": [pytest.mark.slow]}  # imports scikit-learn
table = pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=SLOW.get(case.row, [])) for case in CASES]
)


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
        bias = layer.base_layer.bias.detach().numpy() if case.bias else 0
        found = x.numpy() @ case.bound(w.shape).weight(w, case.arrays(layer), 0).T + bias
        assert_close(found, expected, case)


@table
def test_as_much_is_trained_as_in_peft(case):
    model = adapted(case)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    bounds = [case.bound(shape) for shape in LAYERS.values()]
    shared = sum(  # held once for all layers
        math.prod(bounds[0].shapes[f.name]) for f in bounds[0].factors if f.across and f.trainable
    )
    assert sum(b.n_trainable for b in bounds) - (len(bounds) - 1) * shared == trained


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


def test_qa_lora_pools_its_inputs_as_peft_does():
    """PEFT has it for GPTQ's weights alone, with nothing to merge: its forward pass by itself."""
    a, b = nn.Linear(6, 4, bias=False).double(), nn.Linear(4, 12, bias=False).double()
    dropout = nn.Identity()
    layer = SimpleNamespace(
        **{name: {"default": x} for name, x in [("lora_A", a), ("lora_B", b)]},
        lora_dropout={"default": dropout},
        scaling={"default": 1.5},
        qalora_group_size={"default": 4},
        in_features=24,
        training=False,
    )
    x = torch.randn(5, 3, 24, dtype=torch.float64)
    zero = torch.zeros(5, 3, 12, dtype=torch.float64)
    expected = QALoraLinearVariant.forward(layer, "default", x, zero).detach().numpy()
    row = bind(method("qa_lora"), Grid.full((12, 24), layer=1), {"r": 4, "g": 4}, alpha=6)
    arrays = {n: m.weight.detach().numpy()[None] for n, m in (("a", a), ("b", b))}
    found = x.numpy() @ row.delta(row.start(given=arrays), 0).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=tol("float64", 36 * 36) * 10)
    assert row.n_trainable == a.weight.numel() + b.weight.numel()


def test_our_wavelets_are_those_of_peft_at_our_places():
    case = case_of("waveft")
    for layer in layers(filled(case)):
        bound = case.bound(layer.base_layer.weight.shape)
        spectrum = layer.waveft_spectrum["default"].detach().numpy()
        arrays = bound.start() | {"spectrum": spectrum[None]}
        waves = [arrays["rows"], arrays["columns"].T]  # (size, k), two neighbours of each are not 0
        pairs = [np.abs(wave).argmax(0) // 2 for wave in waves]
        high = [wave.sum(0) < 0.5 for wave in waves]  # of the other axis, as in the transform
        halves = [n // 2 for n in bound.grid.shape]
        places = [pairs[0] + halves[0] * high[1], pairs[1] + halves[1] * high[0]]
        assert len(set(zip(*places, strict=True))) == 30
        layer.waveft_indices["default"] = torch.from_numpy(np.stack(places))
        expected = layer.get_delta_weight("default").detach().numpy()
        assert_close(bound.delta(arrays, 0), expected, case)


def test_scales_are_those_of_peft_by_default():
    for row, factor in (("loha", 1.0), ("lokr", 1.0), ("gralora", 2.0), ("randlora", 20.0)):
        assert bind(method(row), Grid.full((24, 36), layer=1), {"r": 4}).scale() == factor
