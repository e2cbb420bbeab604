"""Floats of 8 and 4 bits with scales: fp8, MXFP8, MXFP4, NVFP4."""

from __future__ import annotations

import numpy as np

from ..dtypes import FP8
from ..safetensors import Entry, load, part
from .bits import FP4, nibbles
from .layout import Layout, Opened, Refused, Rows, StoredWeight
from .scales import configured_block, exponents, scaled, tiled

__all__ = ["FLOAT_LAYOUTS", "SCALES"]

_EXPONENTS = frozenset({"U8", "F8_E8M0"})

SCALES = (
    "{}_scale_inv",
    "{}_scale",
    "{}_scales",
    "{}.scale",
    "{}.scales",
    "scale_weight",
    "scale_inv",
    "scale",
    "scales",
)
"""Companions that fp8 weights are multiplied by; also those called an inverse are."""


def _open_fp8(stored: StoredWeight) -> Opened:
    codes, scale = stored.codes, stored.parts.get("mark")

    def plain(start: int, stop: int) -> np.ndarray:
        return load(codes, (slice(start, stop),)) if codes.shape else load(codes)[None]

    kind = stored.description("told").get("format") if "told" in stored.parts else "float8"
    if not str(kind).startswith("float8"):  # scales of others lie as a GPU's tensor cores read them
        raise Refused(f"but in the format {kind!r} of ComfyUI, expected float8_e4m3fn")
    if scale is None:
        _check_plain_cast(stored)
        return Opened(codes.shape, plain, codes.dtype)
    configured = configured_block(stored.context.settings)
    rows = scaled(codes.shape, plain, scale, configured, turned=stored.is_conv1d)
    return Opened(codes.shape, rows, codes.dtype)


def _check_plain_cast(stored: StoredWeight) -> None:
    """Refuse fp8 without a scale if anything says that there was one."""
    if stored.context.settings:
        method = stored.context.method or "no method"
        raise Refused(
            f"but has no scale beside it although the config has quantisation settings ({method}): "
            f"expected {stored.name}_scale or the like"
        )
    if stored.context.fp8_scale:
        raise Refused(
            f"but has no scale beside it although others have one ({stored.context.fp8_scale!r}): "
            "download the file again"
        )


def _open_mx(stored: StoredWeight) -> Opened:
    """Two codes a byte along the last mode, an exponent for every 32 numbers."""
    return _open_fp4(stored, stored.parts["mark"], _EXPONENTS, group=32, factor=1.0)


def _open_nv(stored: StoredWeight) -> Opened:
    """Two codes a byte, an fp8 scale for every 16 numbers, and one scale for all.

    modelopt multiplies by its ``weight_scale_2``; compressed-tensors divides by its
    ``weight_global_scale``.
    """
    whole = stored.parts["mark"]
    if whole.dtype not in ("F32", "BF16", "F16") or np.prod(whole.shape, dtype=int) != 1:
        raise Refused(f"but its {whole.name!r} is {whole.dtype} {whole.shape}, expected one number")
    value = float(stored.small("mark").reshape(()))
    if whole.name.endswith("global_scale"):
        value = 1 / value if value else float("inf")
    scale = stored.part("scale", "scale")
    return _open_fp4(stored, scale, frozenset({"F8_E4M3"}), group=16, factor=value)


def _open_fp4(
    stored: StoredWeight, scale: Entry, dtypes: frozenset[str], *, group: int, factor: float
) -> Opened:
    codes = stored.codes
    if len(codes.shape) != 2:
        raise Refused(f"but has {len(codes.shape)} modes: only matrices are read in this layout")
    shape = (codes.shape[0], 2 * codes.shape[1])
    if scale.dtype not in dtypes:
        raise Refused(f"but its scale {scale.name!r} is {scale.dtype}: that is not known")
    if scale.shape != (shape[0], shape[1] // group) or shape[1] % group:
        raise Refused(
            f"but its scale {scale.name!r} is {scale.shape}, expected one for every {group} of "
            f"the {shape[1]} numbers of {shape[0]} rows"
        )

    def rows(start: int, stop: int) -> np.ndarray:
        some = (slice(start, stop),)
        values = FP4[nibbles(part(codes, some).codes())].reshape(stop - start, -1, group)
        values *= tiled(scale, some)[..., None] * np.float32(factor)
        return values.reshape(stop - start, shape[1])

    return Opened(shape, rows, "FP4")


def _open_mx_experts(stored: StoredWeight) -> Opened:
    """Open experts as gpt-oss has them, ``(expert, out, block, 16 bytes)``.

    The model keeps the weight as ``(expert, in, out)``.
    """
    codes, scale = stored.codes, stored.part("mark", "scale")
    if len(codes.shape) != 4 or codes.shape[3] != 16 or scale.shape != codes.shape[:3]:
        raise Refused(
            f"but its blocks are {codes.shape} and its scales {scale.shape}, expected "
            "(expert, out, n, 16) and (expert, out, n)"
        )
    experts, outputs, blocks, _ = codes.shape
    return Opened((experts, 32 * blocks, outputs), _expert_rows(codes, scale), "FP4")


def _expert_rows(codes: Entry, scale: Entry) -> Rows:
    def rows(start: int, stop: int) -> np.ndarray:
        some = (slice(start, stop),)
        values = FP4[nibbles(part(codes, some).codes())]  # (expert, out, block, 32)
        values *= exponents(load(scale, some))[..., None]
        return values.reshape(*values.shape[:2], 32 * values.shape[2]).transpose(0, 2, 1)

    return rows


_SCALE = ("{}_scale",)

FLOAT_LAYOUTS = (
    Layout(
        "MXFP4 experts (gpt-oss)",
        "`X_blocks` U8 `(expert, out, n, 16)`, `X_scales` U8",
        frozenset({"U8"}),
        "_blocks",
        "",
        ("{}_scales",),
        _open_mx_experts,
    ),
    Layout(
        "NVFP4 (modelopt)",
        "`weight` U8, `weight_scale` F8_E4M3 per 16, times `weight_scale_2`",
        frozenset({"U8"}),
        "",
        "",
        ("{}_scale_2",),
        _open_nv,
        parts={"scale": _SCALE},
    ),
    Layout(
        "NVFP4 (compressed-tensors)",
        "`weight_packed` U8, `weight_scale` F8_E4M3 per 16, over `weight_global_scale`",
        frozenset({"U8"}),
        "_packed",
        "",
        ("{}_global_scale",),
        _open_nv,
        parts={"scale": _SCALE},
    ),
    Layout(
        "MXFP4 (compressed-tensors)",
        "`weight_packed` U8, `weight_scale` U8 per 32",
        frozenset({"U8"}),
        "_packed",
        "",
        _SCALE,
        _open_mx,
        _EXPONENTS,
    ),
    Layout(
        "MXFP4",
        "`weight` U8 or I8, `weight_scale(_inv)` or `scale` U8 or F8_E8M0 per 32",
        frozenset({"U8", "I8"}),
        "",
        "",
        ("{}_scale", "{}_scale_inv", "{}.scale", "scale"),
        _open_mx,
        _EXPONENTS,
    ),
    Layout(
        "fp8, MXFP8",
        "any name F8_E4M3 or F8_E5M2, with `_scale`, `_scale_inv`, `.scale`, `scale_weight` or "
        "the like: one number, per row, per column, per block; floats or exponents",
        FP8,
        "",
        "",
        (),
        _open_fp8,
        parts={"mark": SCALES, "told": ("comfy_quant",)},
    ),
)
