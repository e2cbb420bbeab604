"""Rows whose factors are held across weights of different shapes: FacT and LoRTA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tdecomp_torch import attach

from .cases import assert_close, seeded

LAYERS, WIDTH, TIMES, RANK = 3, 12, 4, 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return self.o_proj(self.q_proj(x) * self.k_proj(x) + self.v_proj(x))


class Block(nn.Module):
    """A transformer's matrices; `x` goes through all of them."""

    def __init__(self):
        super().__init__()
        self.self_attn = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, TIMES * WIDTH), nn.Linear(TIMES * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(self.fc1(self.self_attn(x)).tanh())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
SQUARES = LAYERS * (4 + 2 * TIMES)  # of WIDTH x WIDTH in the model
COUNTS = {  # of the public code, which trains 61,440 numbers of ViT-B for fact_tt at rank 16
    "fact_tt": 2 * WIDTH * RANK + SQUARES * RANK**2,
    "fact_tk": 2 * WIDTH * RANK + SQUARES * RANK + RANK**3,
}


def fact(row: str):
    model = seeded(Model, 0).double()
    adapter = attach(model, row, targets=[*NAMES], rank=RANK)
    with torch.no_grad():
        for k, factor in enumerate(adapter.factors().values()):
            factor.copy_(seeded(lambda f=factor: torch.randn_like(f), k))
    return model, adapter


@pytest.mark.parametrize("row", COUNTS)
def test_fact_trains_as_much_as_its_public_code(row):
    assert fact(row)[1].n_trainable == COUNTS[row]


@pytest.mark.parametrize("row", COUNTS)
def test_every_square_of_fact_has_the_same_bases(row):
    model, adapter = fact(row)
    factors = adapter.factors()
    v, u = factors["all__v"], factors["all__u"]
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            for rows in adapter.delta(path).split(WIDTH, 0):
                for square in rows.split(WIDTH, 1):
                    middle = torch.linalg.pinv(v) @ square @ torch.linalg.pinv(u)
                    assert middle.norm() > 1e-3
                    assert_close(v @ middle @ u, square)


@pytest.mark.parametrize("row", COUNTS)
def test_fact_acts_as_it_is_merged(row):
    model, adapter = fact(row)
    x = seeded(lambda: torch.randn(2, 5, WIDTH, dtype=torch.float64), 9)
    acting = model(x)
    adapter.merge()
    assert_close(model(x), acting)


@pytest.mark.parametrize("row", COUNTS)
def test_fact_is_a_lora_of_its_rank(row):
    _, adapter = fact(row)
    for pair in adapter.to_lora():
        assert pair.rank == RANK
        assert_close(torch.as_tensor(pair.b @ pair.a), adapter.delta(pair.module))


@pytest.mark.parametrize("heads", [2, 3])
def test_lorta_has_one_set_for_queries_keys_values_and_outputs(heads):
    model = seeded(Model, 0).double()
    config = {
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_size": WIDTH,
    }
    model.config = type("Config", (), {"to_dict": lambda self: config})()
    adapter = attach(model, "lorta", targets=[*NAMES[:4]], rank=RANK)
    # d + d / H + H + L + 4 for a rank: table of the paper; RoBERTa-base at rank 1 gives 860
    assert adapter.n_trainable == RANK * (WIDTH + WIDTH // heads + heads + LAYERS + 4)
