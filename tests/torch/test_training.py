"""Laws of training: however a forward and backward is run, it is the same computation."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from tdecomp.adapters import CATALOGUE
from tdecomp_torch import attach
from tests.torch.cases import (
    AKIN,
    HIDDEN,
    MODELS,
    Tiny,
    adapted,
    adapted_case,
    assert_close,
    dense_copy,
    inputs,
    random_factors,
    seeded,
    set_random,
    tiny,
)

METHODS = (
    "lora",
    "lotr",
    "tenslora_qkv_depth",
    "tenslora_att_qkv_depth_cp",
    "fact_tk",
    "vera",
    "hira",
    "loha",
    "svfit",
    "kradapter",
    "dora",
)
methods = pytest.mark.parametrize("name", METHODS)
three_methods = pytest.mark.parametrize("name", ["lora", "lotr", "dora"])


def x_of(batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return inputs(batch, 5, HIDDEN, dtype=dtype)


def gradients(model: nn.Module, adapter, x: Tensor) -> list[Tensor]:
    """Of a sum of squares, with respect to every factor and the input."""
    x = x.detach().clone().requires_grad_()
    model(x).square().sum().backward()
    found = [*(p.grad for p in random_factors(adapter)), x.grad]
    adapter.pool.zero_grad()
    return found


def assert_all_close(a, b) -> None:
    for p, q in zip(a, b, strict=True):
        assert_close(p, q)


def is_clean(pool) -> bool:
    now = pool._pass
    return now.ready is None and not now.first and now.dropped is None


# -- one computation, run in several ways ---------------------


@methods
def test_gradients_of_parts_of_a_batch_add_up(name):
    model, adapter = adapted(name)
    x = x_of(6)
    whole = gradients(model, adapter, x)[:-1]
    for part in x.split(2):
        model(part).square().sum().backward()
    assert_all_close([p.grad for p in random_factors(adapter)], whole)


@methods
def test_one_backward_of_two_forwards_is_two_of_one(name):
    model, adapter = adapted(name)
    first, second = inputs(2, 5, HIDDEN), inputs(2, 4, HIDDEN, seed=5)
    loss = model(first).square().sum()
    (loss + model(second).square().sum()).backward()
    together = [p.grad.clone() for p in random_factors(adapter)]
    adapter.pool.zero_grad()
    model(first).square().sum().backward()
    model(second).square().sum().backward()
    assert_all_close([p.grad for p in random_factors(adapter)], together)


@pytest.mark.parametrize("where", ["layers", "model"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooked"])
@methods
def test_checkpointing_gives_the_same_gradients(name, reentrant, where):
    model, adapter = adapted(name)
    expected = gradients(model, adapter, x_of())
    run: Callable[[Tensor], Tensor] = model
    if where == "layers":
        model.around = lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant)
    else:
        run = lambda x: checkpoint(model, x, use_reentrant=reentrant)
    assert_all_close(gradients(run, adapter, x_of()), expected)
    assert is_clean(adapter.pool)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooked"])
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_checkpointing_repeats_the_masks_of_dropout(shared, reentrant):
    model, adapter = adapted("lotr", dropout=0.4, shared_dropout=shared)
    model.train()
    expected = seeded(lambda: gradients(model, adapter, x_of()))
    model.around = lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant)
    assert_all_close(seeded(lambda: gradients(model, adapter, x_of())), expected)


@methods
def test_a_part_of_the_model_can_be_run_alone(name):
    model, adapter = adapted(name)
    part = model.layers[1]
    dense = dense_copy(adapter, tiny()).layers[1]
    assert_close(part(x_of()), dense(x_of()))
    part(x_of()).square().sum().backward()
    alone = [p.grad.clone() for p in random_factors(adapter) if p.grad is not None]
    assert alone
    assert any(g.abs().sum() > 0 for g in alone)
    assert is_clean(adapter.pool)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@three_methods
def test_a_forward_that_fails_leaves_nothing_behind(name, grad, error):
    model, adapter = adapted(name)
    expected = gradients(model, adapter, x_of())

    def fails(module, args):
        del module, args
        raise error

    handle = model.layers[1].self_attn.o_proj.register_forward_pre_hook(fails)
    with torch.set_grad_enabled(grad), pytest.raises(error):
        model(x_of())
    handle.remove()
    if error is ValueError:  # torch runs no hooks after an interruption
        assert is_clean(adapter.pool)
    set_random(adapter, seed=8)
    assert_close(model(x_of()), dense_copy(adapter, tiny())(x_of()))
    set_random(adapter)
    assert_all_close(gradients(model, adapter, x_of()), expected)
    assert is_clean(adapter.pool)


class Recursive(Tiny):
    """A model that calls itself."""

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        if again:
            x = self.layers[0](x)
            x = x + self(x, again=False).sum(-1, keepdim=True)
        return super().forward(x)


@three_methods
def test_a_model_may_call_itself(name):
    plain = seeded(Recursive).double()
    model, adapter = adapted(name, copy.deepcopy(plain))
    assert_close(model(x_of()), dense_copy(adapter, plain)(x_of()))
    assert is_clean(adapter.pool)


# -- precision ---------------------


@methods
def test_autocast_is_close_to_full_precision(name):
    model, adapter = adapted(name, tiny(torch.float32))
    x = x_of(dtype=torch.float32)
    expected, exact = model(x), gradients(model, adapter, x)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    assert run(x).dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(
        run(x).float(), expected, rtol=0, atol=32 * eps * expected.abs().max().item()
    )
    for p, q in zip(gradients(run, adapter, x), exact, strict=True):
        assert p.dtype == torch.float32
        assert (p - q).norm() <= 64 * eps * q.norm() + eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@methods
def test_factors_are_float32_beside_a_base_in_half_precision(name, dtype):
    model, adapter = adapted(name, tiny(dtype))
    assert {p.dtype for p in random_factors(adapter)} == {torch.float32}
    layer = model.layers[0].self_attn.q_proj
    seen = []
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(output.dtype))
    model(x_of(dtype=dtype)).float().square().sum().backward()
    handle.remove()
    assert seen == [dtype]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in random_factors(adapter))
    assert any(p.grad is not None for p in random_factors(adapter))
    dense = dense_copy(adapter, tiny(dtype).float()).layers[0].self_attn.q_proj
    x = x_of(dtype=dtype)
    error = (layer(x).float() - dense(x.float())).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps * dense(x.float()).abs().max()


# -- dropout ---------------------


@methods
def test_no_dropout_and_evaluation_are_exact(name):
    for options, train in (({"dropout": 0.0}, True), ({"dropout": 0.5}, False)):
        model, _ = adapted(name, **options)
        expected = adapted(name)[0](x_of())
        assert torch.equal(model.train(train)(x_of()), expected)


@pytest.mark.parametrize("name", ["lora", "lotr", "dora", "vera"])
def test_dropout_is_of_the_adapter_alone(name):
    """With the start factors there is nothing to drop: the base product is whole."""
    model, _ = adapted(name, dropout=0.5, random=False)
    assert_close(model.train()(x_of()), tiny()(x_of()))


def parts(name: str, shared: bool, seed: int, p: float = 0.5) -> list[Tensor]:
    """What q, k and v of one layer add, when all have the same ΔW."""
    model, adapter = adapted(name, dropout=p, shared_dropout=shared)
    with torch.no_grad():
        for factor in random_factors(adapter):
            if factor.dim() == 3:  # one slice for every site
                factor.copy_(factor[:1].expand_as(factor))
    attention, x = model.train().layers[0].self_attn, x_of()

    def run() -> list[Tensor]:
        found = []
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj):
            base = x @ proj.weight.T
            found.append(proj(x) - (base if proj.bias is None else base + proj.bias))
        return found

    return seeded(run, seed)


@pytest.mark.parametrize("name", ["lora", "lotr"])
def test_every_site_has_a_mask_of_its_own(name):
    q, k, v = parts(name, shared=False, seed=3)
    assert not torch.allclose(q, k)
    assert not torch.allclose(k, v)


@pytest.mark.parametrize("name", ["lora", "lotr"])
def test_shared_dropout_is_one_mask_for_all_that_read_one_input(name):
    q, k, v = parts(name, shared=True, seed=3)
    assert_close(k, q)
    assert_close(v, q)
    other, *_ = parts(name, shared=True, seed=4)
    assert not torch.allclose(other, q)


def test_a_site_that_reads_again_gets_a_new_mask():
    model, _ = adapted("lora", dropout=0.5, shared_dropout=True)
    layer, x = model.train().layers[0].self_attn.q_proj, x_of()
    first, second = seeded(lambda: (layer(x), layer(x)))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_dropout_keeps_the_mean(shared):
    p, n = 0.3, 4000
    model, adapter = adapted("lotr", dropout=p, shared_dropout=shared)
    layer = model.train().layers[0].self_attn.q_proj
    x = inputs(HIDDEN)
    expected = layer.weight.new_tensor(0) + adapter.delta("layers.0.self_attn.q_proj") @ x
    many = x.expand(n, HIDDEN).contiguous()
    base = many @ layer.weight.T + layer.bias
    mean = seeded(lambda: (layer(many) - base).mean(0))
    delta = adapter.delta("layers.0.self_attn.q_proj")
    deviation = ((delta**2) @ (x**2) * p / (1 - p) / n).sqrt()
    assert ((mean - expected).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_a_model_that_dropped_can_be_copied(shared):
    model, adapter = adapted("lotr", dropout=0.5, shared_dropout=shared)
    x = x_of().requires_grad_()
    model.train().layers[0](x * 1).sum().backward()
    other = copy.deepcopy(model)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert_close(model(x), dense_copy(adapter, tiny())(x))


def test_embeddings_are_not_dropped():
    _, model, _, positions = adapted_case("lora", "embeddings", dropout=0.5)
    assert torch.equal(model.train()(positions), model.eval()(positions))


# -- compiling ---------------------


@pytest.fixture
def dynamo():
    """A compiler without a past."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Raised inside the compiler, where it looks at inputs; torch hides it unless warnings are errors.
quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@quiet
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "eager") for name in METHODS]
    + [(name, "aot_eager") for name in ("lotr", "hira", "svfit", "dora")]
    + [(name, "inductor") for name in ("lotr", "dora")],
)
@pytest.mark.parametrize("what", ["layer", "model"])
def test_compiling_changes_nothing(name, what, backend):
    model, adapter = adapted(name)
    plain = model if what == "model" else model.layers[0].self_attn.q_proj
    run = torch.compile(plain, fullgraph=True, backend=backend)
    x = x_of()
    for seed in (2, 3):
        set_random(adapter, seed)
        assert_close(run(x), plain(x))
        used = [p is not None for p in _gradients(plain, adapter, x)]
        assert any(used)
        for p, q in zip(_gradients(run, adapter, x), _gradients(plain, adapter, x), strict=True):
            assert (p is None) == (q is None)
            if p is not None and q is not None:
                assert_close(p, q)
        with torch.no_grad():
            assert_close(run(x), plain(x))


def _gradients(run: Callable, adapter, x: Tensor) -> tuple[Tensor | None, ...]:
    x = x.detach().clone().requires_grad_()
    leaves = [*random_factors(adapter), x]
    return torch.autograd.grad(run(x).square().sum(), leaves, allow_unused=True)


@quiet
@pytest.mark.usefixtures("dynamo")
def test_an_adapted_layer_is_one_graph_that_is_compiled_once():
    model, adapter = adapted("lotr")
    layer, counter = model.layers[0].self_attn.q_proj, CompileCounter()
    run = torch.compile(layer, fullgraph=True, backend=counter)
    for seed in (2, 3, 4):
        set_random(adapter, seed)
        assert_close(run(x_of()), layer(x_of()))
    assert counter.frame_count == 1


# -- several processes ---------------------


def _batch_and_target() -> tuple[Tensor, Tensor]:
    return inputs(8, 5, HIDDEN), inputs(8, 5, 3, seed=4)


def _trained(model: nn.Module, adapter, x: Tensor, y: Tensor, n: int) -> list[float]:
    """Losses of a few steps; `adapter` is that of the model inside."""
    optimizer = torch.optim.SGD(adapter.param_groups(1e-2, also_train=1e-2))
    losses = []
    for _ in range(n):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _worker(rank: int, folder: str, name: str) -> None:
    """One of two processes: every second half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model, adapter = adapted(name, also_train=["head"])
    parallel = nn.parallel.DistributedDataParallel(model)
    x, y = _batch_and_target()
    own = slice(4 * rank, 4 * rank + 4)
    losses = torch.tensor(_trained(parallel, adapter, x[own], y[own], 3), dtype=torch.float64)
    torch.distributed.all_reduce(losses)
    if rank == 0:
        torch.save((losses / 2, list(model.state_dict().values())), f"{folder}/found")
    _leave(rank, Path(folder))


def _leave(rank: int, folder: Path) -> None:
    """End both processes together, and without destructors.

    That of a process group waits for a thread which may wait for the interpreter's lock.
    """
    (folder / f"done-{rank}").touch()
    while not (folder / f"done-{1 - rank}").exists():
        time.sleep(0.01)
    os._exit(0)


@pytest.mark.slow
@three_methods
def test_two_processes_train_as_one(name, tmp_path):
    model, adapter = adapted(name, also_train=["head"])
    expected = _trained(model, adapter, *_batch_and_target(), 3)
    processes = torch.multiprocessing.spawn(_worker, (str(tmp_path), name), nprocs=2, join=False)
    deadline = time.monotonic() + 240
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes do not end")
    losses, state = torch.load(tmp_path / "found")
    assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    assert_all_close(state, model.state_dict().values())


# -- optimizers ---------------------


def test_rates_go_by_factor():
    model, adapter = adapted("lora", also_train=["head"])
    groups = adapter.param_groups(1e-3, {"b": 16}, also_train=1e-2)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    for key, factor in adapter.factors().items():
        assert rates.pop(id(factor)) == (16e-3 if key.endswith("__b") else 1e-3)
    assert rates == {id(p): 1e-2 for p in model.head.parameters()}


def test_a_trainer_of_transformers_trains_it_and_nothing_else(tmp_path):
    import transformers as tf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    config = tf.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    model = seeded(lambda: tf.LlamaForCausalLM(config))
    adapter = attach(model, "singlora", targets=["q_proj", "v_proj"], rank={"r": 2, "T": 4})
    before = {key: value.clone() for key, value in model.state_dict().items()}

    class Steps(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            adapter.step(state.global_step)

    tokens = seeded(lambda: torch.randint(0, 30, (8, 6)))
    trainer = tf.Trainer(
        model,
        tf.TrainingArguments(
            str(tmp_path), max_steps=3, use_cpu=True, report_to=[], save_strategy="no"
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[Steps],
        optimizers=(torch.optim.SGD(adapter.param_groups(1.0, {"a": 2.0})), None),
    )
    trainer.train()
    assert adapter.at_step == 3
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"tdecomp_default.{key}" for key in adapter.factors()}


def test_a_factor_that_groups_share_is_in_one_parameter_group():
    adapter = adapted("lotr", targets=["q_proj", "o_proj"], share=["layer", "in", "out"])[1]
    groups = adapter.param_groups(1e-3)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(map(id, random_factors(adapter)))


@pytest.mark.parametrize(
    "name", [n for n in CATALOGUE if n not in (*AKIN, "singlora", "c3a", "fourierft")]
)
def test_a_few_steps_lower_the_loss(name):
    """Along the gradient, at a rate that is lowered until it does.

    MAP is not continuous where it starts: ΔW has a norm of its own as soon as it is not zero.
    DeLoRA is hardly: a first step goes as far as any.
    """
    model, adapter = adapted(name, random=name in ("map", "delora"))
    x, y = _batch_and_target()
    start = copy.deepcopy(adapter.pool.state_dict())
    for rate in (0.1 / 4**k for k in range(12)):
        adapter.pool.load_state_dict(start)
        optimizer = torch.optim.SGD(adapter.param_groups(rate))
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if losses == sorted(losses, reverse=True) and losses[-1] < losses[0]:
            return
    pytest.fail(f"no rate lowers the loss: {losses}")


@pytest.mark.parametrize("model", [m for m in MODELS if m != "projections"])
@three_methods
def test_other_modules_train(name, model):
    _, changed, adapter, x = adapted_case(name, model)
    loss = changed(x).square().sum()
    loss.backward()
    with torch.no_grad():
        size = sum(p.grad.square().sum() for p in random_factors(adapter))
        for factor in random_factors(adapter):
            factor -= 1e-4 * loss.detach() / size * factor.grad
        assert changed(x).square().sum() < loss
