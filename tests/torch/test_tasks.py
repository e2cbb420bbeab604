"""One adapter for several tasks: `task` is a site mode, and every example may have its own."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from tdecomp import ArgumentError
from tdecomp.errors import FileError
from tdecomp_torch import Adapter, attach, load_adapter
from tests.torch.cases import (
    HIDDEN,
    MODELS,
    adapted,
    arrays_of,
    assert_close,
    inputs,
    seeded,
    set_random,
    tiny,
)

TASKS = ("english", "french", "german")
METHODS = ("lora", "lotr", "flora", "itl", "lorta", "vera", "dora", "c3a", "dota", "hira")
every_method = pytest.mark.parametrize("name", METHODS)
PER_EXAMPLE = ("german", "english", "german", "french")


def several(name: str, **options: Any) -> tuple[Any, Adapter]:
    return adapted(name, tasks=TASKS, **options)


def dense_of(task: str, adapter: Adapter) -> torch.nn.Module:
    """The unadapted model with the weights of one task, by the numpy core."""
    model = tiny()
    modules = dict(model.named_modules())
    for m, (bound, grid) in enumerate(zip(adapter.groups, adapter.grids, strict=True)):
        arrays = arrays_of(adapter, m)
        for k, site in enumerate(grid.sites):
            if dict(site.labels)["task"] == task:
                weight = modules[site.module].weight
                new = bound.weight(weight.detach().numpy(), arrays, k)
                with torch.no_grad():
                    weight.copy_(torch.as_tensor(new))
    return model


@every_method
@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_weights_of_its_own(name, task):
    model, adapter = several(name)
    adapter.task = task
    x = inputs(4, 5, HIDDEN)
    assert_close(model(x), dense_of(task, adapter)(x))


@every_method
def test_every_example_may_have_its_own_task(name):
    model, adapter = several(name)
    x = inputs(4, 5, HIDDEN)
    adapter.task = PER_EXAMPLE
    assert adapter.task == PER_EXAMPLE
    found = model(x)
    found.square().sum().backward()
    gradients = {k: p.grad.clone() for k, p in adapter.factors().items() if p.grad is not None}

    model.zero_grad()
    for row, task in enumerate(PER_EXAMPLE):
        adapter.task = task
        one = model(x[row : row + 1])
        assert_close(found[row : row + 1], one)
        one.square().sum().backward()
    for key, gradient in gradients.items():
        assert_close(gradient, adapter.factors()[key].grad)


@pytest.mark.parametrize("model", ["conv1d", "middle part", "embeddings", "convolutions"])
def test_tasks_of_other_modules(model):
    case = MODELS[model]
    changed = seeded(case.make).double()
    adapter = attach(changed, "lora", rank=2, tasks=TASKS[:2], **case.options)
    set_random(adapter)
    x = case.read()
    by_task = []
    for task in TASKS[:2]:
        adapter.task = task
        by_task.append(changed(x))
    adapter.task = [TASKS[k % 2] for k in range(len(x))]
    for row, found in enumerate(changed(x)):
        assert_close(found, by_task[row % 2][row])


def test_what_tasks_share_follows_from_the_equation():
    _, adapter = several("lotr", targets=["q_proj", "v_proj"])
    shapes = {key.partition("__")[2]: tuple(f.shape) for key, f in adapter.factors().items()}
    assert shapes == {"left": (12, 2), "core": (12, 2, 2), "right": (2, 8)}
    _, apart = several("lotr", targets=["q_proj", "v_proj"], share=["layer", "proj"])
    assert apart.n_trainable == 3 * (12 * 2 + 4 * 4 + 2 * 8)
    _, terms = several("itl", targets=["q_proj"], rank=2)
    shapes = {key.partition("__")[2]: tuple(f.shape) for key, f in terms.factors().items()}
    assert shapes["selector"] == (2, 1, 3, 2)


@every_method
def test_a_merged_task_is_the_adapted_model_and_comes_out_again(name):
    model, adapter = several(name)
    x, before = inputs(4, 5, HIDDEN), copy.deepcopy(model.state_dict())
    adapter.task = "french"
    adapted_model = model(x)
    state = adapter.merged_state_dict()
    adapter.merge()
    assert_close(model(x), adapted_model)
    with pytest.raises(ArgumentError, match="is merged with the task 'french'"):
        adapter.task = "german"
    adapter.unmerge()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    plain = tiny()
    plain.load_state_dict(state)
    assert_close(plain(x), adapted_model)


@pytest.mark.parametrize("name", ["lora", "lotr", "hira", "dora"])
def test_lora_pairs_are_those_of_the_task_that_acts(name):
    _, adapter = several(name)
    for task in TASKS:
        adapter.task = task
        new = dict(dense_of(task, adapter).named_modules())
        pairs = adapter.to_lora()
        assert {pair.module for pair in pairs} == {target.path for target in adapter.targets}
        for pair in pairs:
            change = (
                new[pair.module].weight.detach()
                - dict(tiny().named_modules())[pair.module].weight.detach()
            )
            assert_close(torch.as_tensor(pair.b @ pair.a), change)


def test_tasks_are_saved(tmp_path):
    model, adapter = several("flora")
    x = inputs(4, 5, HIDDEN)
    adapter.task = PER_EXAMPLE
    found = model(x)
    adapter.save(tmp_path / "mine")
    other = tiny()
    again = load_adapter(other, tmp_path / "mine")
    assert again.task == TASKS[0]
    again.task = PER_EXAMPLE
    assert torch.equal(other(x), found)


def test_dropout_and_parts_of_the_model_take_tasks():
    model, adapter = several("lora", dropout=0.5, shared_dropout=True)
    adapter.task = PER_EXAMPLE
    model.train()
    x = inputs(4, 5, HIDDEN)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = model(x)
        assert not torch.equal(model(x), first)
    model.eval()
    assert_close(model.layers[0](x), model.layers[0](x))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("english", "must be names"),
        ([1, 2], "must be names"),
        (["a", ""], "must be names"),
        (["a", "a"], "has a name twice"),
    ],
)
def test_tasks_that_are_none_are_refused(tasks, message):
    with pytest.raises(ArgumentError, match=message):
        attach(tiny(), "lora", rank=2, tasks=tasks)


def test_tasks_that_do_not_fit_are_refused():
    model, adapter = several("lora")
    with pytest.raises(ArgumentError, match=r"no task 'frensh', did you mean 'french'\?"):
        adapter.task = "frensh"
    with pytest.raises(ArgumentError, match="task=3 must be a name, or a list"):
        adapter.task = 3
    with pytest.raises(ArgumentError, match="names no task"):
        adapter.task = []
    adapter.task = PER_EXAMPLE
    with pytest.raises(ArgumentError, match=r"tasks of 4 examples, a Linear got .*\(3, 5, 8\)"):
        model(inputs(3, 5, HIDDEN))
    for act in (adapter.merge, adapter.to_lora, adapter.merged_state_dict):
        with pytest.raises(ArgumentError, match="every example has a task of its own"):
            act()
    assert not adapter.is_merged
    _, other = adapted("lora")
    assert other.task is None
    with pytest.raises(ArgumentError, match="give tasks= to attach"):
        other.task = "english"
    with pytest.raises(ArgumentError, match="goes without tasks"):
        attach(tiny(), "dota", rank=2, tasks=TASKS, fold=True)


def test_tasks_are_not_given_to_weights_that_have_them_by_name():
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4)})})
    with pytest.raises(ArgumentError, match="a.q has a place along the mode 'task' by its name"):
        attach(model, "lora", rank=2, patterns=["{task}.{proj}"], tasks=TASKS)


def _no_tasks(settings, labels) -> None:
    settings["tasks"] = []


def _one_task_less(settings, labels) -> None:
    settings["tasks"].pop()


def _other_names(settings, labels) -> None:
    settings["tasks"][0] = "dutch"


def _no_label(settings, labels) -> None:
    labels.clear()


def _twice(settings, labels) -> None:
    labels[-1][1] = "french"


@pytest.mark.parametrize("change", [_no_tasks, _one_task_less, _other_names, _no_label, _twice])
def test_a_file_whose_sites_do_not_fit_its_tasks_is_refused(change, tmp_path):
    _, adapter = several("lora")
    adapter.save(tmp_path / "mine")
    file = tmp_path / "mine" / "factors.safetensors"
    with safetensors.safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    document = json.loads(metadata["tdecomp.adapter"])
    change(document["settings"], document["grids"][0]["sites"][0]["labels"])
    tensors = load_file(file)
    save_file(tensors, file, metadata | {"tdecomp.adapter": json.dumps(document)})
    with pytest.raises(FileError, match=r"is damaged: .* is not one site for each of"):
        load_adapter(tiny(), tmp_path / "mine")
