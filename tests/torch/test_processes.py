"""Two processes train one adapter: the losses and the file are those of one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, distributed, nn

from tdecomp_torch import attach, load_adapter
from tdecomp_torch.peft import TensorAdapterConfig, adapter_of
from tests.torch.cases import HIDDEN, assert_close, inputs, set_random, tiny

STEPS, RATE = 3, 0.05


def by_attach(method: str) -> tuple[nn.Module, Any]:
    adapter = attach(tiny(), method, rank=2, tokens=64)
    set_random(adapter)
    return adapter.model, adapter


def by_peft(method: str) -> tuple[nn.Module, Any]:
    config = TensorAdapterConfig(method=method, rank=2, tokens=64, seed=0)
    model = get_peft_model(tiny(), config)
    set_random(adapter_of(model))
    return model, adapter_of(model)


def averaged(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if type(module).__name__ == "Layer":
            fully_shard(module)
    return fully_shard(model)


WAYS: dict[str, Callable[[str], Any]] = {"attach": by_attach, "peft": by_peft}
WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {"ddp": averaged, "fsdp2": sharded}
METHODS = ("lotr",)


def trained(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """The loss of every step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for x in batches:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def batches() -> list[Tensor]:
    return [inputs(4, 5, HIDDEN, seed=k) for k in range(STEPS)]


def check(way: str, wrap: str, method: str, rank: int, folder: str) -> None:
    """Compare this process, with half of every batch, to one with all of it."""
    plain, alone = WAYS[way](method)
    expected = trained(plain, batches())
    model, adapter = WAYS[way](method)
    wrapped = WRAPS[wrap](model)
    for own, whole in zip(trained(wrapped, [x[rank::2] for x in batches()]), expected, strict=True):
        distributed.all_reduce(own)
        assert_close(own / 2, whole)
    where = f"{folder}/{way}-{wrap}-{method}"
    if wrap == "fsdp2" or rank == 0:  # every process of DDP holds all of it
        adapter.save(where)
    distributed.barrier()
    again = load_adapter(tiny(), where)
    for path in (target.path for target in alone.targets):
        assert_close(again.delta(path), alone.delta(path))
    if way == "peft":
        saved_by_peft(model, plain, f"{where}-{rank}")


def saved_by_peft(model: nn.Module, plain: nn.Module, where: str) -> None:
    """PEFT's own file, of the whole state as accelerate brings it, gives the same outputs."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=False)
    state = get_model_state_dict(model, options=options)
    if distributed.get_rank() == 0:
        model.save_pretrained(where, state_dict=state)
        x = batches()[0]
        assert_close(PeftModel.from_pretrained(tiny(), where)(x), plain(x))


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for way in WAYS:
        for wrap in WRAPS:
            for method in METHODS:
                check(way, wrap, method, rank, folder)
    Path(folder, f"done-{rank}").touch()
    while not Path(folder, f"done-{1 - rank}").exists():
        time.sleep(0.01)
    os._exit(0)  # the destructor of a process group may wait for ever


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    processes = torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2, join=False)
    deadline = time.monotonic() + 240
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes do not end")
    for rank in range(2):
        assert Path(tmp_path, f"done-{rank}").exists()
