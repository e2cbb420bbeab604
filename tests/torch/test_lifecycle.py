"""Laws of an adapter's life on a model that changes around it: others, new parameters, wrappers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune

from tdecomp import ArgumentError, SiteError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import (
    HIDDEN,
    Tiny,
    adapted,
    assert_close,
    inputs,
    random_factors,
    seeded,
    set_random,
    tiny,
)


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


# -- several adapters ---------------------


@pytest.mark.parametrize("second", ["lora", "vera", "dora"])
def test_a_second_adapter_leaves_the_first_as_it_is(second):
    model = tiny()
    _, first = adapted("lora", model, name="first", targets=["q_proj"], also_train=["head"])
    attach(model, second, name="second", targets=["v_proj"], rank=2)
    model(x_of()).square().sum().backward()
    assert all(f.grad is not None and f.grad.any() for f in random_factors(first))
    assert model.head.weight.grad is not None
    assert model.layers[0].self_attn.k_proj.weight.grad is None
    assert set(first.trained_besides()) == {"head.weight", "head.bias"}


def test_an_adapter_of_the_whole_leaves_that_of_a_part():
    model = tiny()
    part = attach(model.layers[0], "lora", targets=["q_proj"], rank=2, also_train=["k_proj"])
    whole = attach(model, "lora", targets=["v_proj"], rank=2)
    assert all(p.requires_grad for p in part.factors().values())
    assert part.trained_besides().keys() == {"self_attn.k_proj.weight"}
    assert whole.trained_besides() == {}
    part.detach()
    whole.detach()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_one_of_two_trained_besides_stops_with_it(first):
    model = tiny()
    adapters = {
        "a": adapted("lora", model, name="a", also_train=["head"])[1],
        "b": adapted("lora", model, name="b", also_train=["head.bias"])[1],
    }
    adapters.pop(first).detach()
    (left,) = adapters.values()
    assert {n for n, p in model.named_parameters() if p.requires_grad and "tdecomp" not in n} == (
        {"head.bias"} if left.name == "b" else {"head.weight", "head.bias"}
    )
    left.detach()
    assert all(p.requires_grad for p in model.parameters())


# -- parameters that are replaced ---------------------


def assigned(model: Tiny) -> None:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def new_head(model: Tiny) -> None:
    model.head = nn.Linear(HIDDEN, 4).double()


def new_weight(model: Tiny) -> None:
    model.head.weight = nn.Parameter(torch.ones(5, HIDDEN, dtype=torch.float64))
    model.head.bias = nn.Parameter(torch.ones(5, dtype=torch.float64))


def wrapped(model: Tiny) -> None:
    model.head = checkpoint_wrapper(model.head)  # pyright: ignore[reportAttributeAccessIssue]


def moves_and_is_saved(model: Tiny, change: Callable[[Tiny], None], folder) -> None:
    adapter = adapted("lora", model, targets=["q_proj"], also_train=["head"])[1]
    change(model)
    besides = adapter.trained_besides()
    assert set(besides) == {"head.weight", "head.bias"}
    optimizer = torch.optim.SGD(adapter.param_groups(0.1))
    before = besides["head.weight"].detach().clone()
    model(x_of()).square().sum().backward()
    optimizer.step()
    after = model.head.weight.detach()
    assert not torch.equal(before, after)
    adapter.save(folder)
    again = tiny()
    again.head = nn.Linear(HIDDEN, len(after)).double()
    load_adapter(again, folder)
    assert torch.equal(again.head.weight, after)


@pytest.mark.parametrize("change", [assigned, new_head, new_weight, wrapped])
def test_what_is_trained_besides_is_found_by_name(change, tmp_path):
    moves_and_is_saved(tiny(), change, tmp_path / "saved")


def test_a_parameter_that_is_gone_is_told():
    model = tiny()
    adapter = adapted("lora", model, targets=["q_proj"], also_train=["head"])[1]
    model.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SiteError, match=r"'head\.weight' is trained with the adapter 'default'"):
        adapter.param_groups(0.1)
    adapter.detach()


def test_a_tied_parameter_is_trained_by_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layers = nn.Embedding(7, 6), nn.ModuleList([nn.Linear(6, 6)])
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.words.weight

    for name in ("words", "head"):
        model = Tied()
        adapter = attach(model, "lora", targets=["0"], rank=2, also_train=[name])
        assert model.words.weight.requires_grad
        assert len(adapter.trained_besides()) == 1


def test_an_adapter_can_be_saved_after_it_was_detached(tmp_path):
    model, adapter = adapted("lora", also_train=["head"])
    expected = model(x_of())
    adapter.detach()
    adapter.save(tmp_path / "saved")
    again = tiny()
    load_adapter(again, tmp_path / "saved")
    assert_close(again(x_of()), expected)


# -- modules that are replaced, resized or computed ---------------------


def another_layer(model: Tiny) -> None:
    model.layers[1] = tiny().layers[0]


def another_query(model: Tiny) -> None:
    model.layers[0].self_attn.q_proj = nn.Linear(HIDDEN, 12).double()


def wider_query(model: Tiny) -> None:
    model.layers[0].self_attn.q_proj = nn.Linear(HIDDEN, 14).double()


def no_query(model: Tiny) -> None:
    del model.layers[0].self_attn.q_proj


def resized(model: Tiny) -> None:
    query = model.layers[0].self_attn.q_proj
    query.weight = nn.Parameter(torch.ones(14, HIDDEN, dtype=torch.float64))


REPLACED = {
    another_layer: r"layers\.1\.self_attn\.q_proj was replaced by another Linear after",
    another_query: r"layers\.0\.self_attn\.q_proj was replaced by another Linear after",
    wider_query: r"q_proj was replaced by another Linear, \(14, 8\) in place of \(12, 8\)",
    no_query: r"layers\.0\.self_attn\.q_proj is gone after",
    resized: r"q_proj was \(12, 8\) when the adapter was attached and is \(14, 8\)",
}
ACTS: dict[str, Callable] = {
    "forward": lambda model, adapter, folder: model(x_of()),
    "merge": lambda model, adapter, folder: adapter.merge(),
    "merged state": lambda model, adapter, folder: adapter.merged_state_dict(),
    "save": lambda model, adapter, folder: adapter.save(folder),
    "export": lambda model, adapter, folder: adapter.to_lora(),
}


@pytest.mark.parametrize("change", REPLACED)
def test_a_module_that_was_replaced_is_told(change, tmp_path):
    model, adapter = adapted("lora", targets=["q_proj"])
    expected = model(x_of())
    change(model)
    for act in ACTS.values():
        with pytest.raises(SiteError, match=REPLACED[change]):
            act(model, adapter, tmp_path / "saved")
    adapter.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    adapter.save(tmp_path / "saved")
    again = tiny()
    load_adapter(again, tmp_path / "saved")
    assert_close(again(x_of()), expected)


def test_a_module_that_comes_back_or_is_wrapped_goes_on():
    model, adapter = adapted("lora", targets=["q_proj"])
    expected = model(x_of())
    attention = model.layers[0].self_attn
    query = attention.q_proj
    attention.q_proj = nn.Linear(HIDDEN, 12).double()
    with pytest.raises(SiteError, match="was replaced"):
        model(x_of())
    attention.q_proj = query
    assert torch.equal(model(x_of()), expected)
    model.layers[1] = checkpoint_wrapper(model.layers[1])  # pyright: ignore
    model.layers[0] = nn.Sequential(model.layers[0])  # pyright: ignore
    assert_close(model(x_of()), expected)
    adapter.merge()
    assert_close(model(x_of()), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_of_transformers_is_not_resized_under_an_adapter(tied):
    import transformers as tf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 30}
    config = tf.LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied)
    model = tf.LlamaForCausalLM(config)
    ids, others = torch.arange(5)[None], set(model.__dict__)
    for target in ("lm_head", "embed_tokens"):
        adapters = [attach(model, "lora", targets=[target], rank=2, name=name) for name in "ab"]
        expected = model(ids).logits
        for adapter in adapters:  # until the last is off
            with pytest.raises(SiteError, match=rf"{target} cannot be resized from \d+ to 40 rows"):
                model.resize_token_embeddings(40, mean_resizing=False)
            assert torch.equal(model(ids).logits, expected)
            same = model.config.vocab_size
            assert model.resize_token_embeddings(same) is model.get_input_embeddings()
            adapter.detach()
        model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
        assert set(model.__dict__) == others


COMPUTED: dict[str, tuple[Callable, Callable]] = {
    "weight_norm": (
        parametrizations.weight_norm,
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "spectral_norm": (
        parametrizations.spectral_norm,
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "orthogonal": (
        parametrizations.orthogonal,
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "weight_norm of old": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm of old": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    "pruned": (
        lambda m: prune.random_unstructured(m, "weight", 0.5),
        lambda m: prune.remove(m, "weight"),
    ),
    "pruned twice": (
        lambda m: prune.ln_structured(prune.l1_unstructured(m, "weight", 3), "weight", 2, 2, 0),
        lambda m: prune.remove(m, "weight"),
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("method", ["lora", "lotr"])
def test_a_weight_that_is_computed_is_adapted_and_merged_when_it_is_plain(kind, method, tmp_path):
    make, make_plain = COMPUTED[kind]
    model = seeded(lambda: nn.Sequential(make(nn.Linear(8, 6)))).double().eval()
    before = model(inputs(3, 8))
    adapter = attach(model, method, targets=["0"], rank=2)
    set_random(adapter)
    expected = model(inputs(3, 8))
    change = inputs(3, 8) @ adapter.delta("0").T
    assert_close(expected, before + change)
    for act in (adapter.merge, adapter.merged_state_dict):
        with pytest.raises(
            SiteError, match=r"^0 has no weight of its own .* computed from .*weight"
        ):
            act()
    adapter.save(tmp_path / "saved")
    assert adapter.to_lora()[0].module == "0"
    assert_close(model(inputs(3, 8)), expected)
    make_plain(model[0])
    assert_close(model(inputs(3, 8)), expected)
    adapter.merge()
    assert_close(model(inputs(3, 8)), expected)
    adapter.unmerge()
    adapter.detach()
    assert_close(model(inputs(3, 8)), before)
    with pytest.raises(
        ArgumentError, match="fold=True cannot subtract from the weight of 0, which"
    ):
        attach(nn.Sequential(make(nn.Linear(8, 6))), "svfit", targets=["0"], rank=2, fold=True)


# -- copies, dtypes, recomputing ---------------------


@pytest.mark.parametrize("name", ["lora", "vera", "dora"])
def test_a_life_of_an_adapter(name, tmp_path):
    """What users do one after the other, each of which leaves the function as it was."""
    model, adapter = adapted(name, targets=["q_proj", "v_proj"], also_train=["head"])
    expected = model(x_of())
    other = copy.deepcopy(model)
    assert torch.equal(other(x_of()), expected)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    adapter.merge()
    assert_close(model(x_of()), expected)
    adapter.unmerge()
    beside = attach(model, "lora", name="beside", targets=["o_proj"], rank=2)
    assert torch.equal(model(x_of()), expected)
    with torch.no_grad():
        for factor in (*adapter.factors().values(), *beside.factors().values()):
            factor.normal_()
    beside.detach()
    model.load_state_dict(state)
    assert torch.equal(model(x_of()), expected)
    model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    assert torch.equal(model(x_of()), expected)
    adapter.save(tmp_path / "saved")
    adapter.detach()
    load_adapter(model, tmp_path / "saved")
    assert torch.equal(model(x_of()), expected)
    assert torch.equal(other(x_of()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["lora", "vera", "dora"])
def test_an_adapter_goes_along_to_another_precision(name, dtype, tmp_path):
    model, adapter = adapted(name)
    expected = model(x_of())
    model.to(dtype)
    assert {f.dtype for f in adapter.factors().values()} == {dtype}
    found = model(x_of().to(dtype))
    distance = (found.double() - expected).norm() / expected.norm()
    assert distance < 200 * torch.finfo(dtype).eps
    adapter.save(tmp_path / "saved")
    again = tiny().to(dtype)
    load_adapter(again, tmp_path / "saved")
    assert torch.equal(again(x_of().to(dtype)), found)
