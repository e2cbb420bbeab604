"""Layouts that are recognised and not read, so that their codes are never taken for weights."""

from __future__ import annotations

from ..safetensors import Entry
from .layout import Layout

__all__ = ["NAMED_LAYOUTS", "UNKNOWN_LAYOUTS"]

_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_ANY = _INTEGERS | _FLOATS | {"F8_E4M3", "F8_E5M2", "BOOL"}
# Last names under which integers are the codes of a weight, and that weight's last name.
_WEIGHTS = {
    "qweight": "weight",
    "weight": "weight",
    "_packed": "",
    "_blocks": "",
    "_quantized": "",
    "_proj": "_proj",
}
_HQQ = ("scale", "zero", "meta", "shape", "nbits", "axis", "group_size", "packing", "quant_config")
_EXL2 = ("q_scale", "q_scale_max", "q_groups", "q_group_map", "q_invperm", "q_perm")
_FPQ = (
    "scales",
    "dqweight",
    "forward_hadamard_matrix",
    "backward_hadamard_matrix",
    "act_global_scale",
    "weight_global_scale",
)
_SPARSE = ("shape", "row_offsets")
_GPTQMODEL = "load it with gptqmodel, dequantise it, and save it in bfloat16"
_TRANSFORMERS = (
    "load it with transformers, call model.dequantize() where there is one, and save it in bfloat16"
)


def _matrices(entry: Entry) -> bool:
    """Whether integers have the modes of a weight; positions and counts do not."""
    return len(entry.shape) >= 2


def _row(
    name: str,
    stored: str,
    ending: str,
    becomes: str,
    marks: tuple[str, ...] = (),
    rest: tuple[str, ...] = (),
    *,
    dtypes: frozenset[str] = _ANY,
    advice: str = _TRANSFORMERS,
) -> Layout:
    parts = {tail: (tail,) for tail in rest}
    return Layout(name, stored, dtypes, ending, becomes, marks, None, parts=parts, advice=advice)


NAMED_LAYOUTS = (
    _row("HQQ", "`W_q`, `scale`, `zero`", "W_q", "weight", (), _HQQ),
    _row("AQLM", "`codes`, `codebooks`, `scales`", "codes", "weight", ("codebooks",), ("scales",)),
    _row("VPTQ", "`indices`, `centroids`", "indices", "weight", ("centroids", "centroids.weight")),
    _row("EETQ", "`weight` I8, `weight_scales`", "", "", ("{}_scales",), dtypes=frozenset({"I8"})),
    _row("Quanto", "`weight._data`, `weight._scale`", "_data", "", ("_scale",)),
    _row(
        "torchao",
        "`_weight_qdata`, `_weight_scale`",
        "_weight_qdata",
        "weight",
        (),
        ("_weight_scale", "_weight_zero_point"),
    ),
    _row("HIGGS", "`weight`, `scales`, `tables`", "", "", ("tables", "tables2"), ("scales",)),
    _row("SpQR", "`dense_weights`", "dense_weights", "weight"),
    _row("QuIP#", "`Qidxs`", "Qidxs", "weight"),
    _row("EXL2", "`q_weight`, `q_scale`", "q_weight", "weight", (), _EXL2, advice=_GPTQMODEL),
    _row(
        "Marlin",
        "`B`, `s`",
        "B",
        "weight",
        ("s",),
        ("workspace",),
        dtypes=_INTEGERS,
        advice=_GPTQMODEL,
    ),
    _row(
        "Marlin 2:4",
        "`weight_packed`, `meta`",
        "_packed",
        "",
        ("scale_packed", "meta"),
        ("workspace",),
    ),
    _row(
        "sparse bitmask", "`compressed`, `bitmask`", "compressed", "weight", ("bitmask",), _SPARSE
    ),
    _row("FP-Quant", "`qweight` U8", "qweight", "weight", (), _FPQ, dtypes=frozenset({"U8"})),
    _row("NVFP4 of a kernel", "`weight` U8, `weight_sf`", "", "", ("{}_sf", "{}_sf_rowmajor")),
    _row(
        "MXFP4 experts (gpt-oss's own names)", "`X.blocks`, `X.scales`", "blocks", "", ("scales",)
    ),
)
"""Known by names of their own: tried first."""

UNKNOWN_LAYOUTS = (
    _row(
        "bitsandbytes 4 bits without a description",
        "`weight` U8, `weight.absmax`, without `quant_state`",
        "",
        "",
        ("{}.absmax",),
        ("{}.quant_map", "{}.nested_absmax", "{}.nested_quant_map"),
        advice="save it again with transformers, which writes weight.quant_state",
    ),
    _row(
        "packed bytes (BitNet and others)",
        "`weight` U8, `weight_scale` floats",
        "",
        "",
        ("{}_scale",),
        dtypes=frozenset({"U8"}),
    ),
    _row(
        "MLX in floats",
        "`weight` U32, `scales` without `biases`",
        "",
        "",
        ("scales",),
        dtypes=frozenset({"U32"}),
        advice="dequantise it with mlx-lm (mlx_lm.convert --dequantize)",
    ),
    _row(
        "floats of other kinds",
        "any name F4, F6_E2M3, F6_E3M2, F8_E4M3FNUZ or F8_E5M2FNUZ",
        "",
        "",
        dtypes=frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}),
    ),
    *(
        Layout(
            "integers without a known scale",
            "`weight`, `qweight`, `weight_packed`, `X_proj`, ... of two or more modes",
            _INTEGERS,
            ending,
            becomes,
            (),
            None,
            advice="find the scales that belong to it, or take the model from before quantisation",
            only=_matrices,
        )
        for ending, becomes in _WEIGHTS.items()
    ),
)
"""What is left where no layout that is read fits: tried last."""
