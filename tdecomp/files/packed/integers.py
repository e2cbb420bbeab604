"""Integers with scales: int8, GPTQ, AWQ, compressed-tensors, MLX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import FileError
from ..safetensors import Entry, load, part
from .bits import unpack
from .layout import Layout, Opened, Refused, Stored
from .scales import scaled

__all__ = ["INTEGER_LAYOUTS"]

_INT32 = frozenset({"I32", "U32"})
_HALVES = frozenset({"F64", "F32", "F16", "BF16"})
# Which column of eight each nibble of an AWQ word holds.
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def _numbers(entry: Entry, index: tuple[slice | int, ...] = ()) -> np.ndarray:
    return load(entry, index).astype(np.float32, copy=False)


# ------------------------------------------------------------------------------------- one each


def _open_bnb_int8(stored: Stored) -> Opened:
    """Open ``codes * SCB / 127``, one SCB per row."""
    codes, scale = stored.codes, stored.parts["mark"]
    if len(codes.shape) != 2 or math.prod(scale.shape) != codes.shape[0]:
        raise Refused(f"but it is {codes.shape} and its SCB {scale.shape}, expected one per row")
    if "format" in stored.parts and stored.small("format").any():
        raise Refused("but its weight_format is not row by row: save it again with bitsandbytes")

    def rows(start: int, stop: int) -> np.ndarray:
        factor = _numbers(scale).reshape(-1)[start:stop] / np.float32(127)
        return _numbers(codes, (slice(start, stop),)) * factor[:, None]

    return Opened(codes.shape, rows, "INT8")


def _open_int8(stored: Stored) -> Opened:
    """Open ``(codes - zero) * scale``: one scale, one per row or one per group of a row."""
    codes = stored.codes
    _check_complete(stored)
    if not codes.shape:
        raise Refused("but it is a single number")

    def plain(start: int, stop: int) -> np.ndarray:
        return _numbers(codes, (slice(start, stop),))

    rows = scaled(
        codes.shape, plain, stored.parts["mark"], exact=True, zero=stored.parts.get("zero")
    )
    return Opened(codes.shape, rows, "INT8")


# ---------------------------------------------------------------------------- GPTQ and AWQ


def _open_gptq(stored: Stored) -> Opened:
    """Open ``(code - zero) * scale`` of words that run down the inputs, ``(in / pack, out)``."""
    codes, zeros = stored.codes, stored.part("zeros", "qzeros")
    scales = stored.part("scales", "scales")
    _check_words(codes, zeros)
    _check_floats(scales, 2)
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
        where = _groups(order, inputs, groups)
        lines = part(codes, (slice(None), slice(start, stop))).codes().T  # (out, in / pack)
        factor = _numbers(scales, (slice(None), slice(start, stop)))  # (group, out)
        zero = _slice(zeros, bits, start, stop, axis=1).astype(np.float32) + offset  # (group, out)
        values = unpack(lines, bits, inputs).astype(np.float32)
        values -= zero.T[:, where]
        values *= factor.T[:, where]
        return values

    return Opened((outputs, inputs), rows, f"GPTQ{bits}")


def _slice(words: Entry, bits: int, start: int, stop: int, axis: int) -> np.ndarray:
    """Numbers ``start`` to ``stop`` along the packed axis of a matrix of words.

    Every 32 numbers begin a word, whatever their bits.
    """
    low = start // 32
    some = slice(low * bits, -(-stop // 32) * bits)
    stored = part(words, (slice(None),) * axis + (some,)).codes()
    lines = np.moveaxis(stored, axis, -1)
    count = min(stop - 32 * low, lines.shape[-1] * 32 // bits)
    return np.moveaxis(unpack(lines, bits, count)[..., start - 32 * low :], -1, axis)


def _zero_offset(stored: Stored, zeros: Entry, bits: int) -> int:
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


def _groups(order: Entry | None, inputs: int, groups: int) -> np.ndarray:
    """Group of every input."""
    if order is None:
        return np.arange(inputs) // (inputs // groups)
    where = load(order).astype(np.int64)
    if where.size and not 0 <= where.min() <= where.max() < groups:
        raise FileError(
            f"{order.file}: {order.name!r} has entries from {where.min()} to {where.max()}, "
            f"there are {groups} groups"
        )
    return where


def _open_awq(stored: Stored) -> Opened:
    """Open ``(code - zero) * scale`` of words that run along the outputs, ``(in, out / 8)``."""
    codes, zeros = stored.codes, stored.part("zeros", "qzeros")
    scales = stored.part("scales", "scales")
    _check_words(codes, zeros)
    _check_floats(scales, 2)
    (inputs, words), (groups, outputs) = codes.shape, scales.shape
    if outputs != 8 * words or zeros.shape != (groups, words) or not groups or inputs % groups:
        raise Refused(_unfit(codes, zeros, scales))

    def rows(start: int, stop: int) -> np.ndarray:
        low, high = start // 8, -(-stop // 8)
        some = (slice(None), slice(low, high))
        own = slice(start - 8 * low, stop - 8 * low)
        values = _awq(part(codes, some).codes())[:, own]  # (in, out)
        zero = _awq(part(zeros, some).codes())[:, own]
        factor = _numbers(scales, (slice(None), slice(start, stop)))
        where = np.arange(inputs) // (inputs // groups)
        return ((values - zero[where]) * factor[where]).T

    return Opened((outputs, inputs), rows, "AWQ4")


def _awq(words: np.ndarray) -> np.ndarray:
    """Codes of AWQ's words in the order of the columns, float32."""
    stored = unpack(words, 4, 8 * words.shape[-1]).reshape(*words.shape, 8)
    out = np.empty(stored.shape, np.float32)
    out[..., _AWQ_ORDER] = stored
    return out.reshape(*words.shape[:-1], 8 * words.shape[-1])


def _check_words(*entries: Entry) -> None:
    """Refuse anything but matrices of 32-bit words."""
    for entry in entries:
        if len(entry.shape) != 2 or entry.dtype not in _INT32:
            raise Refused(f"but its {entry.name!r} is {entry.dtype} {entry.shape}, expected words")


def _check_floats(entry: Entry, modes: int) -> None:
    if len(entry.shape) != modes or entry.dtype not in _HALVES:
        raise Refused(f"but its {entry.name!r} is {entry.dtype} {entry.shape}, expected floats")


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


# ------------------------------------------------------------------------- compressed-tensors


def _open_packed(stored: Stored) -> Opened:
    """Words along the inputs, numbers raised by half their range; zero points down the outputs."""
    codes, scale = stored.codes, stored.part("scale", "scale")
    shape = _stated_shape(stored)
    _check_complete(stored)
    if len(codes.shape) != 2 or len(shape) != 2 or codes.shape[0] != shape[0]:
        raise Refused(f"but its codes are {codes.shape} and its weight_shape is {shape}")
    bits = _dense_bits(codes.shape[1], shape[1], stored.context.settings)
    half = 1 << (bits - 1)

    def plain(start: int, stop: int) -> np.ndarray:
        words = part(codes, (slice(start, stop),)).codes()
        return unpack(words, bits, shape[1]).astype(np.float32) - half

    zero, order = stored.parts.get("zero"), stored.parts.get("order")
    if zero is None and order is None:
        return Opened(shape, scaled(shape, plain, scale, exact=True), f"INT{bits}")
    _check_floats(scale, 2)
    if zero is not None:
        _check_words(zero)
    if scale.shape[0] != shape[0] or not scale.shape[1]:
        raise Refused(f"but its scale {scale.name!r} is {scale.shape}, expected one row per output")
    groups = scale.shape[1]
    if order is not None and order.shape != (shape[1],):
        raise Refused(f"but its g_idx is {order.shape}, expected one for each of {shape[1]} inputs")
    if order is None and shape[1] % groups:
        raise Refused(f"but {groups} groups do not divide {shape[1]} inputs")
    if zero is not None and zero.shape != (-(-shape[0] * bits // 32), groups):
        raise Refused(f"but its zero point is {zero.shape} for {scale.shape} scales")

    def rows(start: int, stop: int) -> np.ndarray:
        where, values = _groups(order, shape[1], groups), plain(start, stop)
        if zero is not None:
            raised = _slice(zero, bits, start, stop, axis=0)  # (out, group)
            values -= (raised.astype(np.float32) - half)[:, where]
        return values * _numbers(scale, (slice(start, stop),))[:, where]

    return Opened(shape, rows, f"INT{bits}")


def _stated_shape(stored: Stored) -> tuple[int, ...]:
    if stored.parts["mark"].dtype not in ("I64", "I32") or len(stored.parts["mark"].shape) != 1:
        raise Refused("but its weight_shape is not a list of sizes")
    shape = tuple(int(n) for n in stored.small("mark"))
    if any(n < 0 for n in shape):
        raise Refused(f"but its weight_shape is {shape}")
    return shape


def _dense_bits(words: int, numbers: int, settings: Mapping[str, Any]) -> int:
    """Bits of each number in a row of words; refused where words hold spare bits."""
    fits = [b for b in range(1, 9) if -(-numbers * b // 32) == words]
    stated = {w.get("num_bits") for w in _schemes(settings)}
    stated = {b for b in stated if type(b) is int}
    if stated:
        fits = [b for b in fits if b in stated]
    elif len(fits) > 1:
        fits = [b for b in fits if b in (4, 8)]
    if len(fits) != 1:
        raise Refused(f"but {words} words for {numbers} numbers do not say how many bits each has")
    bits = fits[0]
    if 32 % bits and -(-numbers // (32 // bits)) == words:
        raise Refused(f"but its {bits} bits a number may be packed in two ways")
    return bits


def _check_complete(stored: Stored) -> None:
    """Refuse weights without the zero points or the order that the config says they have."""
    schemes = _schemes(stored.context.settings)
    if "zero" not in stored.parts and schemes and all(w.get("symmetric") is False for w in schemes):
        raise Refused("but its config says that it has zero points, and they are not in the file")
    if (
        "order" not in stored.parts
        and schemes
        and all(w.get("actorder") == "group" for w in schemes)
    ):
        raise Refused("but its config says actorder, and its g_idx is not in the file")


def _schemes(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a compressed-tensors config says of weights, group by group."""
    groups = settings.get("config_groups")
    rows: Sequence[Any] = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [row.get("weights") for row in rows if isinstance(row, Mapping)]
    return [w for w in weights if isinstance(w, Mapping)]


# -------------------------------------------------------------------------------------- MLX


def _open_mlx(stored: Stored) -> Opened:
    """Open ``code * scale + bias``, words along the inputs, a scale and a bias per group."""
    codes, scale, bias = stored.codes, stored.part("scales", "scales"), stored.parts["mark"]
    settings = stored.context.settings
    own = settings.get(stored.name.removesuffix(".weight"))
    own = own if isinstance(own, Mapping) else settings
    bits, group = own.get("bits"), own.get("group_size")
    if type(bits) is not int or type(group) is not int or not 1 <= bits <= 8 or group < 1:
        raise Refused("but the config does not say its bits and group_size")
    if not codes.shape or codes.shape[-1] * 32 % bits:
        raise Refused(f"but {codes.shape} words do not hold numbers of {bits} bits")
    shape = (*codes.shape[:-1], codes.shape[-1] * 32 // bits)
    for entry in (scale, bias):
        _check_floats(entry, len(shape))
    if scale.shape != bias.shape or scale.shape != (*shape[:-1], shape[-1] // group):
        raise Refused(
            f"but its scales are {scale.shape} and its biases {bias.shape}, expected one for every "
            f"{group} of {shape}"
        )

    def rows(start: int, stop: int) -> np.ndarray:
        some = (slice(start, stop),)
        values = unpack(part(codes, some).codes(), bits, shape[-1]).astype(np.float32)
        values = values.reshape(*values.shape[:-1], shape[-1] // group, group)
        values *= _numbers(scale, some)[..., None]
        values += _numbers(bias, some)[..., None]
        return values.reshape(stop - start, *shape[1:])

    return Opened(shape, rows, f"INT{bits}")


_GPTQ_PARTS: Mapping[str, tuple[str, ...]] = {
    "zeros": ("qzeros",),
    "scales": ("scales",),
    "order": ("g_idx",),
}


def _open_qweight(stored: Stored) -> Opened:
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


INTEGER_LAYOUTS = (
    Layout(
        "bitsandbytes int8",
        "`weight` I8, `SCB`",
        frozenset({"I8"}),
        "",
        "",
        ("SCB", "{}.SCB"),
        _open_bnb_int8,
        _HALVES,
        parts={"format": ("{}_format",)},
        conv1d=True,
    ),
    Layout(
        "int8 (compressed-tensors W8A8, Quark)",
        "`weight` I8, `weight_scale` one, per row or per group, `weight_zero_point`",
        frozenset({"I8"}),
        "",
        "",
        ("{}_scale",),
        _open_int8,
        _HALVES,
        parts={"zero": ("{}_zero_point",)},
    ),
    Layout(
        "GPTQ, AWQ",
        "`qweight` I32, `qzeros`, `scales`, `g_idx`; GPTQ v1 and v2 (2, 3, 4, 8 bits), AWQ gemm",
        _INT32,
        "qweight",
        "weight",
        (),
        _open_qweight,
        parts=_GPTQ_PARTS,
        conv1d=True,
    ),
    Layout(
        "packed integers (compressed-tensors)",
        "`weight_packed` I32, `weight_scale`, `weight_shape`, `weight_zero_point`, `weight_g_idx`",
        _INT32,
        "_packed",
        "",
        ("{}_shape",),
        _open_packed,
        parts={"scale": ("{}_scale",), "zero": ("{}_zero_point",), "order": ("{}_g_idx",)},
    ),
    Layout(
        "MLX, Metal",
        "`weight` U32, `scales`, `biases` or `qbiases`, with bits and group_size in the config",
        frozenset({"U32"}),
        "",
        "",
        ("biases", "qbiases"),
        _open_mlx,
        parts={"scales": ("scales",)},
    ),
)
