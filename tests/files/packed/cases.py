"""Weights in every layout, packed here from known numbers, and what they stand for."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels for other machines
import bitsandbytes.functional as bnb  # noqa: E402
from transformers.integrations.finegrained_fp8 import Fp8Dequantize  # noqa: E402
from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: E402

__all__ = ["CASES", "REFUSED"]

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 = torch.tensor(FP4 + [-value for value in FP4])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape, bits, seed=0):
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed))


def words(codes, bits):
    """Pack ``(rows, n)`` codes along the rows, as one long number each."""
    count = math.ceil(codes.shape[1] * bits / 32)
    numbers = [sum(int(c) << (bits * i) for i, c in enumerate(row)) for row in codes]
    rows = [np.frombuffer(n.to_bytes(4 * count, "little"), "<i4") for n in numbers]
    return torch.from_numpy(np.stack(rows).copy())


def pairs(codes):
    """Pack codes of 4 bits two by two, the first in the lower half of the byte."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)


def each(scales, size):
    return scales.float().repeat_interleave(size, -1)


# ------------------------------------------------------------- (tensors, dense weight, settings)


def nf4(kind="nf4", nested=False, storage=torch.uint8, shape=(6, 45)):
    weight = draw(*shape)  # 48 columns would be dequantised wrongly by bitsandbytes' CPU kernel
    codes, state = bnb.quantize_4bit(
        weight, quant_type=kind, blocksize=64, compress_statistics=nested, quant_storage=storage
    )
    parts = {f"x.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return {"x.weight": codes, **parts}, bnb.dequantize_4bit(codes, state), settings


def bnb_int8():
    codes, scale, _ = bnb.int8_vectorwise_quant(draw(6, 10).half())
    tensors = {"x.weight": codes, "x.SCB": scale, "x.weight_format": torch.tensor(0).byte()}
    return tensors, bnb.int8_vectorwise_dequant(codes, scale), {"quant_method": "bitsandbytes"}


def int8(scales, zero=False):
    codes, scale = integers(6, 32, bits=8) - 128, draw(*scales, seed=1).exp()
    tensors = {"x.weight": codes.to(torch.int8), "x.weight_scale": scale}
    wide = each(scale, 32 // scale.shape[1]) if len(scales) == 2 else scale
    shift = torch.zeros_like(scale)
    if zero:
        shift = integers(*scales, bits=5, seed=2) - 16
        tensors["x.weight_zero_point"] = shift.to(torch.int8)
    shift = each(shift, 32 // scale.shape[1]) if len(scales) == 2 else shift
    weights = {"num_bits": 8, "type": "int", "symmetric": not zero}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}
    return tensors, (codes - shift) * wide, settings


def gptq(bits, version="gptq", order="none", settings=True):
    inputs, outputs, groups = 96, 64, 4
    codes = integers(outputs, inputs, bits=bits)
    zeros = integers(outputs, groups, bits=bits, seed=1).clamp(min=1)
    scales = draw(groups, outputs, seed=2).exp().half()
    where = torch.arange(inputs) // (inputs // groups)
    if order == "permuted":
        where = where[torch.randperm(inputs, generator=torch.Generator().manual_seed(3))]
    stored = zeros - int(version == "gptq")
    tensors = {
        "x.qweight": words(codes, bits).T.contiguous(),
        "x.qzeros": words(stored.T, bits),
        "x.scales": scales,
    }
    if order != "none":
        tensors["x.g_idx"] = where.int()
    dense = (codes - zeros[:, where]) * scales.float().T[:, where]
    config = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    config["desc_act"] = order == "permuted"
    return tensors, dense, config if settings else {}


def gptq_symmetric(stored):
    tensors, _, _ = gptq(4)
    dense = gptq(4)[1]
    codes = integers(64, 96, bits=4)
    tensors["x.qzeros"] = words(torch.full((4, 64), stored), 4)
    where = torch.arange(96) // 24
    dense = (codes - 8) * tensors["x.scales"].float().T[:, where]
    return tensors, dense, {"quant_method": "auto-round", "packing_format": "auto_round"}


def awq(settings=True):
    inputs, outputs, groups = 24, 32, 3
    codes, zeros = integers(inputs, outputs, bits=4), integers(groups, outputs, bits=4, seed=1)
    scales = draw(groups, outputs, seed=2).exp().half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # column of eight that each nibble holds

    def mixed(columns):
        return words(columns.reshape(len(columns), -1, 8)[:, :, order].flatten(1), 4)

    tensors = {"x.qweight": mixed(codes), "x.qzeros": mixed(zeros), "x.scales": scales}
    where = torch.arange(inputs) // (inputs // groups)
    dense = ((codes - zeros[where]) * scales.float()[where]).T
    config = {"quant_method": "awq", "version": "gemm", "bits": 4}
    return tensors, dense, config if settings else {}


def packed(bits, inputs=20, groups=1, zero=False, order=False):
    outputs, half = 12, 1 << (bits - 1)
    codes = integers(outputs, inputs, bits=bits)
    scale = draw(outputs, groups, seed=1).exp().bfloat16()
    where = torch.arange(inputs) // (inputs // groups)
    tensors = {
        "x.weight_packed": words(codes, bits),
        "x.weight_scale": scale,
        "x.weight_shape": torch.tensor([outputs, inputs]),
    }
    if order:
        where = where[torch.randperm(inputs, generator=torch.Generator().manual_seed(3))]
        tensors["x.weight_g_idx"] = where.int()
    shift = torch.full((outputs, groups), half)
    if zero:
        shift = integers(outputs, groups, bits=bits, seed=2)
        tensors["x.weight_zero_point"] = words(shift.T, bits).T.contiguous()
    weights = {"num_bits": bits, "type": "int", "symmetric": not zero}
    weights |= {"actorder": "group"} if order else {}
    config = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}
    return tensors, (codes - shift[:, where]) * scale.float()[:, where], config


def nvfp4(kind):
    codes, whole = integers(6, 48, bits=4), torch.tensor([0.03])
    scale = (100 * draw(6, 3, seed=1).exp()).to(torch.float8_e4m3fn)
    name, second = {"modelopt": ("", "_2"), "compressed": ("_packed", None)}[kind]
    tensors = {f"x.weight{name}": pairs(codes), "x.weight_scale": scale}
    if second:
        tensors["x.weight_scale_2"] = whole[0]
    else:
        tensors["x.weight_global_scale"] = 1 / whole
    tensors["x.input_global_scale"] = torch.tensor([7.0])
    return tensors, FP4[codes] * each(scale, 16) * whole, {"quant_method": kind}


def mxfp4(kind):
    codes, exponent = integers(6, 96, bits=4), integers(6, 3, bits=3, seed=1) + 120
    stored = pairs(codes)
    if kind == "compressed":
        tensors = {"x.weight_packed": stored, "x.weight_scale": exponent.to(torch.uint8)}
    else:
        powers = (2.0 ** (exponent - 127)).to(torch.float8_e8m0fnu)
        tensors = {"x.weight": stored.view(torch.int8), f"x.{kind}": powers}
        theirs = Fp8Dequantize(None)._dequantize_one(tensors["x.weight"], powers, torch.float32)
        assert torch.equal(theirs, FP4[codes] * each(2.0 ** (exponent - 127), 32))
    return tensors, FP4[codes] * each(2.0 ** (exponent - 127), 32), {"quant_method": "fp8"}


def experts():
    blocks = integers(3, 10, 2, 16, bits=8).to(torch.uint8)
    scales = (integers(3, 10, 2, bits=3, seed=1) + 120).to(torch.uint8)
    dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    tensors = {"experts.up_blocks": blocks, "experts.up_scales": scales}
    return tensors, dense, {"quant_method": "mxfp4"}


def mlx(bits, lead=(6,), bias="biases", own=False):
    codes, group = integers(*lead, 64, bits=bits), 32
    scale, shift = draw(*lead, 2, seed=1).exp().half(), draw(*lead, 2, seed=2).half()
    stored = words(codes.flatten(0, -2), bits).reshape(*lead, -1).view(torch.uint32)
    tensors = {"x.weight": stored, "x.scales": scale, f"x.{bias}": shift}
    config = {"group_size": group, "bits": bits}
    return (
        tensors,
        codes * each(scale, group) + each(shift, group),
        ({"bits": 4, "group_size": 64, "x": config} if own else config),
    )


def fp8(block=(2, 32)):
    weight, scale = draw(6, 96).to(torch.float8_e4m3fn), draw(3, 3, seed=1).exp()
    tensors = {"x.weight": weight, "x.weight_scale_inv": scale}
    settings = {"quant_method": "fp8", "weight_block_size": list(block)}
    return tensors, Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32), settings


CASES = {
    "nf4": nf4,
    "nf4 nested": lambda: nf4(nested=True, shape=(40, 450)),
    "fp4": lambda: nf4("fp4"),
    "fp4 nested, odd numbers": lambda: nf4("fp4", nested=True, shape=(7, 45)),
    "nf4 in bfloat16": lambda: nf4(storage=torch.bfloat16, shape=(6, 64)),
    "bitsandbytes int8": bnb_int8,
    "int8 one scale": lambda: int8((1,)),
    "int8 rows": lambda: int8((6, 1)),
    "int8 groups": lambda: int8((6, 4)),
    "int8 zero points": lambda: int8((6, 4), zero=True),
    "gptq 2": lambda: gptq(2, "gptq_v2"),
    "gptq 3": lambda: gptq(3, order="permuted"),
    "gptq 4": lambda: gptq(4),
    "gptq 4 v2": lambda: gptq(4, "gptq_v2", order="plain"),
    "gptq 4 permuted": lambda: gptq(4, order="permuted"),
    "gptq 8": lambda: gptq(8, order="permuted"),
    "gptq symmetric": lambda: gptq_symmetric(7),
    "gptq symmetric v2": lambda: gptq_symmetric(8),
    "awq": awq,
    "awq without settings": lambda: awq(settings=False),
    "packed 4": lambda: packed(4),
    "packed 8": lambda: packed(8, groups=2),
    "packed 4 zero points": lambda: packed(4, groups=2, zero=True),
    "packed 4 permuted": lambda: packed(4, groups=4, order=True, zero=True),
    "packed 4, odd inputs": lambda: packed(4, inputs=21, groups=3),
    "nvfp4 modelopt": lambda: nvfp4("modelopt"),
    "nvfp4 compressed": lambda: nvfp4("compressed"),
    "mxfp4 compressed": lambda: mxfp4("compressed"),
    "mxfp4 bytes": lambda: mxfp4("weight_scale_inv"),
    "mxfp4 .scale": lambda: mxfp4("scale"),
    "gpt-oss experts": experts,
    "mlx 2": lambda: mlx(2),
    "mlx 3": lambda: mlx(3),
    "mlx 4 experts": lambda: mlx(4, lead=(3, 5)),
    "mlx 6": lambda: mlx(6, own=True),
    "metal 8": lambda: mlx(8, bias="qbiases"),
    "fp8 blocks": fp8,
}


# What is refused: the layout's name, and tensors in it.
REFUSED = {
    "HQQ": {"x.W_q": integers(4, 8, bits=8).byte(), "x.scale": draw(4), "x.zero": draw(4)},
    "AQLM": {"x.codes": integers(4, 2, 1, bits=7).to(torch.int8), "x.codebooks": draw(1, 8, 1, 8)},
    "VPTQ": {"x.indices": integers(1, 8, bits=15).to(torch.int16), "x.centroids": draw(1, 64)},
    "EETQ": {"x.weight": integers(8, 4, bits=7).to(torch.int8), "x.weight_scales": draw(4).half()},
    "Quanto": {"x.weight._data": integers(4, 8, bits=7).to(torch.int8), "x.weight._scale": draw(4)},
    "torchao": {  # of which fp8 looks like a plain cast
        "x._weight_qdata": draw(4, 8).to(torch.float8_e4m3fn),
        "x._weight_scale": draw(4, 1),
    },
    "HIGGS": {"x.weight": integers(4, 8, bits=7).short(), "x.scales": draw(4), "x.tables": draw(4)},
    "SpQR": {"x.dense_weights": integers(4, 8, bits=7).int()},
    "QuIP#": {"x.Qidxs": integers(4, 8, bits=7).short()},
    "EXL2": {"x.q_weight": integers(4, 8, bits=7).int(), "x.q_scale": integers(4, 1, bits=7).int()},
    "Marlin": {"x.B": integers(4, 8, bits=7).int(), "x.s": draw(4, 8).half()},
    "Marlin 2:4": {"x.weight_packed": integers(4, 8, bits=7).int(), "x.meta": draw(4)},
    "sparse bitmask": {"x.compressed": draw(9), "x.bitmask": integers(4, 1, bits=7).byte()},
    "MLX in floats": {
        "x.weight": integers(4, 8, bits=7).int().view(torch.uint32),
        "x.scales": integers(4, 2, bits=7).byte(),
    },
    "FP-Quant": {"x.qweight": integers(4, 8, bits=7).byte(), "x.scales": draw(4, 1)},
    "NVFP4 of a kernel": {"x.weight": integers(4, 8, bits=7).byte(), "x.weight_sf": draw(4)},
    "MXFP4 experts (gpt-oss's own names)": {
        "x.weight.blocks": integers(4, 1, 16, bits=7).byte(),
        "x.weight.scales": integers(4, 1, bits=7).byte(),
    },
    "bitsandbytes 4 bits without a description": {
        "x.weight": integers(16, 1, bits=7).byte(),
        "x.weight.absmax": draw(2),
        "x.weight.quant_map": draw(16),
    },
    "packed bytes (BitNet and others)": {
        "x.weight": integers(4, 8, bits=7).byte(),
        "x.weight_scale": draw(1),
    },
    "integers without a known scale": {"x.weight": integers(4, 8, bits=7).to(torch.int8)},
    "fp8, MXFP8": {"x.weight": draw(4, 8).to(torch.float8_e5m2), "x.amax_scale": draw()},
}
