"""Saving where parameters are not whole: sharded over processes, offloaded, of a library's own."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import safetensors
import torch
from torch import nn

from tdecomp import ArgumentError, SiteError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import (
    HIDDEN,
    Tiny,
    adapted,
    assert_close,
    dense_copy,
    inputs,
    set_random,
    tiny,
)


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


# -- one process ---------------------


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def fsdp1(model: Any) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu)


def fsdp1_by_layer(model: Any) -> nn.Module:
    for k, layer in enumerate(model.layers):
        model.layers[k] = fsdp1(layer)
    return fsdp1(model)


def fsdp2(model: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


SHARDED: dict[str, Callable[[Any], nn.Module]] = {
    "fsdp1": fsdp1,
    "fsdp1 by layer": fsdp1_by_layer,
    "fsdp2": fsdp2,
}
gloo = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@gloo
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("name", ["lora", "vera", "dora"])
def test_a_sharded_adapter_trains_and_is_saved(how, name, tmp_path):
    model, adapter = adapted(name, also_train=["head"])
    sharded = SHARDED[how](model)
    optimizer = torch.optim.SGD(adapter.param_groups(0.1))
    sharded(x_of()).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        expected = sharded(x_of())
    adapter.save(tmp_path / "saved")
    again = tiny()
    loaded = load_adapter(again, tmp_path / "saved")
    assert_close(again(x_of()), expected)
    assert loaded.notes == ()
    assert loaded.trained_besides().keys() == {"head.weight", "head.bias"}
    assert not torch.equal(again.head.weight, tiny().head.weight)


@gloo
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("how", ["fsdp1", "fsdp2"])
def test_nothing_is_merged_into_shards(how):
    model, adapter = adapted("lora")
    SHARDED[how](model)
    with pytest.raises(
        SiteError, match=r"q_proj is sharded \(.*load the saved adapter on the whole"
    ):
        adapter.merge()
    assert not adapter.is_merged


# -- several processes ---------------------


def _worker(rank: int, folder: str) -> None:
    """One of two processes: saves into a folder of both and into one of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for how in ("fsdp1", "fsdp2"):
        model, adapter = adapted("lora", also_train=["head"])
        sharded = SHARDED[how](model)
        optimizer = torch.optim.SGD(adapter.param_groups(0.1))
        sharded(x_of()).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            expected = sharded(x_of())
        adapter.save(f"{folder}/both-{how}")
        adapter.save(f"{folder}/of-{rank}-{how}")
        for saved in (f"both-{how}", f"of-{rank}-{how}"):
            again = tiny()
            load_adapter(again, f"{folder}/{saved}")
            assert_close(again(x_of()), expected)
        with pytest.raises(ArgumentError, match="attach the adapter first"):
            attach(model, "lora", rank=2, name="late")
    Path(folder, f"done-{rank}").touch()
    while not Path(folder, f"done-{1 - rank}").exists():
        time.sleep(0.01)
    os._exit(0)  # the destructor of a process group may wait for ever


@pytest.mark.slow
def test_two_processes_save_one_adapter(tmp_path):
    processes = torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2, join=False)
    deadline = time.monotonic() + 240
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes do not end")


class Zero3(nn.Parameter):
    """A parameter as DeepSpeed leaves it outside of a forward pass."""

    ds_id = 7


def emptied(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, Zero3(parameter.detach()[:0]))


def test_parameters_that_deepspeed_took_apart_are_refused(tmp_path):
    _, adapter = adapted("lora", targets=["q_proj"])
    for key in adapter.factors():
        setattr(adapter.pool, key, Zero3(torch.empty(0)))
    with pytest.raises(ArgumentError, match=r"is \(0,\) here.*GatheredParameters"):
        adapter.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    model = tiny()
    emptied(model.layers[0].self_attn.q_proj)
    with pytest.raises(ArgumentError, match=r"q_proj\.weight is held in parts.*attach.* first"):
        attach(model, "lora", rank=2)


# -- offloaded ---------------------


def to_disk(model: Tiny, folder: Path) -> None:
    places = {"layers.0": "cpu", "layers.1": "disk", "head": "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


def to_memory(model: Tiny, folder: Path) -> None:
    del folder
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("where", [to_disk, to_memory])
@pytest.mark.parametrize("name", ["lora", "dora", "lora_xs", "hira"])
def test_an_adapter_on_offloaded_weights_acts_as_on_weights_in_memory(where, name, tmp_path):
    plain, model = tiny(), tiny()
    where(model, tmp_path / "offloaded")
    _, adapter = adapted(name, model)
    assert {f.device.type for f in adapter.factors().values()} == {"cpu"}
    beside = adapted(name, plain)[1]
    assert_close(model(x_of()), plain(x_of()))
    model(x_of()).square().sum().backward()
    adapter.save(tmp_path / "saved")
    again = tiny()
    loaded = load_adapter(again, tmp_path / "saved")
    assert_close(again(x_of()), plain(x_of()))
    unknown = "Whether the base weights of layers.*they could not be read"
    assert len(loaded.notes) == 1
    assert re.match(unknown, loaded.notes[0])
    with pytest.raises(SiteError, match=r"is offloaded or on meta \(Linear\)"):
        adapter.merge()
    beside.merge()


def test_factors_that_are_offloaded_with_the_model_are_told(tmp_path):
    model, _ = adapted("lora")
    to_memory(model, tmp_path)
    with pytest.raises(SiteError, match="attach after dispatch_model or cpu_offload"):
        model(x_of())


def test_what_is_offloaded_is_not_trained_besides(tmp_path):
    model = tiny()
    to_memory(model, tmp_path)
    with pytest.raises(ArgumentError, match=r"also_train='head\.weight' is offloaded"):
        attach(model, "lora", rank=2, also_train=["head"])
    assert not any("tdecomp" in name for name, _ in model.named_modules())


def test_nothing_is_saved_from_meta(tmp_path):
    with torch.device("meta"):
        model = Tiny()
    adapter = attach(model, "lora", rank=2)
    with pytest.raises(ArgumentError, match=r"12x8__b is on meta, without values"):
        adapter.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_start_from_weights_on_meta_is_refused():
    with torch.device("meta"):
        model = Tiny()
    with pytest.raises(SiteError, match=r"is on meta, without values"):
        attach(model, "lora_xs", rank=2)


# -- what a file says of its base ---------------------


class Codes(torch.Tensor):
    """A weight made of other tensors, as torchao's: it has no numbers of its own."""

    def __new__(cls, values: torch.Tensor):
        found = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        found.values_ = values  # pyright: ignore[reportAttributeAccessIssue]
        return found

    def __tensor_flatten__(self):
        return ["values_"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        from torch.utils._pytree import tree_map_only

        args, kwargs = tree_map_only(cls, lambda t: t.values_, (args, kwargs or {}))
        found = func(*args, **kwargs)
        return cls(found) if func is torch.ops.aten.detach.default else found


def test_weights_of_a_library_are_not_read_for_saving(tmp_path):
    model = tiny()
    for layer in model.layers:
        query = layer.self_attn.q_proj
        query.weight = nn.Parameter(Codes(query.weight.detach()), requires_grad=False)
    adapter = attach(model, "lora", targets=["q_proj"], rank=2)
    set_random(adapter)
    expected = model(x_of())
    adapter.save(tmp_path / "saved")
    again = tiny()
    assert "is unknown" in load_adapter(again, tmp_path / "saved").notes[0]
    assert_close(again(x_of()), expected)


def test_saving_reads_no_base_weight(tmp_path, monkeypatch):
    """A sample of every weight is taken, of a few thousand numbers."""
    model = nn.Sequential(nn.Linear(1 << 12, 1 << 10, bias=False))
    adapter = attach(model, "lora", targets=["0"], rank=2)
    moved: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: moved.append(x.numel()) or cpu(x))
    adapter.save(tmp_path / "saved")
    assert max(moved) <= max(4096, *(f.numel() for f in adapter.factors().values()))


@pytest.mark.parametrize("change", [lambda w: w.mul_(1.001), lambda w: w.T[0].zero_()])
def test_another_base_is_told(change, tmp_path):
    _, adapter = adapted("lora")
    adapter.save(tmp_path / "saved")
    other = tiny()
    with torch.no_grad():
        change(other.layers[1].self_attn.v_proj.weight)
    assert load_adapter(other, tmp_path / "saved").notes == (
        "The base weights differ from those that this adapter was trained on.",
    )


@pytest.mark.parametrize("state", ["merged", "folded", "detached", "as it is"])
def test_the_base_is_known_whatever_state_the_adapter_is_in(state, tmp_path):
    name = "loldu" if state == "folded" else "lora"
    _, adapter = adapted(name, fold=state == "folded")
    if state == "merged":
        adapter.merge()
    if state == "detached":
        adapter.detach()
    adapter.save(tmp_path / "saved")
    assert load_adapter(tiny(), tmp_path / "saved").notes == ()


@pytest.mark.parametrize("same", [True, False])
def test_a_file_of_the_first_version_is_read(same, tmp_path):
    """It held one digest of all bytes."""
    import hashlib

    model, adapter = adapted("lora", targets=["q_proj"])
    expected = model(x_of())
    adapter.save(tmp_path / "saved")
    path = tmp_path / "saved" / "factors.safetensors"
    digest = hashlib.sha256()
    for k in (0, 1):
        weight = tiny().layers[k].self_attn.q_proj.weight.detach()
        digest.update(f"layers.{k}.self_attn.q_proj {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.numpy().tobytes() if same else b"")
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["tdecomp.adapter"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del document["base_samples"]
    document |= {"version": 1, "base_hash": digest.hexdigest()}
    safetensors.torch.save_file(tensors, path, {"tdecomp.adapter": json.dumps(document)})
    again = tiny()
    notes = load_adapter(again, tmp_path / "saved").notes
    assert_close(again(x_of()), expected)
    assert notes == (
        () if same else ("The base weights differ from those that this adapter was trained on.",)
    )


@pytest.mark.usefixtures("group")
def test_dense_weights_are_those_of_the_file_of_a_sharded_model(tmp_path):
    model, adapter = adapted("lotr")
    expected = dense_copy(adapter, tiny())(x_of())
    fsdp2(model)
    adapter.save(tmp_path / "saved")
    again = tiny()
    load_adapter(again, tmp_path / "saved")
    assert_close(again(x_of()), expected)
