"""Laws of contexts: what is computed once is the same in all of them, and can be trained after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import tdecomp as td
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import HIDDEN, adapted, assert_close, inputs, seeded, tiny

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
}
contexts = pytest.mark.parametrize("context", CONTEXTS)
methods = pytest.mark.parametrize("name", ["lotr", "tenslora_qkv_depth", "svfit", "edora", "c3a"])


def x_of() -> Tensor:
    return inputs(3, 5, HIDDEN, dtype=torch.float32)


def weights(model: Any) -> list[Tensor]:
    return [w.detach().clone() for w in model.state_dict().values()]


def results(name: str, context: Callable[[], AbstractContextManager[Any]]) -> list[Tensor]:
    """Everything that is computed of an adapter besides forward passes, made in a context."""
    model = tiny(torch.float32)
    with context():
        _, adapter = adapted(name, model)
    found = weights(model)
    with torch.no_grad():
        model(x_of())  # what is kept of it must not be taken in the context
    with context():
        path = adapter.targets[0].path
        found += [adapter.delta(path), *adapter.merged_state_dict().values()]
        found += [torch.from_numpy(a) for pair in adapter.to_lora() for a in (pair.b, pair.a)]
        adapter.merge(untie=True)
        found += weights(model)
        adapter.unmerge()
    return found + weights(model)


@contexts
@methods
def test_nothing_but_a_forward_pass_depends_on_the_context(name, context):
    expected = results(name, torch.no_grad)
    for a, b in zip(results(name, CONTEXTS[context]), expected, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b)


@contexts
def test_a_folded_or_loaded_adapter_is_the_same_in_every_context(context, tmp_path):
    _, expected = adapted("svfit", tiny(torch.float32), fold=True, random=False)
    expected.save(tmp_path / "saved")
    first, second = tiny(torch.float32), tiny(torch.float32)
    with CONTEXTS[context]():
        _, adapter = adapted("svfit", first, fold=True, random=False)
        loaded = load_adapter(second, tmp_path / "saved")
    for found in (adapter, loaded):
        for a, b in zip(weights(found.model), weights(expected.model), strict=True):
            assert_close(a, b)


@contexts
@methods
def test_an_adapter_trains_after_whatever_was_done_in_a_context(name, context):
    batch = {"tasks": ["a", "b"]} if name == "lotr" else {}
    model = tiny(torch.float32)
    _, other = adapted(name, tiny(torch.float32), **batch)
    with CONTEXTS[context]():
        _, adapter = adapted(name, model, **batch)
        if batch:
            adapter.task = ["a", "b", "a"]
        model(x_of())
        adapter.step(3)
        model(x_of())
    if batch:
        other.task = ["a", "b", "a"]
    other.step(3)
    found = []
    for own in (adapter, other):
        own.model(x_of()).square().sum().backward()
        found.append([p.grad for p in own.factors().values()])
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


DECOMPOSITIONS: dict[str, Callable[[Tensor], Any]] = {
    "svd": lambda x: td.svd(x, rank=4),
    "tucker": lambda x: td.tucker(x, rank=(6, 4, 4)),
    "tucker, error": lambda x: td.tucker(x, error=1e-3),
    "hosvd": lambda x: td.hosvd(x, rank=(6, 4, 4)),
    "tucker2": lambda x: td.tucker2(x, rank=(4, 4), modes=(1, 2)),
    "cp": lambda x: td.cp(x, rank=3),
    "als": lambda x: td.als(x, "l o r, r i -> l o i", rank=4),
    "tensor_train": lambda x: td.tensor_train(x, rank=(6, 4)),
    "mpo": lambda x: td.mpo(x[0], out=(5, 8), inp=(5, 6), rank=4),
}


@pytest.mark.parametrize("case", DECOMPOSITIONS)
def test_decompositions_are_the_same_under_autocast(case):
    x = seeded(
        lambda: torch.einsum(
            "lrs,or,is->loi", torch.randn(6, 4, 4), torch.randn(40, 4), torch.randn(30, 4)
        )
    )
    expected = DECOMPOSITIONS[case](x)
    with torch.autocast("cpu", torch.bfloat16):
        fit = DECOMPOSITIONS[case](x)
    assert fit.error == expected.error
    for key, array in fit.tensor.arrays.items():
        assert torch.equal(array, expected.tensor.arrays[key])


def test_ranks_and_exploration_are_the_same_under_autocast():
    x = inputs(6, 14, 11, dtype=torch.float32)
    spectra, explored = td.ranks(x), td.explore(x, [200])
    with torch.autocast("cpu", torch.bfloat16):
        assert td.ranks(x).choices == spectra.choices
        found = td.explore(x, [200])
    assert str(found) == str(explored)


def test_an_adapter_attached_under_autocast_is_exact():
    model = tiny(torch.float32)
    before = model(x_of())
    with torch.autocast("cpu", torch.bfloat16):
        attach(model, "svfit", rank=2)
    assert_close(model(x_of()), before)
