"""GPTQ and AWQ: words of codes and of zero points, floats that scale groups of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..safetensors import Entry, load, part
from .bits import unpack
from .layout import Layout, Opened, Refused, StoredWeight
from .words import WORDS, check_floats, check_words, groups_of, numbers, numbers_along

__all__ = ["GPTQ_LAYOUTS"]

# Which column of eight each nibble of an AWQ word holds.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def _open_gptq(stored: StoredWeight) -> Opened:
    """Open ``(code - zero) * scale`` of words that run down the inputs, ``(in / pack, out)``."""
    codes, zeros = stored.codes, stored.part("zeros", "qzeros")
    scales = stored.part("scales", "scales")
    check_words(codes, zeros)
    check_floats(scales, 2)
    (lines, outputs), (groups, _) = codes.shape, scales.shape
    bits = _bits_of(zeros.shape[1], outputs, stored.context.settings)
    inputs = lines * 32 // bits
    order = stored.parts.get("order")
    if scales.shape[1] != outputs or zeros.shape[0] != groups or lines * 32 % bits:
        raise Refused(_unfit(codes, zeros, scales))
    if order is not None and order.shape != (inputs,):
        raise Refused(f"but its g_idx is {order.shape}, expected one for each of {inputs} inputs")
    if order is None and (groups == 0 or inputs % groups):
        raise Refused(f"but {groups} groups do not divide {inputs} inputs, and it has no g_idx")
    if order is None and stored.context.settings.get("desc_act") is True:
        raise Refused("but its config says desc_act, and its g_idx is not in the file")
    offset = _zero_offset(stored, zeros, bits)

    def rows(start: int, stop: int) -> np.ndarray:
        where = groups_of(order, inputs, groups)
        lines = part(codes, (slice(None), slice(start, stop))).codes().T  # (out, in / pack)
        factor = numbers(scales, (slice(None), slice(start, stop)))  # (group, out)
        zero = (
            numbers_along(zeros, bits, start, stop, axis=1).astype(np.float32) + offset
        )  # (group, out)
        values = unpack(lines, bits, inputs).astype(np.float32)
        values -= zero.T[:, where]
        values *= factor.T[:, where]
        return values

    return Opened((outputs, inputs), rows, f"GPTQ{bits}")


def _zero_offset(stored: StoredWeight, zeros: Entry, bits: int) -> int:
    """What is added to stored zero points: GPTQ's first format keeps them less one."""
    settings = stored.context.settings
    named = str(settings.get("checkpoint_format") or settings.get("format") or "").lower()
    if named in ("gptq", "gptq_v2"):
        return int(named == "gptq")
    if named:
        raise Refused(f"but its checkpoint_format is {named!r}, expected gptq or gptq_v2")
    if stored.context.method == "gptq":  # older than the second format
        return 1
    found = unpack(load(zeros), bits, zeros.shape[1] * 32 // bits)
    for offset in (1, 0):  # symmetric: all zero points lie in the middle
        if (found == (1 << (bits - 1)) - offset).all():
            return offset
    raise Refused(
        "but its config does not say whether its zero points are those of gptq or gptq_v2"
    )


def _open_awq(stored: StoredWeight) -> Opened:
    """Open ``(code - zero) * scale`` of words that run along the outputs, ``(in, out / 8)``."""
    codes, zeros = stored.codes, stored.part("zeros", "qzeros")
    scales = stored.part("scales", "scales")
    check_words(codes, zeros)
    check_floats(scales, 2)
    (inputs, words), (groups, outputs) = codes.shape, scales.shape
    if outputs != 8 * words or zeros.shape != (groups, words) or not groups or inputs % groups:
        raise Refused(_unfit(codes, zeros, scales))

    def rows(start: int, stop: int) -> np.ndarray:
        low, high = start // 8, -(-stop // 8)
        some = (slice(None), slice(low, high))
        own = slice(start - 8 * low, stop - 8 * low)
        values = _awq(part(codes, some).codes())[:, own]  # (in, out)
        zero = _awq(part(zeros, some).codes())[:, own]
        factor = numbers(scales, (slice(None), slice(start, stop)))
        where = np.arange(inputs) // (inputs // groups)
        return ((values - zero[where]) * factor[where]).T

    return Opened((outputs, inputs), rows, "AWQ4")


def _awq(words: np.ndarray) -> np.ndarray:
    """Codes of AWQ's words in the order of the columns, float32."""
    stored = unpack(words, 4, 8 * words.shape[-1]).reshape(*words.shape, 8)
    out = np.empty(stored.shape, np.float32)
    out[..., _AWQ_ORDER] = stored
    return out.reshape(*words.shape[:-1], 8 * words.shape[-1])


def _unfit(codes: Entry, zeros: Entry, scales: Entry) -> str:
    return (
        f"but its codes {codes.shape}, zero points {zeros.shape} and scales {scales.shape} do not "
        "fit each other"
    )


def _bits_of(words: int, numbers: int, settings: Mapping[str, Any]) -> int:
    """Bits of each of ``numbers`` in that many 32-bit words."""
    bits = words * 32 // numbers if numbers else 0
    stated = None if settings.get("dynamic") else settings.get("bits")  # set layer by layer
    if bits * numbers != words * 32 or bits not in (2, 3, 4, 8):
        raise Refused(f"but {words} words for {numbers} numbers are not 2, 3, 4 or 8 bits each")
    if type(stated) is int and stated != bits:
        raise Refused(f"but it has {bits} bits a number and the config says {stated}")
    return bits


_GPTQ_PARTS: Mapping[str, tuple[str, ...]] = {
    "zeros": ("qzeros",),
    "scales": ("scales",),
    "order": ("g_idx",),
}


def _open_qweight(stored: StoredWeight) -> Opened:
    """GPTQ or AWQ, which have the same names: the scales are as wide as the outputs."""
    codes, scales = stored.codes, stored.part("scales", "scales")
    method = stored.context.method
    if "awq" in method:
        version = str(stored.context.settings.get("version", "gemm")).lower()
        if version != "gemm":
            raise Refused(f"but in the version {version!r} of AWQ, expected gemm")
        return _open_awq(stored)
    words = codes.shape[-1:] + scales.shape[-1:]
    if "gptq" not in method and "order" not in stored.parts and words[-1] == 8 * words[0]:
        return _open_awq(stored)
    return _open_gptq(stored)


GPTQ_LAYOUTS = (
    Layout(
        "GPTQ, AWQ",
        "`qweight` I32, `qzeros`, `scales`, `g_idx`; GPTQ v1 and v2 (2, 3, 4, 8 bits), AWQ gemm",
        WORDS,
        "qweight",
        "weight",
        (),
        _open_qweight,
        parts=_GPTQ_PARTS,
        conv1d=True,
    ),
)
