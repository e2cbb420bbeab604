"""Integers with scales: int8, compressed-tensors, MLX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plain import is_object
from ..safetensors import part
from .bits import unpack
from .layout import Layout, Opened, Refused, StoredWeight
from .scales import scaled
from .words import PLAIN_FLOATS, WORDS, check_floats, check_words, groups_of, numbers, numbers_along

__all__ = ["INTEGER_LAYOUTS"]


# ------------------------------------------------------------------------------------- one each


def _open_bnb_int8(stored: StoredWeight) -> Opened:
    """Open ``codes * SCB / 127``, one SCB per row."""
    codes, scale = stored.codes, stored.parts["mark"]
    if len(codes.shape) != 2 or math.prod(scale.shape) != codes.shape[0]:
        raise Refused(f"but it is {codes.shape} and its SCB {scale.shape}, expected one per row")
    if "format" in stored.parts and stored.small("format").any():
        raise Refused("but its weight_format is not row by row: save it again with bitsandbytes")

    def rows(start: int, stop: int) -> np.ndarray:
        factor = numbers(scale).reshape(-1)[start:stop] / np.float32(127)
        return numbers(codes, (slice(start, stop),)) * factor[:, None]

    return Opened(codes.shape, rows, "INT8")


def _open_int8(stored: StoredWeight) -> Opened:
    """Open ``(codes - zero) * scale``: one scale, one per row or one per group of a row."""
    codes = stored.codes
    _check_complete(stored)
    if not codes.shape:
        raise Refused("but it is a single number")

    def plain(start: int, stop: int) -> np.ndarray:
        return numbers(codes, (slice(start, stop),))

    rows = scaled(
        codes.shape,
        plain,
        stored.parts["mark"],
        exact=True,
        zero=stored.parts.get("zero"),
        turned=stored.is_conv1d,
    )
    return Opened(codes.shape, rows, "INT8")


# ------------------------------------------------------------------------- compressed-tensors


def _open_packed(stored: StoredWeight) -> Opened:
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
    check_floats(scale, 2)
    if zero is not None:
        check_words(zero)
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
        where, values = groups_of(order, shape[1], groups), plain(start, stop)
        if zero is not None:
            raised = numbers_along(zero, bits, start, stop, axis=0)  # (out, group)
            values -= (raised.astype(np.float32) - half)[:, where]
        return values * numbers(scale, (slice(start, stop),))[:, where]

    return Opened(shape, rows, f"INT{bits}")


def _stated_shape(stored: StoredWeight) -> tuple[int, ...]:
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


def _check_complete(stored: StoredWeight) -> None:
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
    rows = list(groups.values()) if is_object(groups) else []
    weights = [row.get("weights") for row in rows if is_object(row)]
    return [w for w in weights if is_object(w)]


# -------------------------------------------------------------------------------------- MLX


def _open_mlx(stored: StoredWeight) -> Opened:
    """Open ``code * scale + bias``, words along the inputs, a scale and a bias per group."""
    codes, scale, bias = stored.codes, stored.part("scales", "scales"), stored.parts["mark"]
    settings = stored.context.settings
    own = settings.get(stored.name.removesuffix(".weight"))
    own = own if is_object(own) else settings
    bits, group = own.get("bits"), own.get("group_size")
    if type(bits) is not int or type(group) is not int or not 1 <= bits <= 8 or group < 1:
        raise Refused("but the config does not say its bits and group_size")
    if not codes.shape or codes.shape[-1] * 32 % bits:
        raise Refused(f"but {codes.shape} words do not hold numbers of {bits} bits")
    shape = (*codes.shape[:-1], codes.shape[-1] * 32 // bits)
    for entry in (scale, bias):
        check_floats(entry, len(shape))
    if scale.shape != bias.shape or scale.shape != (*shape[:-1], shape[-1] // group):
        raise Refused(
            f"but its scales are {scale.shape} and its biases {bias.shape}, expected one for every "
            f"{group} of {shape}"
        )

    def rows(start: int, stop: int) -> np.ndarray:
        some = (slice(start, stop),)
        values = unpack(part(codes, some).codes(), bits, shape[-1]).astype(np.float32)
        values = values.reshape(*values.shape[:-1], shape[-1] // group, group)
        values *= numbers(scale, some)[..., None]
        values += numbers(bias, some)[..., None]
        return values.reshape(stop - start, *shape[1:])

    return Opened(shape, rows, f"INT{bits}")


INTEGER_LAYOUTS = (
    Layout(
        "bitsandbytes int8",
        "`weight` I8, `SCB`",
        frozenset({"I8"}),
        "",
        "",
        ("SCB", "{}.SCB"),
        _open_bnb_int8,
        PLAIN_FLOATS,
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
        PLAIN_FLOATS,
        parts={"zero": ("{}_zero_point",)},
    ),
    Layout(
        "packed integers (compressed-tensors)",
        "`weight_packed` I32, `weight_scale`, `weight_shape`, `weight_zero_point`, `weight_g_idx`",
        WORDS,
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
