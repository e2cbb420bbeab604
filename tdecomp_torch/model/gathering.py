"""Parameters that several processes hold in parts: made whole, and written once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from tdecomp.errors import ArgumentError, FileError
from tdecomp.stack.names import canonical

__all__ = ["Writers", "check_whole", "is_part", "make_whole", "settle"]

_TOGETHER = (
    "save is called by all processes together, and use_orig_params=True keeps the parameters apart"
)


class Writers:
    """Which processes write to a folder: the first of those that were given the same one.

    Made by every process when parameters were put together from all; without, each is on its own.
    """

    def __init__(self, folder: Path, device: torch.device | None):
        self.device, self.writes = device, True
        if device is not None:
            text = str(folder.absolute()).encode()
            own = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
            folders = _of_all(torch.tensor([own], device=device))
            first = [int(f) for f in folders].index(own)
            self.writes = first == dist.get_rank()

    def agree(self, folder: Path, *, written: bool) -> None:
        """Wait for all processes; where one could not write, those that relied on it raise."""
        if self.device is None:
            return
        failed = not all(map(bool, _of_all(torch.tensor([int(written)], device=self.device))))
        if failed and written:
            raise FileError(f"{folder}: another process could not write the adapter")


def settle(model: nn.Module) -> None:
    """Let FSDP2 take apart again what it left together after a forward pass."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # pyright: ignore[reportCallIssue]


def is_part(parameter: Tensor) -> bool:
    """Whether FSDP1 or DeepSpeed's ZeRO-3 left a piece in the place of a parameter."""
    flattened = getattr(parameter, "_fsdp_flattened", False)
    return flattened or (hasattr(parameter, "ds_id") and not parameter.numel())


def make_whole(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], torch.device | None]:
    """Every tensor whole, and the device that processes talk through, where they had to.

    Parameters
    ----------
    state
        What this process holds.
    shapes
        Shape of every tensor of `state`, as far as it is known.

    Raises
    ------
    ArgumentError
        For parameters that cannot be put together here.
    """
    whole, device = {}, None
    for key, tensor in state.items():
        if tensor.is_meta:
            raise ArgumentError(
                f"{key} is on meta, without values: there is nothing to be saved, give the model"
                " its weights first"
            )
        if hasattr(tensor, "full_tensor"):  # FSDP2's and tensor parallelism's
            device = tensor.device
            whole[key] = tensor.full_tensor().detach()  # pyright: ignore[reportAttributeAccessIssue]
        elif getattr(tensor, "_fsdp_flattened", False) and _processes() > 1:
            device = tensor.device
            whole[key] = _joined(key, tensor.detach(), shapes[key])
        elif tuple(tensor.shape) == shapes.get(key, tuple(tensor.shape)):
            whole[key] = tensor.detach()
        else:
            raise ArgumentError(_misfit(key, tensor, shapes[key]))
    return whole, device


def check_whole(model: nn.Module) -> None:
    """Refuse a model of which this process holds a part only, and one wrapped to be averaged.

    Factors that come later are in none of the groups that such a wrapper has made, so that every
    process would train its own.
    """
    several = _processes() > 1
    for name, parameter in model.named_parameters():
        path = canonical(name)
        if is_part(parameter):
            raise ArgumentError(
                f"{path} is held in parts by several processes: attach the adapter first, and give"
                " the adapted model to FSDP or DeepSpeed then"
            )
        if several and hasattr(parameter, "full_tensor"):
            raise ArgumentError(
                f"{path} is sharded: attach the adapter first and shard the adapted model, so that"
                " the factors are sharded and averaged, too"
            )
    if several and any(map(_averages, model.modules())):
        raise ArgumentError(
            "DistributedDataParallel averages the gradients of the parameters that it was made"
            " with: attach to the model inside (model.module), and wrap it then"
        )


def _averages(module: nn.Module) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel)


def _joined(key: str, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parts of all processes, which FSDP cuts in the order of their ranks."""
    parts = _of_all(part.flatten())
    full = torch.Size(shape).numel()  # which every process holds if nothing is sharded
    joined = parts[0] if all(len(own) == full for own in parts) else torch.cat(parts)
    if joined.numel() != full:
        raise ArgumentError(
            f"the parts of {key} that all processes hold are {joined.numel()} numbers, not those"
            f" of {shape}: {_TOGETHER}"
        )
    return joined.reshape(shape)


def _of_all(own: Tensor) -> list[Tensor]:
    """A vector of every process, of whatever length, by rank."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(_processes())]
    dist.all_gather(sizes, torch.tensor([own.numel()], device=own.device))
    longest = max(int(n) for n in sizes)
    padded = own.new_zeros(longest)
    padded[: own.numel()] = own
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return [x[: int(n)] for x, n in zip(found, sizes, strict=True)]


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _misfit(key: str, tensor: Any, shape: tuple[int, ...]) -> str:
    found = f"{key} is {tuple(tensor.shape)} here, {shape} is expected"
    if hasattr(tensor, "ds_id"):
        return (
            f"{found}: DeepSpeed holds it in parts, save inside"
            " deepspeed.zero.GatheredParameters(model.parameters())"
        )
    return f"{found}: {_TOGETHER}"
