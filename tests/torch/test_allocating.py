"""Ranks under a budget, put on models: what they cost, what they hold, what PEFT gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tdecomp import ArgumentError, FileError
from tdecomp.allocation import ALLOCATIONS
from tdecomp_torch import activations, allocate, attach, capture, captured, gradients, load_adapter
from tests.torch.cases import HIDDEN, assert_close, inputs, seeded, set_random, tiny
from tests.torch.test_capture import BATCHES, loss
from tests.torch.test_hostile_files import FILE, parts, write

SEEN = {"gradients": "whole", "inputs": "whole"}
ONE = 8 + 12  # numbers of a LoRA of rank 1 on any weight of the tiny model


def statistics() -> Any:
    return capture(tiny(), BATCHES, loss=loss, **SEEN)


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_every_rule_keeps_to_its_budget_and_leaves_the_model_as_it_was(rule, tmp_path):
    before, model, seen = tiny()(BATCHES[0]), tiny(), statistics()
    ranks = allocate(rule, budget=17 * ONE + 3, statistics=seen)
    adapter = attach(model, "lora", rank=ranks, start=captured(seen, "zero"))
    assert 12 * ONE <= adapter.n_trainable <= 17 * ONE + 3
    assert adapter.n_trainable == sum(adapter.ranks.values()) * ONE
    assert_close(model(BATCHES[0]), before)
    set_random(adapter)
    expected = model(BATCHES[0])
    adapter.save(tmp_path / "saved")
    again = tiny()
    loaded = load_adapter(again, tmp_path / "saved")
    assert_close(again(BATCHES[0]), expected)
    assert loaded.ranks == adapter.ranks
    for module in adapter.to_lora():
        assert module.rank == adapter.ranks[module.module]


def test_the_energy_held_is_what_the_loss_falls_by():
    """More than the same numbers hold at one rank for all, of the same gradients."""
    seen = statistics()
    held = {}
    for rule in ("uniform", "energy"):
        ranks = allocate(rule, budget=8 * ONE, statistics=seen)
        adapter = attach(tiny(), "lora", rank=ranks, start=captured(seen, "step"))
        energies = [
            np.sum(seen.gradient_of(path).svd(rank)[1] ** 2) for path, rank in adapter.ranks.items()
        ]
        held[rule] = sum(energies)
        assert adapter.n_trainable == 8 * ONE
    assert held["energy"] > 1.05 * held["uniform"]


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        ("energy", lambda: gradients(BATCHES, loss)),
        ("gora", lambda: gradients(BATCHES, loss, rule="gora")),
        ("eva", lambda: activations(BATCHES)),
        ("eva", lambda: gradients(BATCHES, loss)),
        ("energy_of_weights", lambda: "pissa"),
        ("uniform", lambda: None),
    ],
)
def test_the_start_and_the_ranks_are_of_one_look_at_the_batches(rule, start, monkeypatch):
    from tdecomp_torch import starting

    looks: list[int] = []
    real = starting.capture_sites
    monkeypatch.setattr(starting, "capture_sites", lambda *a, **k: looks.append(1) or real(*a, **k))
    told: list[float] = []
    model = tiny()
    adapter = attach(
        model,
        "lora",
        rank=allocate(rule, budget=20 * ONE),
        start=start(),
        progress=told.append,
    )
    assert len(looks) == (rule in ("energy", "gora", "eva"))
    assert told == sorted(told)
    assert adapter.n_trainable <= 20 * ONE
    model(BATCHES[0]).square().mean().backward()
    assert any(f.grad.abs().max() > 0 for f in adapter.factors().values())


def test_groups_that_share_factors_have_one_rank_each():
    start = gradients(BATCHES, loss, rule="step")
    adapter = attach(tiny(), "lotr", rank=allocate("energy", budget=120), start=start)
    assert adapter.n_trainable <= 120
    for grid in adapter.grids:
        assert len({adapter.ranks[site.path] for site in grid.sites}) == 1
    smaller = attach(tiny(), "lotr", rank=allocate("uniform", budget=120))
    assert smaller.n_trainable <= 120


def test_ranks_are_given_by_name_and_none_is_left_out(tmp_path):
    model, before = tiny(), tiny()(BATCHES[0])
    ranks = {f"layers.{k}.self_attn.{p}_proj": k + 1 for k in (0, 1) for p in "qkvo"}
    ranks["layers.0.self_attn.o_proj"] = 0
    adapter = attach(model, "dora", rank=ranks)
    assert adapter.ranks == {path: rank for path, rank in ranks.items() if rank}
    assert "layers.0.self_attn.o_proj is left out: its rank is 0." in adapter.notes
    assert_close(model(BATCHES[0]), before)
    set_random(adapter)
    expected = model(BATCHES[0])
    adapter.merge()
    assert_close(model(BATCHES[0]), expected)
    adapter.detach()
    again = attach(tiny(), "dora", rank=adapter.ranks, targets=[*adapter.ranks])
    assert again.ranks == adapter.ranks


class Peer(nn.Module):
    """Three pairs of weights without biases, odd in their input: no mean anywhere."""

    def __init__(self):
        super().__init__()
        self.a_proj, self.b_proj, self.c_proj = (nn.Linear(12, 12, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(10 * self.a_proj(x))
        return self.c_proj(torch.tanh(self.b_proj(x)))


@pytest.mark.parametrize("r", [4, 5])
def test_eva_gives_the_ranks_that_peft_redistributes(r):
    pytest.importorskip("peft")
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    x = seeded(lambda: torch.randn(200, 12) * torch.linspace(0.1, 2, 12) ** 4)
    batch = torch.cat([x, -x])
    targets = ["a_proj", "b_proj", "c_proj"]
    config = LoraConfig(
        r=r, target_modules=targets, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0)
    )
    theirs = get_peft_model(seeded(Peer), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(
        theirs,
        dataloader=[batch] * 3,
        forward_fn=lambda model, inputs: model(inputs),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    found = {
        name.split(".")[-3]: module.weight.shape[0]
        for name, module in theirs.named_modules()
        if ".lora_A." in name and module.weight.shape[0]
    }
    ranks = allocate("eva", budget=3 * r * 24)
    adapter = attach(seeded(Peer), "lora", targets=targets, rank=ranks, start=activations([batch]))
    assert adapter.ranks == found
    assert len({*found.values()}) > 1


REFUSED = [
    (dict(rank=lambda: allocate("energy", budget=200)), "give start=gradients"),
    (dict(rank=lambda: allocate("eva", budget=200)), "give start=activations"),
    (
        dict(rank=lambda: allocate("energy", budget=200), start=lambda: activations(BATCHES)),
        "made of gradients: give start=gradients",
    ),
    (dict(rank=lambda: allocate("uniform", budget=10)), r"less than rank 1 .* 160 numbers"),
    (
        dict(rank=lambda: {"layers.0.self_attn.q_prj": 2}),
        "did you mean 'layers.0.self_attn.q_proj'",
    ),
    (dict(rank=lambda: {"layers.0.self_attn.q_proj": 2}), "says nothing of layers.0.self_attn.k"),
    (dict(rank=lambda: dict.fromkeys(NAMES, 0)), "every weight rank 0"),
    (dict(rank=lambda: dict.fromkeys(NAMES, 1.5)), "the rank 1.5 of .* must be a whole number"),
    (
        dict(row="lotr", rank=lambda: dict(zip(NAMES, range(1, 9), strict=True))),
        "shares factors over",
    ),
    (
        dict(
            row="lotr", rank=lambda: allocate("eva", budget=200), start=lambda: activations(BATCHES)
        ),
        "take 'energy' or 'uniform'|is for 'lora'",
    ),
    (
        dict(row="lotr", rank=lambda: allocate("uniform", budget=200), share=lambda: ["in"]),
        "with share='in' holds factors over all groups",
    ),
    (dict(row="lorta", rank=lambda: allocate("uniform", budget=200)), "over all groups together"),
]
NAMES = [f"layers.{k}.self_attn.{p}_proj" for k in (0, 1) for p in "qkvo"]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_say_what_to_do_and_nothing_is_attached(options, text):
    model = tiny()
    given = {key: make() for key, make in options.items() if key != "row"}
    with pytest.raises(ArgumentError, match=text):
        attach(model, options.get("row", "lora"), **given)
    assert not hasattr(model, "tdecomp_default")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(rule="enrgy", budget=9), "did you mean 'energy'"),
        (dict(budget=0), "budget=0 must be a whole number"),
        (dict(budget=1e5), "budget=100000.0 must be a whole number"),
        (dict(budget=9, rank_max=0), "rank_max=0"),
        (dict(budget=9, kinds=2), "is for the rule 'plop'"),
        (dict(budget=9, statistics={}), "must be what capture gave"),
    ],
)
def test_requests_that_are_none(options, text):
    with pytest.raises(ArgumentError, match=text):
        allocate(**options)


def test_statistics_of_another_model_are_refused():
    other = tiny()
    with torch.no_grad():
        other.layers[1].self_attn.o_proj.weight.mul_(2)
    with pytest.raises(ArgumentError, match="o_proj has changed since"):
        attach(other, "lora", rank=allocate("energy", budget=200, statistics=statistics()))


def test_files_with_ranks_of_other_groups_are_refused(tmp_path):
    adapter = attach(tiny(), "lora", rank=dict(zip(NAMES, range(1, 9), strict=True)))
    adapter.save(tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    tensors, document = parts(file)
    document["settings"]["ranks"].pop()
    write(file, tensors, document)
    with pytest.raises(FileError, match=r"7 ranks are said of 8 groups"):
        load_adapter(tiny(), tmp_path / "saved")


def test_inputs_of_a_rank():
    """Any rank at all is better held by the batches' own gradients: the widest that is asked."""
    start = gradients([inputs(2, 5, HIDDEN)], loss)
    adapter = attach(
        tiny(), "lora", rank=allocate("energy", budget=6 * ONE, rank_max=1), start=start
    )
    assert {*adapter.ranks.values()} == {1}
    assert len(adapter.ranks) == 6
