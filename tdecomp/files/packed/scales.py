"""Scales: how many numbers share one, and multiplying rows by theirs.

Every layout is one rule per mode: entry ``i`` of a mode uses scale ``i // block``. One scale for
all is a block as long as the mode, one per row is a block of 1, tiles are blocks of 128.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..plain import is_list
from ..safetensors import Entry, load
from .layout import Refused, Rows

__all__ = ["configured_block", "exponents", "scaled", "spread", "tiled"]

_USUAL_BLOCKS: tuple[int, ...] = (128, 64, 32, 16, 256)
_MX_BLOCK = 32
_NUMBERS = frozenset({"F64", "F32", "F16", "BF16"})
_EXPONENTS = frozenset({"F8_E8M0", "U8"})  # 2 to the power of the byte less 127 (MX formats)


def exponents(stored: np.ndarray) -> np.ndarray:
    """Powers of two that bytes stand for: ``2 ** (byte - 127)``, 255 is NaN; float32."""
    powers = np.ldexp(np.float32(1), stored.astype(np.int32) - 127)
    return np.where(stored == 255, np.float32(np.nan), powers)


def tiled(entry: Entry, index: tuple[slice | int, ...] = ()) -> np.ndarray:
    """Scales as float32, whatever they are stored as."""
    values = load(entry, index)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is told
        return exponents(values) if entry.dtype == "U8" else values.astype(np.float32)


def configured_block(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """``weight_block_size`` of quantisation settings, ``()`` where there is none to use."""
    block = settings.get("weight_block_size")
    if not is_list(block) or not all(type(n) is int and n > 0 for n in block):
        return ()
    return tuple(block)


def block_sizes(
    shape: Sequence[int],
    scale: Entry,
    configured: Sequence[int],
    *,
    exact: bool,
    turned: bool = False,
) -> tuple[int, ...]:
    """How many entries of each mode of a weight of ``shape`` share one scale.

    Parameters
    ----------
    shape
        Of the weight.
    scale
        Its scales.
    configured
        Block sizes of the last modes that the settings state.
    exact
        Blocks are along the last mode, which they divide evenly, whatever their size.
    turned
        The weight is (in, out).
    """
    if scale.dtype not in _NUMBERS | _EXPONENTS:
        raise Refused(
            f"but its scale {scale.name!r} is {scale.dtype}, expected floats or exponents"
        )
    counts = _aligned(shape, scale.shape)
    if turned and len(scale.shape) == 1 and len(shape) == 2 and scale.shape[0] > 1:
        counts = _of_conv1d(shape, scale)
    stated: list[tuple[int, ...]] = [()] * len(shape)
    for place in range(1, 1 + min(len(shape), len(configured))):
        stated[-place] = (configured[-place],)
    if not configured and not exact:
        stated = [()] * (len(shape) - 2) + [_USUAL_BLOCKS] * min(2, len(shape))
    if scale.dtype in _EXPONENTS and stated:
        stated[-1] = (*stated[-1], _MX_BLOCK)
    last = len(shape) - 1
    blocks = [
        _block(size, count, known, exact and mode == last)
        for mode, (size, count, known) in enumerate(zip(shape, counts, stated, strict=False))
    ]
    if None in blocks or len(counts) != len(shape):
        expected = " x ".join(map(str, configured)) or "128"
        raise Refused(
            f"but its scale {scale.name!r} of shape {scale.shape} does not fit the shape "
            f"{tuple(shape)}: expected one number, one per output, or one per block of {expected}"
        )
    return tuple(block for block in blocks if block is not None)


def _aligned(shape: Sequence[int], scale_shape: Sequence[int]) -> list[int]:
    """Number of scales of every mode of the weight; of another length where none fit."""
    scales = list(scale_shape)
    if all(s == 1 for s in scales):  # () or (1,)
        return [1] * len(shape)
    missing = len(shape) - len(scales)
    if missing > 0 and all(s in (1, n) for s, n in zip(scales, shape, strict=False)):
        return scales + [1] * missing  # (out,), (expert,), (expert, out)
    return scales


def _of_conv1d(shape: Sequence[int], scale: Entry) -> list[int]:
    """Number of scales of both modes of (in, out) with a list of scales, for outputs or inputs."""
    count = scale.shape[0]
    if shape[0] == shape[1] == count:
        raise Refused(
            f"but its scale {scale.name!r} has {count} numbers for {count} inputs and as many "
            "outputs: which of them it is for is not said"
        )
    return [1, count] if count == shape[1] else [count, 1]


def _block(size: int, scales: int, stated: Sequence[int], exact: bool) -> int | None:
    if scales == 1:
        return max(size, 1)
    if scales == size:
        return 1
    if exact:
        return size // scales if scales and size % scales == 0 else None
    return next((block for block in stated if -(-size // block) == scales), None)


def spread(
    entry: Entry,
    blocks: Sequence[int],
    shape: Sequence[int],
    start: int,
    stop: int,
    read: Callable[..., np.ndarray] = tiled,
) -> np.ndarray:
    """Scales of the entries ``start`` to ``stop`` of the first mode, ready to be broadcast.

    Only the scales of those entries are read.
    """
    counts = [-(-size // block) for size, block in zip(shape, blocks, strict=True)]
    first = start // blocks[0] if counts and counts[0] > 1 else 0
    if counts and counts[0] > 1:
        scale = read(entry, (slice(first, -(-stop // blocks[0])),))
        scale = scale.reshape(-1, *counts[1:])
    else:
        scale = read(entry).reshape(counts)
    for axis, (size, block) in enumerate(zip(shape, blocks, strict=True)):
        low, high = (start, stop) if axis == 0 else (0, size)
        if counts[axis] > 1:  # one scale for all is broadcast instead of repeated
            places = np.arange(low, high) // block - (first if axis == 0 else 0)
            scale = np.take(scale, places, axis=axis)
    return scale


def scaled(
    shape: tuple[int, ...],
    codes: Callable[[int, int], np.ndarray],
    scale: Entry,
    configured: Sequence[int] = (),
    *,
    exact: bool = False,
    factor: float = 1.0,
    zero: Entry | None = None,
    turned: bool = False,
) -> Rows:
    """Rows of ``(codes - zero) * scale * factor``; parameters as in `block_sizes`.

    Parameters
    ----------
    codes
        ``codes(start, stop)`` gives widened codes; may be written into.
    factor
        One number more for all.
    zero
        Zero points, laid out as the scales are.
    """
    blocks = block_sizes(shape, scale, configured, exact=exact, turned=turned)
    if zero is not None and zero.shape != scale.shape:
        raise Refused(f"but its zero point {zero.name!r} is {zero.shape}, its scale {scale.shape}")

    def rows(start: int, stop: int) -> np.ndarray:
        values = codes(start, stop).astype(np.float32, copy=False)
        if not values.size:
            return values
        if zero is not None:
            values -= spread(zero, blocks, shape, start, stop, load)
        return values * (spread(scale, blocks, shape, start, stop) * np.float32(factor))

    return rows
