"""A short digest of base weights, which tells a wrong base from the right one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["sample", "some"]

_MOST = 4096
_SPREAD = (5**0.5 - 1) / 2


def sample(tensors: Sequence[Tensor]) -> str | None:
    """Digest of shapes, dtypes and up to 4,096 numbers of every tensor; None: they cannot be read.

    It notices weights of another model or another training, not a few changed numbers, and does
    not protect against a forger. Weights that lie on ``meta``, on other processes or in a form of a
    library's own are not read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if not _is_plain(tensor):
            return None
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some(tensor.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def some(tensor: Tensor) -> Tensor:
    """Numbers at places all over a tensor, which neither rows nor columns have in common."""
    n = tensor.numel()
    bits = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    if n <= _MOST:
        return bits.reshape(-1)
    step = round(n * _SPREAD) | 1
    places = torch.arange(_MOST, device=tensor.device) * step % n
    index: list[Tensor] = []
    for size in reversed(tensor.shape):  # torch.unravel_index imports the compiler
        index.insert(0, places % size)
        places = places // size
    return bits[tuple(index)]


def _is_plain(tensor: Tensor) -> bool:
    """Whether the values lie here, as numbers: no subclass that is made of other tensors."""
    return not (tensor.is_meta or tensor.numel() == 0 or hasattr(tensor, "__tensor_flatten__"))
