"""Laws of what is kept between forward passes without gradient: it is never older than a change."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tdecomp_torch import Adapter, attach
from tests.torch.cases import (
    HIDDEN,
    adapted,
    assert_close,
    dense_copy,
    inputs,
    random_factors,
    seeded,
    set_random,
    tiny,
)
from tests.waiting import PATIENCE

KEEPING = ("lora", "tenslora_qkv_depth", "tt_lora", "dora")
modes = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def x_of() -> Tensor:
    return inputs(3, 5, HIDDEN)


# -- factors ---------------------


def _stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Any:
    return lambda adapter: make(random_factors(adapter)).step()


def _written(change: Callable[[nn.Parameter], Any]) -> Any:
    def to_all(adapter: Adapter) -> None:
        for factor in random_factors(adapter):
            change(factor)

    return to_all


def _replace_data(p: nn.Parameter) -> None:
    p.data = 1.5 * p.data


def _of_bitsandbytes(own: list[nn.Parameter]) -> torch.optim.Optimizer:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes as bnb

    return bnb.optim.AdamW(own, lr=0.1)


def _load(adapter: Adapter, *, assign: bool) -> None:
    state = {k: 1.5 * v for k, v in adapter.pool.state_dict().items()}
    adapter.pool.load_state_dict(state, assign=assign)


CHANGES: dict[str, Callable[[Adapter], Any]] = {
    "fused AdamW": _stepped(lambda own: torch.optim.AdamW(own, lr=0.1, fused=True)),
    "fused SGD": _stepped(lambda own: torch.optim.SGD(own, lr=0.1, fused=True)),
    "foreach": _stepped(lambda own: torch.optim.Adam(own, lr=0.1, foreach=True)),
    "one by one": _stepped(lambda own: torch.optim.SGD(own, lr=0.1, foreach=False)),
    "of bitsandbytes": _stepped(_of_bitsandbytes),
    "in place": _written(lambda p: p.mul_(1.5)),
    "through data": _written(lambda p: p.data.mul_(1.5)),
    "data replaced": _written(_replace_data),
    "through numpy": _written(lambda p: p.detach().numpy().__imul__(1.5)),
    "one number": _written(lambda p: p.data.view(-1)[-1:].add_(0.5)),
    "foreach on data": lambda adapter: torch._foreach_mul_(
        [p.data for p in random_factors(adapter)], 1.5
    ),
    "loaded": lambda adapter: _load(adapter, assign=False),
    "assigned": lambda adapter: _load(adapter, assign=True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", KEEPING)
def test_evaluation_follows_the_factors(name, change):
    model, adapter = adapted(name)
    model(x_of()).square().sum().backward()
    with torch.inference_mode(mode=name in ("lora", "dora")), torch.no_grad():
        before = model(x_of())
        with torch.inference_mode(False), torch.no_grad():
            CHANGES[change](adapter)
        after = model(x_of())
    assert not torch.allclose(after, before)
    assert_close(after, dense_copy(adapter, tiny())(x_of()))


def test_an_average_can_be_swapped_in_and_out():
    model, adapter = adapted("tenslora_qkv_depth")
    mean = {key: 0.5 * factor.detach() for key, factor in adapter.factors().items()}
    with torch.no_grad():
        first = model(x_of())
        for key, factor in adapter.factors().items():
            factor.data, mean[key] = mean[key], factor.data
        averaged = model(x_of())
        assert_close(averaged, dense_copy(adapter, tiny())(x_of()))
        for key, factor in adapter.factors().items():
            factor.data, mean[key] = mean[key], factor.data
        assert torch.equal(model(x_of()), first)


@pytest.mark.slow
def test_a_trainer_evaluates_what_it_trained(tmp_path):
    import transformers as tf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    config = tf.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    model = seeded(lambda: tf.LlamaForCausalLM(config))
    attach(model, "tenslora_qkv_depth", rank=2)
    rows = seeded(lambda: torch.randint(0, 30, (8, 6)))
    data = [{"input_ids": row, "labels": row} for row in rows]
    options = {"use_cpu": True, "report_to": [], "save_strategy": "no", "learning_rate": 0.05}
    arguments = tf.TrainingArguments(str(tmp_path), max_steps=6, **options)
    trainer = tf.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    found = trainer.evaluate()["eval_loss"]
    trainer.model = trainer.model_wrapped = copy.deepcopy(model)  # a copy has nothing kept
    assert found == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    assert found < before


# -- base weights, which norms depend on ---------------------


@dataclass(frozen=True)
class _Write:
    """A change of a weight in place."""

    name: str
    write: Callable[[nn.Linear], Any]


def _assign_weight(module: nn.Linear) -> None:
    module.weight = nn.Parameter(1.5 * module.weight.detach(), requires_grad=False)


def _set_data(module: nn.Linear) -> None:
    module.weight.data = 1.5 * module.weight.data


WRITES = (
    _Write("in place", lambda m: m.weight.mul_(1.5)),
    _Write("through data", lambda m: m.weight.data.mul_(1.5)),
    _Write("data replaced", _set_data),
    _Write("replaced", _assign_weight),
    _Write("rows turned round", lambda m: m.weight.data.copy_(m.weight.flip(0).clone())),
    _Write("columns turned round", lambda m: m.weight.data.copy_(m.weight.flip(1).clone())),
    _Write("one number", lambda m: m.weight.data[-1, -1].add_(0.1)),
)


@modes
@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.name)
@pytest.mark.parametrize("name", ["dora", "edora"])
def test_norms_follow_the_base_weight(name, write, mode):
    model, adapter = adapted(name)
    plain, path = tiny(), adapter.targets[0].path
    with mode():
        before = model(x_of())
        with torch.inference_mode(False), torch.no_grad():
            for changed in (model, plain):
                write.write(changed.get_submodule(path))
        after = model(x_of())
    assert not torch.allclose(after, before)
    if name == "dora":  # its constants are not made of the weights
        assert_close(after, dense_copy(adapter, plain)(x_of()))
    adapter.pool.kept.clear()
    with torch.no_grad():
        assert torch.equal(after, model(x_of()))


# -- what is kept is worth it, and does no harm ---------------------


def test_products_are_computed_once_while_nothing_changes(monkeypatch):
    model, adapter = adapted("fact_tk")
    found, compute = [], type(adapter.pool.members[0].programs[0].blocks[0].ahead).run
    blocks = {id(b.ahead) for p in adapter.pool.members[0].programs for b in p.blocks}

    def run(steps: Any, *args: Any, **options: Any) -> Tensor:
        if id(steps) in blocks:
            found.append(steps)
        return compute(steps, *args, **options)

    monkeypatch.setattr(type(adapter.pool.members[0].programs[0].blocks[0].ahead), "run", run)
    with torch.no_grad():
        for _ in range(3):
            model(x_of())
        assert len(found) == len(blocks)
        set_random(adapter, seed=7)
        model(x_of())
        model(x_of())
        assert len(found) == 2 * len(blocks)
    model(x_of())
    model(x_of())
    assert len(found) == 4 * len(blocks)


@modes
def test_lengths_of_rows_are_measured_once_while_nothing_changes(monkeypatch, mode):
    model, adapter = adapted("dora")
    hook = adapter.targets[0].hook
    found, measure = [], hook.delta
    monkeypatch.setattr(hook, "delta", lambda *at: found.append(at) or measure(*at))

    def follows(times: int) -> None:
        before = len(found)
        with mode():
            first, second = model(x_of()), model(x_of())
        assert len(found) == before + times
        assert torch.equal(first, second)

    follows(1)
    follows(0)
    with torch.no_grad():
        adapter.targets[0].weight.mul_(1.5)
    follows(1)
    set_random(adapter, seed=7)
    follows(1)
    before = len(found)
    model(x_of())
    model(x_of())
    assert len(found) == before + 2


def test_kept_products_have_the_precision_of_autocast():
    model, _ = adapted("fact_tk", tiny(torch.float32))
    x = x_of().float()
    with torch.no_grad():
        before = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        assert torch.equal(model(x), before)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), half)


@pytest.mark.parametrize("name", KEEPING)
def test_gradients_flow_after_and_within_a_forward_without_them(name):
    """Energies are differentiated inside a model that is called without gradient."""
    model, adapter = adapted(name)
    model(x_of()).square().sum().backward()
    expected = [p.grad for p in random_factors(adapter)]
    adapter.pool.zero_grad()
    with torch.inference_mode():
        model(x_of())
    inner = model.layers

    class Differentiates(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                for layer in inner:
                    x = layer(x)
                model.head(x).square().sum().backward()
            return x

    model.forward = Differentiates().forward
    with torch.no_grad():
        model(x_of())
    for p, q in zip(random_factors(adapter), expected, strict=True):
        assert_close(p.grad, q)


# -- threads ---------------------


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5, "shared_dropout": True}], ids=str)
@pytest.mark.parametrize("name", ["lora", "tenslora_qkv_depth", "dora"])
def test_a_thread_does_not_notice_another_in_the_middle_of_its_forward(name, options, grad):
    """The first thread is held between two layers until the second has run the whole model."""
    model, _ = adapted(name, **options)
    model.eval()
    first, second = x_of(), inputs(2, 4, HIDDEN, seed=5)
    expected = model(first), model(second)
    in_the_middle, go_on, found = threading.Event(), threading.Event(), {}

    def hold(*_: Any) -> None:
        if threading.current_thread() is thread:
            in_the_middle.set()
            assert go_on.wait(PATIENCE)

    def run() -> None:
        with torch.set_grad_enabled(grad):
            found["first"] = model(first)

    thread = threading.Thread(target=run)
    handle = model.layers[0].self_attn.k_proj.register_forward_pre_hook(hold)
    thread.start()
    assert in_the_middle.wait(PATIENCE)
    with torch.set_grad_enabled(grad):
        found["second"] = model(second)
    go_on.set()
    thread.join()
    handle.remove()
    assert_close(found["first"], expected[0])
    assert_close(found["second"], expected[1])
