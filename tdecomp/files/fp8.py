"""Scales of fp8 weights: finding the companion tensor and multiplying by it.

Every known layout is one rule per mode: entry ``i`` of a mode uses scale ``i // block``. One scale
for all is a block as long as the mode, one per channel is a block of 1, DeepSeek's tiles are
blocks of 128.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FileError
from .safetensors import FP8, Entry

__all__ = ["apply_scale", "block_sizes", "configured_block", "find_scales"]

_COMPANIONS = ("_scale_inv", "_scale")  # DeepSeek (multiplied as well, despite the name); vLLM's
_USUAL_BLOCK = 128


def find_scales(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Scale of every fp8 weight that has one, by the weight's name."""
    scales: dict[str, Entry] = {}
    for name, entry in entries.items():
        companions = [name + suffix for suffix in _COMPANIONS if name + suffix in entries]
        if entry.dtype in FP8 and companions:
            scales[name] = entries[companions[0]]
    return scales


def configured_block(config: Mapping[str, Any]) -> tuple[int, ...]:
    """``quantization_config.weight_block_size`` of a config.json, ``()`` where there is none."""
    section = config.get("quantization_config")
    block = section.get("weight_block_size") if isinstance(section, Mapping) else None
    if not isinstance(block, list | tuple) or not all(type(n) is int and n > 0 for n in block):
        return ()
    return tuple(block)


def block_sizes(weight: Entry, scale: Entry, configured: Sequence[int] = ()) -> tuple[int, ...]:
    """How many entries of each mode of ``weight`` share one scale.

    Parameters
    ----------
    weight, scale
        An fp8 tensor and its companion.
    configured
        Block sizes of the last modes that the model's config states.

    Raises
    ------
    FileError
        If the shape of the scale fits no known layout.
    """
    shape, order = weight.shape, len(weight.shape)
    blocks = [_block(n, s, b) for n, s, b in _aligned(shape, scale.shape, configured)]
    if None in blocks or len(blocks) != order:
        raise FileError(
            f"{scale.file}: scale {scale.name!r} of shape {scale.shape} does not fit the fp8 "
            f"weight {weight.name!r} of shape {shape}: expected one number, one per output, or "
            f"one per block of {tuple(configured) or _USUAL_BLOCK}"
        )
    return tuple(block for block in blocks if block is not None)


def _aligned(
    shape: Sequence[int], scale_shape: Sequence[int], configured: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Size, number of scales and stated block of every mode of the weight."""
    scales = list(scale_shape)
    if all(s == 1 for s in scales):  # () or (1,)
        scales = [1] * len(shape)
    elif len(scales) == len(shape) - 1:  # (out,) stands for (out, 1)
        scales.append(1)
    stated = [1] * len(shape) + list(configured or (_USUAL_BLOCK, _USUAL_BLOCK))
    if len(scales) != len(shape):
        return []
    return list(zip(shape, scales, stated[len(stated) - len(shape) :], strict=True))


def _block(size: int, scales: int, stated: int) -> int | None:
    if scales == 1:
        return max(size, 1)
    if scales == size:
        return 1
    return stated if -(-size // stated) == scales else None


def apply_scale(
    values: np.ndarray,
    scale: np.ndarray,
    blocks: Sequence[int],
    shape: Sequence[int],
    index: tuple[slice | int, ...],
) -> np.ndarray:
    """Multiply ``values``, the part ``index`` of a weight of ``shape``, by its scales.

    Parameters
    ----------
    values
        Widened fp8 codes; float32.
    scale
        All scales of the weight, as stored.
    blocks
        From `block_sizes`.
    shape
        Of the whole weight.
    index
        The part that was read.
    """
    if not values.size:
        return values
    scale_shape = [-(-size // block) for size, block in zip(shape, blocks, strict=True)]
    scale = scale.astype(np.float32).reshape(scale_shape)
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    for axis in reversed(range(len(shape))):  # integers drop their axis, so the last goes first
        pick = np.arange(shape[axis])[index[axis]] // blocks[axis]
        if pick.ndim and scale.shape[axis] == 1:
            pick = np.zeros(1, int)  # broadcast instead of repeating
        scale = np.take(scale, pick, axis=axis)
    return values * scale
