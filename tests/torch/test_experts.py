"""Laws of experts that lie in one parameter, with and without PEFT: W + ΔW stands in for W."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tdecomp import ArgumentError, SiteError
from tdecomp_torch import attach, gradients, load_adapter, merge
from tdecomp_torch.peft import TensorAdapterConfig, adapter_of
from tests.torch.cases import assert_close, inputs, seeded, set_random, start_given

WIDTH, INNER, N = 8, 6, 3
NAMES = ["experts.gate_up_proj", "experts.down_proj"]
ROWS = ("lora", "lotr", "vera", "dora", "hira", "loha", "metatt", "c3a", "loldu", "tenslora_depth")


class Experts(nn.Module):
    """Three experts as transformers keeps them; `turned` as gpt-oss does."""

    def __init__(self, *, turned: bool):
        super().__init__()
        self.is_transposed = turned
        shapes = [(N, 2 * INNER, WIDTH), (N, WIDTH, INNER)]
        up, down = (torch.randn(s).mT.contiguous() if turned else torch.randn(s) for s in shapes)
        self.gate_up_proj, self.down_proj = nn.Parameter(up / 3), nn.Parameter(down / 3)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        found = torch.zeros_like(x)
        for number in range(N):
            up, down = self.gate_up_proj[number], self.down_proj[number]
            up, down = (up.mT, down.mT) if self.is_transposed else (up, down)
            gate, value = (x @ up.T).chunk(2, -1)
            found = found + (chosen == number)[..., None] * ((gate.sigmoid() * value) @ down.T)
        return found


class Mixture(nn.Module):
    """Two layers: a projection, and experts that are chosen by its output."""

    def __init__(self, *, turned: bool = False):
        super().__init__()
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for layer in self.layers:
            layer.q_proj, layer.mlp = nn.Linear(WIDTH, WIDTH), nn.Module()
            layer.mlp.experts = Experts(turned=turned)
        self.around: Any = lambda experts, x, chosen: experts(x, chosen)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.q_proj(x)
            x = x + self.around(layer.mlp.experts, x, x[..., :N].argmax(-1))
        return x


def mixture(*, turned: bool = False) -> Mixture:
    return seeded(lambda: Mixture(turned=turned)).double()


def x_of() -> Tensor:
    return inputs(2, 5, WIDTH)


def left_behind(model: nn.Module) -> list[str]:
    found = [name for m in model.modules() for name in vars(m) if name.endswith("_proj")]
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    return [*found, *map(str, hooks)]


def on(model: nn.Module, row: str = "lora", **options: Any):
    own = {"rank": 2, "tokens": 64, "targets": NAMES, **start_given(row), **options}
    adapter = attach(model, row, **own)
    set_random(adapter)
    return adapter


@pytest.mark.parametrize("turned", [False, True], ids=["out in", "in out"])
@pytest.mark.parametrize("row", ROWS)
def test_adapted_experts_are_those_of_a_model_with_the_new_weights(row, turned, tmp_path):
    plain, x = mixture(turned=turned), x_of()
    before, bits = plain(x), copy.deepcopy(plain.state_dict())
    adapter = on(model := copy.deepcopy(plain), row, targets=[*NAMES, "q_proj"])
    dense = copy.deepcopy(plain)
    dense.load_state_dict(adapter.merged_state_dict())
    y = model(x)
    assert_close(y, dense(x))
    assert float((y - before).detach().abs().max()) > 1e-3
    y.square().sum().backward()
    assert all(f.grad is not None and bool(f.grad.any()) for f in adapter.factors().values())
    assert adapter.merge()
    assert_close(model(x), y)
    adapter.unmerge()
    assert all(torch.equal(model.state_dict()[name], own) for name, own in bits.items())
    adapter.save(tmp_path / "a")
    adapter.detach()
    assert not left_behind(model)
    load_adapter(model, tmp_path / "a")
    assert_close(model(x), y)


def test_the_gradient_is_that_of_the_dense_weights():
    model, x = mixture(), x_of()
    adapter = on(model, "lora", targets=["experts.down_proj"])
    grid = adapter.grids[0]
    assert [m for m, _ in grid.grid.modes] == ["layer", "proj", "expert"]
    dense = copy.deepcopy(mixture())
    dense.load_state_dict(adapter.merged_state_dict())
    for own in (model, dense):
        own(x).square().sum().backward()
    a, b = adapter.factors()["8x6__a"], adapter.factors()["8x6__b"]
    scale = adapter.groups[0].coefficient(adapter.spec.terms[0], 0.0)
    for k, site in enumerate(grid.sites):
        own = dense.get_parameter(site.module).grad[site.positions[0]]  # (out, in)
        assert_close(a.grad[k], scale * b[k].detach().T @ own)
        assert_close(b.grad[k], scale * own @ a[k].detach().T)


def test_lora_on_experts_is_that_of_peft():
    for turned in (False, True):
        names = NAMES if turned else NAMES[1:]  # gate and up, where known, are two weights here
        plain, x = mixture(turned=turned), x_of()
        theirs = get_peft_model(
            copy.deepcopy(plain),
            LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=names),
        ).double()
        config = TensorAdapterConfig(method="lora", r=2, alpha=6, target_parameters=names)
        model = get_peft_model(copy.deepcopy(plain), config)
        adapter = adapter_of(model)
        assert adapter.n_trainable == theirs.get_nb_trainable_parameters()[0]
        wrappers = {
            (name.split("layers.")[1][0], m.parameter_name): m
            for name, m in theirs.named_modules()
            if type(m).__name__ == "ParamWrapper"
        }
        with torch.no_grad():
            for wrapper in wrappers.values():
                nn.init.normal_(wrapper.lora_B["default"].weight)
            for grid, member in zip(adapter.grids, adapter.pool.members, strict=True):
                factors = {name: adapter.factors()[key] for name, key in member.keys.items()}
                for k, site in enumerate(grid.sites):
                    labels, name = dict(site.labels), site.module.rpartition(".")[2]
                    wrapper = wrappers[str(labels["layer"]), name]
                    a, b = (own["default"].weight for own in (wrapper.lora_A, wrapper.lora_B))
                    factors["a"][k] = a.view(N, 2, -1)[labels["expert"]]
                    factors["b"][k] = b.view(-1, 2, N)[..., labels["expert"]]
        assert_close(model(x), theirs(x))
        for own in (model, theirs):
            own(x).square().sum().backward()
        norms = [
            sum(p.grad.square().sum() for p in own.parameters() if p.requires_grad)
            for own in (model, theirs)
        ]
        assert_close(*norms)


@pytest.mark.parametrize("turned", [False, True], ids=["out in", "in out"])
def test_by_way_of_peft(turned, tmp_path):
    plain, x = mixture(turned=turned), x_of()
    before = plain(x)
    options = {"rank": 2, "tokens": 64, "seed": 0}
    model = get_peft_model(
        copy.deepcopy(plain),
        TensorAdapterConfig(
            method="lotr", target_modules=["q_proj"], target_parameters=NAMES, **options
        ),
    )
    own = attach(copy.deepcopy(plain), "lotr", rank=2, tokens=64, targets=[*NAMES, "q_proj"])
    for adapter in (adapter_of(model), own):
        set_random(adapter)
    first = model(x)
    assert torch.equal(first, own.model(x))
    model.add_adapter(
        "second", TensorAdapterConfig(method="lora", target_parameters=["down_proj"], **options)
    )
    set_random(adapter_of(model, "second"), 5)
    assert torch.equal(model(x), first)
    model.set_adapter("second")
    second = model(x)
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    model.merge_adapter()
    assert_close(model(x), both)
    model.unmerge_adapter()
    assert torch.equal(model(x), both)
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(model(x), first)
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            copy.deepcopy(plain), str(tmp_path), low_cpu_mem_usage=low
        )
        assert_close(loaded(x), first)
    merged = model.merge_and_unload()
    assert_close(merged(x), first)
    assert not left_behind(merged)
    assert not left_behind(loaded.unload())


def test_two_adapters_add_up_and_merge_together():
    plain, x = mixture(), x_of()
    model = copy.deepcopy(plain)
    one, other = on(model, "lora", name="one"), on(model, "lotr", name="other", rank=3)
    y = model(x)
    deltas = {name: one.delta(name) + other.delta(name) for name in (t.path for t in one.targets)}
    dense = copy.deepcopy(plain)
    with torch.no_grad():
        for name, delta in deltas.items():
            own = dense.get_parameter(name)
            own.add_(delta.reshape(own.shape))
    assert_close(y, dense(x))
    together = merge([one, other])
    assert_close(model(x), y)
    together.unmerge()
    one.merge()
    assert_close(model(x), y)
    with pytest.raises(ArgumentError, match="has an adapter already"):
        attach(model, "dora", rank=2, targets=["down_proj"], name="third")
    one.unmerge()
    one.detach()
    other.detach()
    assert not left_behind(model)
    assert torch.equal(model(x), plain(x))


def test_copies_checkpointing_and_failures_leave_nothing_behind():
    model, x = mixture(), x_of()
    adapter = on(model)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    y.square().sum().backward()
    expected = [f.grad.clone() for f in adapter.factors().values()]
    model.zero_grad()
    model.around = lambda experts, x, chosen: checkpoint(experts, x, chosen, use_reentrant=False)
    model(x).square().sum().backward()
    for factor, grad in zip(adapter.factors().values(), expected, strict=True):
        assert_close(factor.grad, grad)
    with pytest.raises(RuntimeError):
        model.layers[0].mlp.experts(x[..., :1], x)
    assert not [name for m in model.modules() for name in vars(m) if name.endswith("_proj")]


def test_threads_see_their_own_weights():
    model, x = mixture(), x_of()
    on(model)
    expected, found = model(x).detach(), []

    def run(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            found.extend(model(x).detach() for _ in range(5))

    threads = [threading.Thread(target=run, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(y, expected) for y in found)


def test_half_precision_is_that_of_the_merged_weights():
    model = mixture().to(torch.bfloat16)
    adapter = on(model)
    x = x_of().to(torch.bfloat16)
    y = model(x)
    adapter.merge()
    assert torch.equal(model(x), y)


def test_each_task_has_experts_of_its_own():
    model, x = mixture(), x_of()
    adapter = on(model, tasks=["one", "other"])
    y = model(x)
    adapter.task = "other"
    assert not torch.allclose(model(x), y)
    adapter.task = ["one", "other"]
    with pytest.raises(ArgumentError, match="every example has a task of its own"):
        model(x)
    adapter.task = "one"
    assert torch.equal(model(x), y)


def test_what_it_costs_is_said_and_starts_from_weights_are_made():
    model = mixture()
    adapter = attach(model, "lora", rank=2, targets=NAMES, start="pissa")
    assert "hold experts: their adapted weights, 864 numbers, are formed in every" in str(
        adapter.notes
    )
    assert_close(model(x_of()), mixture()(x_of()))
    assert [t.path for t in attach(mixture(), "lora", rank=2).targets] == [
        "layers.0.q_proj",
        "layers.1.q_proj",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dropout": 0.1}, "dropout is of tokens"),
        ({"rank_dropout": 0.1}, "dropout is of tokens"),
        (
            {"targets": ["mlp.experts"]},
            r"layers\.0\.mlp\.experts \(Experts\).*parameters of experts",
        ),
        (
            {"start": gradients([torch.zeros(2, WIDTH)], lambda m, b: m(b.double()).sum())},
            "exclude",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_before(options, says):
    model = mixture()
    with pytest.raises((ArgumentError, SiteError), match=says):
        attach(model, "lora", **{"rank": 2, "targets": NAMES, **options})
    assert not left_behind(model)


def test_names_that_are_no_experts_are_refused_by_peft_too():
    for name, says in (("nothing", "matches no parameter"), ("q_proj.weight", "target_modules")):
        config = TensorAdapterConfig(method="lora", r=2, target_parameters=[name])
        with pytest.raises(SiteError, match=says):
            get_peft_model(mixture(), config)
