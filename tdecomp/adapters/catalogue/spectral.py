"""Cores between, or diagonals in, fixed bases taken from the base weights."""

from __future__ import annotations

from tdecomp.adapters.spec import Spec

__all__ = ["SPECTRAL"]

_UP, _DOWN = "uniform(sqrt(6 / r))", "uniform(sqrt(6 / in))"  # Kaiming-uniform with a = 0
_PARTS = {f"{n[0]}{k}": f"part({n}, 3, {k})" for n in ("out", "in") for k in (1, 2, 3)}

SPECTRAL: tuple[Spec, ...] = (
    Spec.parse(  # the singular values go with the factor on the side of `in`, as in the public code
        "lora_xs",
        "*b: site out r, core: site r s, *a: site s in",
        {"b": "svd_u", "core": "normal(1e-5)", "a": "svd_vh(1)"},
        where={"s": "r"},
        scale="alpha / r",
        alpha="16",
        source="arXiv:2405.17604",
    ),
    # LoRA-XS between orthonormal bases that stay. The paper's start needs gradients, it is the rule
    # `start="lora_sb"`; without it the bases are those of the weight.
    Spec.parse(
        "lora_sb",
        "*b: site out r, core: site r s, *a: site s in",
        {"b": "svd_u", "core": "zeros", "a": "svd_vh"},
        where={"s": "r"},
        source="arXiv:2411.19557",
    ),
    # B stops to train column by column until 30 % of the T steps. The start is the paper's singular
    # vectors with an identity between them, taken off again; the public code starts as LoRA does,
    # with a random core.
    Spec.parse(
        "lamda",
        "b: site out r, core: site r s, *a: site s in",
        {"b": "svd_u", "core": "eye", "a": "svd_vh(1)"},
        freeze={"b": "min(step / (0.3 * T), 1)"},
        where={"s": "r", "T": 1000},
        scale="alpha / r",
        alpha="16",
        base="residual",
        source="arXiv:2406.12832",
    ),
    # The law of P is PEFT's, the paper has none. PEFT divides the singular values over both sides.
    Spec.parse(
        "tinylora",
        "*b: site out r, v: site u, *p: site u r s, *a: site s in",
        {"b": "svd_u(1)", "v": "zeros", "p": "normal(1/sqrt(r))", "a": "svd_vh"},
        where={"s": "r", "u": 64},
        source="arXiv:2602.04118",
    ),
    Spec.parse(
        "vera",
        "b: site out, *up: out r, d: site r, *down: r in",
        {"b": "zeros", "up": _UP, "d": "constant(0.1)", "down": _DOWN},
        across=("up", "down"),
        source="arXiv:2310.11454",
    ),
    # VeRA with the mean of a distribution for d: its second half, the logarithms of the variances,
    # acts only while it is sampled from.
    Spec.parse(
        "pvera",
        "b: site out, *up: out r, d: site r, *down: r in",
        {"b": "zeros", "up": _UP, "d": "constant(0.1)", "down": _DOWN},
        modes={"d": "site both"},
        where={"both": "2 * r"},
        across=("up", "down"),
        source="arXiv:2512.07703",
    ),
    # The share that no longer trains rises from 0 at step t0 to 1 at step t1. The public code
    # freezes whole matrices by a score, those of square weights at once; here it is the leading
    # columns.
    Spec.parse(
        "aflora",
        "b: site out, up: site out r, d: site r, down: site r in",
        {"b": "zeros", "up": _UP, "d": "constant(0.1)", "down": _DOWN},
        freeze=dict.fromkeys(
            ("up", "down"), "1 - (1 - min(max((step - t0) / (t1 - t0), 0), 1)) ** 3"
        ),
        where={"t0": 100, "t1": 1000},
        source="arXiv:2403.13269",
    ),
    Spec.parse(
        "svfit",
        "*u: site out r, sigma: site r, *vh: site r in",
        {"u": "svd_u", "sigma": "svd_s", "vh": "svd_vh"},
        base="residual",
        source="arXiv:2409.05926",
    ),
    # All but the leading directions train; r is how many. The paper keeps the gradients of `u` and
    # `vh` orthogonal to the others: that is a rule of training, not here.
    Spec.parse(
        "osf",
        "u: site out r, sigma: site r, vh: site r in",
        {"u": "svd_u(0, short - r)", "sigma": "svd_s(1, short - r)", "vh": "svd_vh(0, short - r)"},
        base="residual",
        source="arXiv:2504.07097",
    ),
    # Each of k clusters of rows has a pair of rank s between right singular vectors and its rows.
    # The paper takes clusters by k-means of the rows of the left singular vectors (give them as
    # `assign`) and `a` along the main directions of each; here neighbours and random directions.
    Spec.parse(
        "adamss",
        "*assign: site out k, b: site out s, a: site k s r, *vh: site r in",
        {"assign": "one_hot", "b": "zeros", "a": "orthogonal", "vh": "svd_vh"},
        where={"k": "min(5, out)", "s": 1},
        source="openreview:8ZdWmpYxT0",
    ),
    # All coefficients between singular vectors on the diagonal and right beside it. The public code
    # has a trained gate in front, 1 / (1 + exp(-g)), and starts from random coefficients.
    Spec.parse(
        "svft",
        "*u: site out m, s: site m, *vh: site m in"
        " + *u: site out n, up: site n, *vh_next: site n in"
        " + *u_next: site out n, low: site n, *vh: site n in",
        {
            "u": "svd_u",
            "s": "zeros",
            "vh": "svd_vh",
            "up": "zeros",
            "vh_next": "svd_vh(0, 1)",
            "u_next": "svd_u(0, 1)",
            "low": "zeros",
        },
        where={"m": "short", "n": "m - 1"},
        source="arXiv:2405.19597",
    ),
    Spec.parse(  # the permutation is in `lower`
        "loldu",
        "*lower: site out r, z: site r, *upper: site r in",
        {"lower": "ldu_l", "z": "ldu_d", "upper": "ldu_u"},
        scale="alpha / r",
        alpha="1",
        base="residual",
        source="arXiv:2410.13618",
    ),
    # The last r singular values go, whatever the shape, as in the paper and in PEFT. The authors'
    # code keeps the first `in` - r, which takes off fewer (or none) where out < in.
    Spec.parse(
        "kasa",
        "b: site out r, sigma: site r, a: site r in",
        {"b": "zeros", "sigma": "normal", "a": "uniform(1/sqrt(in))"},
        scale="alpha / r",
        alpha="16",
        base="truncate",
        source="arXiv:2412.06071",
    ),
    Spec.parse(  # there is no public code: pivots by QR, a core of zeros and no scale are ours
        "pmss",
        "*columns: site out r, core: site r s, *rows: site s in",
        {"columns": "cur_columns", "core": "zeros", "rows": "cur_rows"},
        where={"s": "r"},
        source="arXiv:2409.16722",
    ),
    # Columns and rows of small norm. The public code draws them, the smaller the likelier; here
    # they are the r smallest.
    Spec.parse(
        "curlora",
        "*columns: site out r, core: site r s, *rows: site s in",
        {"columns": "least_columns", "core": "zeros", "rows": "least_rows"},
        where={"s": "r"},
        scale="alpha",
        source="arXiv:2408.14572",
    ),
    Spec.parse(  # there is no public code: three parts of a side, ascending, are ours
        "dota",
        "g1: site o1 i1 r1, g2: site r1 o2 i2 r2, g3: site r2 o3 i3 -> (o1 o2 o3) (i1 i2 i3)",
        {"g1": "mpo(1)", "g2": "mpo(2)", "g3": "mpo(3)"},
        where=_PARTS,
        base="residual",
        source="arXiv:2412.20891",
    ),
)
