"""Slices on a device: torch tensors, copied from pinned memory where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .pair import Empty
from .recycled import Recycled

__all__ = ["SlicePlace", "numpy_place", "torch_place"]


@dataclass(frozen=True)
class SlicePlace:
    """Where slices go: memory to read into, and the way from there.

    Parameters
    ----------
    empty
        ``empty(shape, dtype)`` gives host memory.
    put
        Turns what was written there into the array that callers get, complete when it returns.
    """

    empty: Empty
    put: Callable[[np.ndarray], Any]


def numpy_place() -> SlicePlace:
    """Place of numpy arrays, whose memory is used again when nobody holds them any more."""
    return SlicePlace(Recycled().empty, lambda array: array)


def torch_place(device: str) -> SlicePlace:
    """Place of torch tensors on a device such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    On a CUDA device copies run from pinned memory on a stream of their own, so that they overlap
    with the kernels of the stream that is current here, on which the tensors are to be used.

    Raises
    ------
    ArgumentError
        If torch is not installed, or has no such device here.
    """
    try:
        import torch
    except ImportError:
        raise ArgumentError(
            f"device {device!r} needs torch: pip install tdecomp-toolkit[torch], or leave it out"
        ) from None
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ArgumentError(f"no device {device!r}: say 'cpu', 'cuda' or 'cuda:0'") from None
    if where.type == "cuda":
        return _cuda_place(torch, where)
    try:
        torch.empty(1, device=where)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ArgumentError(f"torch cannot use the device {device!r} here: {error}") from None
    return _plain_place(torch, where)


def _plain_place(torch: Any, device: Any) -> SlicePlace:
    """Place on a device of the torch module that is not a CUDA device."""
    return SlicePlace(Recycled().empty, lambda array: torch.from_numpy(array).to(device))


def _cuda_place(torch: Any, device: Any) -> SlicePlace:
    """Place on a CUDA device of the torch module."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ArgumentError(
            f"device {str(device)!r}: torch {torch.__version__} sees no CUDA; say 'cpu', or "
            "install a torch with CUDA and its driver"
        )
    if (device.index or 0) >= count:
        raise ArgumentError(f"no device {str(device)!r}: torch sees {count}, cuda:0 the first")
    consumer, copies = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        wide = torch.float64 if dtype == np.float64 else torch.float32
        return torch.empty(shape, dtype=wide, pin_memory=True).numpy()

    def put(array: np.ndarray) -> Any:
        with torch.cuda.stream(copies):
            tensor = torch.from_numpy(array).to(device, non_blocking=True)
        # Its memory belongs to the copying stream: not to be given out again before the
        # consumer's kernels are done.
        tensor.record_stream(consumer)
        copies.synchronize()  # before the pinned memory may be used again
        return tensor

    return SlicePlace(empty, put)
