"""Small models for the laws of the torch layer, and dense oracles of adapted ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tdecomp._xp import tol
from tdecomp.adapters import CATALOGUE, Spec
from tdecomp_torch import Adapter, attach

SEED = 0
AKIN = (
    *("mica", "uni_lora", "pvera", "osf", "adamss", "ia3", "ia3_in", "glora"),
    *("sharelora", "tied_lora", "rasa", "lora_sb", "svft", "curlora", "lorma", "wegeft", "abba"),
    *("surm", "more", "cara", "flora_core", "quanta", "loretta_rep"),
    "lorta_public",
    *("ffn_low_rank", "ffn_block_dense"),
    *("miss_mini", "bd_lora", "bd_lora_out", "qa_lora", "waveft"),
)
"""Rows made as others are: what is computed is tested of them too, what follows by `METHODS`."""

METHODS = tuple(name for name in CATALOGUE if name not in AKIN)
HIDDEN, HEADS, HEAD = 8, 2, 6
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD,
}


class Attention(nn.Module):
    """Four projections of which none is square; one of them has a bias."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD)
        self.k_proj = nn.Linear(HIDDEN, HEADS * HEAD, bias=False)
        self.v_proj = nn.Linear(HIDDEN, HEADS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(torch.softmax(q @ k.mT / q.shape[-1], -1) @ v)


class Layer(nn.Module):
    """Attention around which the input goes, too."""

    def __init__(self):
        super().__init__()
        self.self_attn = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.self_attn(x)


class Tiny(nn.Module):
    """Two layers and a head, with the names and the configuration of a Llama.

    `around` runs each layer: checkpointing is put here.
    """

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(to_dict=lambda: dict(CONFIG))
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(HIDDEN, 3)
        self.around: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.around(layer, x)
        return self.head(x)


def seeded(make: Callable[[], Any], seed: int = SEED) -> Any:
    """What `make` gives when torch's generator starts at a seed; that of the test is untouched.

    Of the processor alone: `torch.manual_seed` writes down the stack for every device not yet used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def tiny(dtype: torch.dtype = torch.float64) -> Tiny:
    """The same small model every time."""
    return seeded(Tiny).to(dtype)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """The same random numbers every time."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=numbers).to(dtype)


# -- adapted models ---------------------


def start_given(name: str) -> dict[str, Any]:
    """Arguments of `attach` that a row needs besides, or in place of, a rank."""
    none = ("lokr_full", "kradapter", "c3a", "ia3", "ia3_in", "svft", "quanta")
    if name in none:
        return {"rank": None}
    if name == "randlora":  # its own is too large for float16 when all factors are random
        return {"alpha": 1.0}
    if name != "eigenlorax":
        return {}
    rng = np.random.default_rng(3)
    return {
        "targets": ["q_proj", "k_proj", "v_proj"],
        "rank": {"r": 2, "k": 3},
        "given": {
            "directions_out": rng.standard_normal((6, HEADS * HEAD, 3)),
            "directions_in": rng.standard_normal((6, 3, HIDDEN)),
        },
    }


def adapted(
    spec: str | Spec,
    model: nn.Module | None = None,
    *,
    random: bool = True,
    seed: int = 2,
    step: float | None = None,
    **options: Any,
) -> tuple[Any, Adapter]:
    """A small model with an adapter on it, by default full of random numbers."""
    model = tiny() if model is None else model
    own = start_given(spec) if isinstance(spec, str) else {}
    adapter = attach(model, spec, **{"rank": 2, "tokens": 64, **own, **options})
    if random:
        set_random(adapter, seed)
    if step is not None:
        adapter.step(step)
    return model, adapter


@torch.no_grad()
def set_random(adapter: Adapter, seed: int = 2) -> None:
    """Fill every trainable factor with random numbers, of a size that ΔW is about that of W."""
    rng = np.random.default_rng(seed)
    for factor in adapter.factors().values():
        factor.copy_(torch.as_tensor(0.3 * rng.standard_normal(factor.shape)))


def random_factors(adapter: Adapter) -> list[nn.Parameter]:
    """Every trainable factor."""
    return list(adapter.factors().values())


# -- dense oracles: numpy, by the core alone ---------------------


def arrays_of(adapter: Adapter, m: int) -> dict[str, np.ndarray]:
    """Every factor of a group in numpy: those of the pool, and constants that are weights."""
    member = adapter.pool.members[m]
    bound, modules = member.bound, dict(adapter.model.named_modules())
    found = {k: v.detach().double().numpy() for k, v in adapter.pool.factors(m).items()}
    weights = [_rows(modules[s.module], s) for s in adapter.grids[m].sites]
    absent = [f.name for f in bound.factors if f.name not in found]
    if absent:
        start = bound.start(weights.__getitem__, given=found)
        found |= {name: start[name] for name in absent}
    return found


def _matrix(module: nn.Module) -> np.ndarray:
    """The weight of a module as (out, in), a copy."""
    w = module.weight.detach().double().numpy()
    turned = isinstance(module, Conv1D | nn.Embedding)
    return np.array(w.T if turned else w.reshape(len(w), -1))


def _rows(module: nn.Module, site: Any) -> np.ndarray:
    return _matrix(module)[site.first_row : site.first_row + site.shape[0]]


def oracle(
    adapter: Adapter, what: Callable[[Any, np.ndarray, Mapping[str, np.ndarray], int], Any]
) -> dict[str, np.ndarray]:
    """Module path -> matrix whose rows of every site are ``what(bound, w, arrays, site)``.

    Rows without a site are left as in the base weight.
    """
    modules, found = dict(adapter.model.named_modules()), {}
    for m, (bound, grid) in enumerate(zip(adapter.groups, adapter.grids, strict=True)):
        arrays = arrays_of(adapter, m)
        for k, site in enumerate(grid.sites):
            whole = found.setdefault(site.module, _matrix(modules[site.module]))
            own = slice(site.first_row, site.first_row + site.shape[0])
            whole[own] = what(bound, _rows(modules[site.module], site), arrays, k)
    return found


def new_weights(adapter: Adapter) -> dict[str, np.ndarray]:
    """W' of every adapted module, (out, in), float64."""
    step = adapter.at_step
    return oracle(adapter, lambda bound, w, arrays, k: bound.weight(w, arrays, k, step))


def dense_copy(adapter: Adapter, plain: nn.Module) -> nn.Module:
    """A copy of the unadapted model with the adapted weights."""
    dense = copy.deepcopy(plain)
    modules = dict(dense.named_modules())
    for path, w in new_weights(adapter).items():
        weight = modules[path].weight
        if isinstance(modules[path], Conv1D | nn.Embedding):
            w = w.T
        with torch.no_grad():
            weight.copy_(torch.as_tensor(w.reshape(weight.shape)))
    return dense


def assert_close(a: Tensor, b: Tensor, n: int = 4096) -> None:
    """Equal up to what rounding does in a few sums of n products."""
    scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    atol = 8 * tol(b.dtype, n) * scale
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# -- other kinds of modules ---------------------


class Fused(nn.Module):
    """GPT-2's names and layout: query, key and value in one Conv1D."""

    def __init__(self):
        super().__init__()
        plain = {"model_type": "gpt2", "n_embd": HIDDEN, "n_head": HEADS}
        self.config = SimpleNamespace(to_dict=lambda: plain)
        self.h = nn.ModuleList([nn.Module(), nn.Module()])
        for layer in self.h:
            layer.attn, layer.mlp = nn.Module(), nn.Module()
            layer.attn.c_attn = Conv1D(3 * HIDDEN, HIDDEN)
            layer.attn.c_proj = Conv1D(HIDDEN, HIDDEN)
            layer.mlp.c_fc = Conv1D(12, HIDDEN)
            layer.mlp.c_proj = Conv1D(HIDDEN, 12)
            for part in (*layer.attn.children(), *layer.mlp.children()):
                nn.init.normal_(part.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.h:
            q, k, v = layer.attn.c_attn(x).split(HIDDEN, -1)
            x = x + layer.attn.c_proj(torch.softmax(q @ k.mT / HIDDEN, -1) @ v)
            x = x + layer.mlp.c_proj(torch.tanh(layer.mlp.c_fc(x)))
        return x


class Grouped(nn.Module):
    """Phi-3's fused projection: four query heads, two of keys and values, in one Linear."""

    def __init__(self):
        super().__init__()
        plain = {
            "model_type": "phi3",
            "hidden_size": 12,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        self.config = SimpleNamespace(to_dict=lambda: plain)
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for layer in self.layers:
            layer.self_attn = nn.Module()
            layer.self_attn.qkv_proj = nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = layer.self_attn.qkv_proj(x).split((12, 6, 6), -1)
            x = x + q * torch.cat([k, torch.tanh(v)], -1)
        return x


class Tables(nn.Module):
    """Embeddings of one shape, read one after the other."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(10, 6), nn.Embedding(10, 6)

    def forward(self, positions: Tensor) -> Tensor:
        return self.wte(positions) * self.wpe(positions.flip(-1))


class Branches(nn.Module):
    """Convolutions of one shape that read the same image in different ways, and one after them."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(2, 6, (2, 3), padding=(1, 2), stride=(1, 2))
        self.wide = nn.Conv2d(2, 6, (2, 3), padding=(0, 1), stride=(2, 1), dilation=(2, 1))
        self.last = nn.Conv2d(6, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        plain, wide = self.plain(x), self.wide(x)
        return self.last(torch.cat([plain.flatten(-2), wide.flatten(-2)], -1).unsqueeze(-1))


@dataclass(frozen=True)
class Case:
    """A model, what it reads, and which of its modules are adapted."""

    make: Callable[[], nn.Module]
    read: Callable[[], Tensor]
    options: Mapping[str, Any]
    heads: bool = True

    def takes(self, method: str) -> bool:
        """Whether a row fits: it needs heads where there are none, or arrays that are given."""
        spec = CATALOGUE[method]
        return method != "eigenlorax" and (self.heads or "head" not in spec.weight_modes)


def _positions() -> Tensor:
    return seeded(lambda: torch.randint(0, 10, (3, 4)))


MODELS = {
    "projections": Case(Tiny, lambda: inputs(2, 5, HIDDEN), {}),
    "conv1d": Case(Fused, lambda: inputs(2, 5, HIDDEN), {"targets": "all-linear"}, heads=False),
    "all parts": Case(Fused, lambda: inputs(2, 5, HIDDEN), {"targets": ["c_attn"]}),
    "first and last part": Case(
        Fused, lambda: inputs(2, 5, HIDDEN), {"targets": ["c_attn.q", "c_attn.v"]}
    ),
    "middle part": Case(Fused, lambda: inputs(2, 5, HIDDEN), {"targets": ["c_attn.k"]}),
    "parts of two shapes": Case(Grouped, lambda: inputs(2, 5, 12), {"targets": ["qkv_proj"]}),
    "embeddings": Case(Tables, _positions, {"targets": ["wte", "wpe"]}, heads=False),
    "convolutions": Case(
        Branches, lambda: inputs(2, 2, 7, 8), {"targets": ["plain", "wide", "last"]}, heads=False
    ),
    "one image": Case(
        Branches, lambda: inputs(2, 7, 8), {"targets": ["plain", "wide"]}, heads=False
    ),
}


def adapted_case(
    method: str, model: str, **options: Any
) -> tuple[nn.Module, nn.Module, Adapter, Tensor]:
    """The unadapted model, the adapted one, its adapter, and what it reads."""
    case = MODELS[model]
    plain = seeded(case.make).double()
    changed, adapter = adapted(method, copy.deepcopy(plain), **{**case.options, **options})
    return plain, changed, adapter, case.read()
