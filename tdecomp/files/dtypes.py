"""The dtypes of safetensors files: how each code is stored, widened and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from tdecomp.errors import ArgumentError

__all__ = ["DTYPES", "FLOATS", "FP8", "NAMES", "STORED", "DType", "code_of", "copy_into"]

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Codes by which files know the plain floats, and the names that people know."""

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What factors and models are written in, by name."""


def code_of(name: str) -> str:
    """The code of a name of `STORED`; an ArgumentError lists them."""
    if name not in STORED:
        raise ArgumentError(f"dtype={name!r} cannot be stored: choose {', '.join(STORED)}")
    return STORED[name]


def copy_into(stored: np.ndarray, out: np.ndarray) -> None:
    """Write numbers into an array of the same shape, in its dtype."""
    out[...] = stored


def _fill_bf16(stored: np.ndarray, out: np.ndarray) -> None:
    # A cast and a shift in place: on tiles that stay in cache faster than a strided store into
    # the high halves, and than a shift that casts.
    bits = out.view(np.uint32)
    bits[...] = stored
    np.left_shift(bits, 16, out=bits)


def _fill_bool(stored: np.ndarray, out: np.ndarray) -> None:
    np.not_equal(stored, 0, out=out)  # any non-zero byte is true


def _fill_fp8(stored: np.ndarray, out: np.ndarray, *, code: str) -> None:
    np.take(_fp8_values(code), stored, out=out, mode="clip")  # "raise" would buffer


@cache
def _fp8_values(code: str) -> np.ndarray:  # (256,) float32
    """Compute the value of each of the 256 codes from the bit layout (OCP FP8 and MX formats)."""
    codes = np.arange(256)
    if code == "F8_E8M0":  # an exponent only: scales of the MX formats
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127)).astype(np.float32)
    mantissa_bits, bias = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}[code]
    exponent = (codes & 0x7F) >> mantissa_bits
    fraction = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    normal = exponent > 0
    values = np.ldexp(fraction + normal, np.where(normal, exponent, 1) - bias)
    if code == "F8_E4M3":  # the "FN" variant: no infinity, one NaN per sign
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        special = exponent == 31
        values[special] = np.where(fraction[special] == 0, np.inf, np.nan)
    return np.copysign(values, np.where(codes < 128, 1.0, -1.0)).astype(np.float32)


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Upper halves of the float32 bits, rounded to nearest, ties to even; as uint16."""
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000  # rounding could carry a NaN into infinity
    rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype("<u2")


@dataclass(frozen=True)
class DType:
    """One row of ``DTYPES``: how a code is stored, widened and written.

    Parameters
    ----------
    bits
        Stored bits per number.
    storage
        numpy dtype of the stored items; ``None``: can be listed and copied, not decoded.
    wide
        numpy dtype that callers compute with; ``None`` where ``storage`` is.
    fill
        ``fill(stored, out)`` writes stored items as ``wide`` into an array of the same shape.
    accepts
        numpy dtype of the values that `encode` takes; ``None``: cannot be encoded.
    narrow
        Those values to stored items.
    """

    bits: int
    storage: str | None
    wide: np.dtype | None = None
    fill: Callable[[np.ndarray, np.ndarray], None] = copy_into
    accepts: str | None = None
    narrow: Callable[[np.ndarray], np.ndarray] | None = None


_FLOAT32 = np.dtype(np.float32)


def _plain(storage: str, wide: np.dtype | None = None) -> DType:
    stored = np.dtype(storage)
    native = wide or stored.newbyteorder("=")
    narrow = partial(np.asarray, dtype=storage)
    return DType(8 * stored.itemsize, storage, native, copy_into, storage, narrow)


def _fp8(code: str) -> DType:
    return DType(8, "u1", _FLOAT32, partial(_fill_fp8, code=code))


DTYPES: Mapping[str, DType] = {
    "F64": _plain("<f8"),
    "F32": _plain("<f4"),
    "F16": _plain("<f2", _FLOAT32),
    "BF16": DType(16, "<u2", _FLOAT32, _fill_bf16, "<f4", _round_to_bf16),
    "F8_E4M3": _fp8("F8_E4M3"),
    "F8_E5M2": _fp8("F8_E5M2"),
    "F8_E8M0": _fp8("F8_E8M0"),
    "F6_E2M3": DType(6, None),
    "F6_E3M2": DType(6, None),
    "F4": DType(4, None),
    "C64": _plain("<c8"),
    "I64": _plain("<i8"),
    "I32": _plain("<i4"),
    "I16": _plain("<i2"),
    "I8": _plain("i1"),
    "U64": _plain("<u8"),
    "U32": _plain("<u4"),
    "U16": _plain("<u2"),
    "U8": _plain("u1"),
    "BOOL": DType(
        8, "u1", np.dtype(np.bool_), _fill_bool, "?", partial(np.asarray, dtype=np.bool_)
    ),
}
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"}) | FP8
