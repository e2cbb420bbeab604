"""Laws of an adapter's life on a model that changes around it: others, new parameters, wrappers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tdecomp import SiteError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import HIDDEN, Tiny, adapted, assert_close, inputs, random_factors, tiny


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
