"""bitsandbytes' 4 bits: nf4 and fp4, with absmax per block, packed itself or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..plain import is_list
from ..safetensors import Entry, load
from .layout import Layout, Opened, Refused, Rows, StoredWeight

__all__ = ["BITSANDBYTES_LAYOUTS"]


def _open_4bit(stored: StoredWeight) -> Opened:
    """Look up codes in ``quant_map``, times ``absmax``; blocks run over all numbers in order."""
    state, codes = stored.description("mark"), stored.codes
    sizes, block = state.get("shape"), state.get("blocksize")
    if not is_list(sizes) or not _sizes(sizes) or type(block) is not int or block < 1:
        raise Refused(f"but its quant_state has the shape {sizes!r} and the blocksize {block!r}")
    shape: tuple[int, ...] = tuple(sizes)
    count = math.prod(shape)
    absmax, table = stored.part("absmax", "absmax"), stored.part("table", "quant_map")
    if codes.nbytes != (count + 1) // 2:
        raise Refused(
            f"but {codes.nbytes} bytes of codes do not hold the {shape} numbers it states"
        )
    if math.prod(absmax.shape) != -(-count // block) or math.prod(table.shape) != 16:
        raise Refused(
            f"but absmax is {absmax.shape} and quant_map {table.shape} for {count} numbers in "
            f"blocks of {block}"
        )
    width = math.prod(shape[1:])
    scales = _absmax(stored, absmax, state)

    def rows(start: int, stop: int) -> np.ndarray:
        low, high = start * width, stop * width
        if low == high:
            return np.empty((stop - start, *shape[1:]), np.float32)
        stored_bytes = _bytes(codes, low // 2, -(-high // 2))
        pairs = np.stack([stored_bytes >> 4, stored_bytes & 15], axis=-1).reshape(-1)
        values = _flat(table)[pairs[low % 2 :][: high - low]]
        first, last = low // block, (high - 1) // block + 1
        values *= scales(first, last)[np.arange(low, high) // block - first]
        return values.reshape(stop - start, *shape[1:])

    return Opened(shape, rows, str(state.get("quant_type", "4 bits")).upper())


def _absmax(stored: StoredWeight, absmax: Entry, state: Mapping[str, Any]) -> Rows:
    """Scales of a range of blocks: as stored, or 8-bit codes with scales of their own."""
    if "nested" not in stored.parts:
        if absmax.dtype == "U8":
            raise Refused("but its absmax is packed and its nested_absmax is not in the file")
        return lambda start, stop: _flat(absmax, start, stop)
    nested, table = stored.parts["nested"], stored.part("nested_table", "nested_quant_map")
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or block < 1 or not isinstance(offset, int | float):
        raise Refused(f"but its nested blocksize is {block!r} and its nested offset {offset!r}")
    count = math.prod(absmax.shape)
    if absmax.dtype != "U8" or math.prod(nested.shape) != -(-count // block):
        raise Refused(f"but nested_absmax is {nested.shape} for {count} {absmax.dtype} numbers")
    if math.prod(table.shape) != 256:
        raise Refused(f"but its nested_quant_map is {table.shape}, expected 256 numbers")

    def scales(start: int, stop: int) -> np.ndarray:
        codes = _bytes(absmax, start, stop)
        first, last = start // block, (stop - 1) // block + 1
        scale = _flat(nested, first, last)[np.arange(start, stop) // block - first]
        return _flat(table)[codes] * scale + np.float32(offset)

    return scales


def _flat(entry: Entry, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Numbers of an entry in C order, from one to another; float32."""
    line = replace(entry, shape=(math.prod(entry.shape),))
    return load(line, (slice(start, stop),)).astype(np.float32)


def _bytes(entry: Entry, start: int, stop: int) -> np.ndarray:
    """Stored bytes of an entry, from one to another."""
    line = replace(entry, dtype="U8", shape=(entry.nbytes,))
    return load(line, (slice(start, stop),))


def _sizes(shape: list[Any]) -> bool:
    return bool(shape) and all(type(n) is int and n >= 0 for n in shape)


BITSANDBYTES_LAYOUTS = (
    Layout(
        "bitsandbytes nf4, fp4",
        "`weight` U8 (or other bytes), `weight.absmax` (nested or not), `weight.quant_map`, "
        "`weight.quant_state.bitsandbytes__nf4`",
        frozenset({"U8", "I8", "BF16", "F16", "F32"}),
        "",
        "",
        ("{}.quant_state.bitsandbytes__nf4", "{}.quant_state.bitsandbytes__fp4"),
        _open_4bit,
        frozenset({"U8"}),
        parts={
            "absmax": ("{}.absmax",),
            "table": ("{}.quant_map",),
            "nested": ("{}.nested_absmax",),
            "nested_table": ("{}.nested_quant_map",),
        },
        conv1d=True,
    ),
)
