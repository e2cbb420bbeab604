"""Factors shared across layers, projections and heads: Tucker, CP and tensor-train adapters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tdecomp.adapters.spec import Spec

__all__ = ["TENSORS"]

_PARTS = {f"{n[0]}{k}": f"part({n}, 3, {k})" for n in ("out", "in") for k in (1, 2, 3)}
_SQUARES = {  # how often one side goes into the other: 1 where that is not whole
    "bo": "max(1, (out // in) * (1 - min(1, out % in)))",
    "bi": "max(1, (in // out) * (1 - min(1, in % out)))",
}
_RANKS = {"in": "r", "out": "s", "hd": "s", "head": "t", "proj": "u", "layer": "v"}
_STACKED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # modes of one tensor; modes that count the tensors
        "att": ("in hd head", "site"),
        "qkv": ("in out proj", "layer"),
        "depth": ("in out layer", "proj"),
        "att_qkv": ("in hd head proj", "layer"),
        "att_depth": ("in hd head layer", "proj"),
        "qkv_depth": ("in out proj layer", ""),
        "att_qkv_depth": ("in hd head proj layer", ""),
    }
)


def _tenslora(stacking: str, *, cp: bool) -> Spec:
    """TensLoRA: one tensor for every label of the modes that are not stacked.

    Heads are the slow part of ``out``, as transformers packs them; the public code has them fast.
    """
    modes, copies = (text.split() for text in _STACKED[stacking])
    output = "(head hd) in" if "head" in modes else "out in"
    rank = {n: "r" if cp else _RANKS[n] for n in modes}
    factors = [f"u_{n}: {' '.join((*copies, n, rank[n]))}" for n in modes]
    init = {f"u_{n}": "uniform(1/sqrt(r))" if cp else "orthogonal" for n in modes}
    if cp:
        init["u_in"] = "zeros"
    else:
        factors.append(f"core: {' '.join((*copies, *rank.values()))}")
        init["core"] = "zeros"
    return Spec.parse(
        f"tenslora_{stacking}{'_cp' if cp else ''}",
        f"{', '.join(factors)} -> {output}",
        init,
        source="arXiv:2509.19391",
    )


TENSORS: tuple[Spec, ...] = (
    Spec.parse(
        "lotr",
        "left: out r, core: site r s, right: s in",
        {"left": "normal", "core": "zeros", "right": "normal"},
        scale="alpha / r",
        alpha="1",
        source="arXiv:2402.01376",
    ),
    # Beside the paper's start: entries of `right` have variance 1 / in, so that a first step moves
    # the outputs as LoRA's does and its learning rates carry over (docs/theory.md).
    Spec.parse(
        "lotr_narrow",
        "left: out r, core: site r s, right: s in",
        {"left": "normal", "core": "zeros", "right": "normal(1/sqrt(in))"},
        scale="alpha / sqrt(r * s)",
        alpha="1",
        source="arXiv:2402.01376, with another start",
    ),
    Spec.parse(  # without the activation after each outer factor: an update of a weight has none
        "denselora",
        "b: proj out r, core: site r s, a: proj s in",
        {"b": "zeros", "core": "uniform(1/sqrt(s))", "a": "uniform(1/sqrt(in))"},
        where={"s": "r"},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2505.23808",
    ),
    *(_tenslora(stacking, cp=False) for stacking in _STACKED),
    *(_tenslora(stacking, cp=True) for stacking in _STACKED),
    # One set for queries, keys, values and outputs: d + d / H + H + L + 4 numbers for a rank. Heads
    # split `out` (of an output projection `in`) as in the paper; the public code splits the columns
    # of all four. alpha is that of its LLaMA runs (lit-gpt); its PEFT fork has 8 by default.
    Spec.parse(
        "lorta",
        "a: in r, b: hd r, c_head: head r, c_proj: proj r, c_layer: layer r -> (head hd) in",
        {"b": "zeros", "a": "uniform(1/sqrt(r))"}
        | dict.fromkeys(("c_head", "c_proj", "c_layer"), "uniform(sqrt(6 / r))"),
        across=("a", "b", "c_head", "c_layer"),
        scale="alpha / r",
        alpha="16",
        source="arXiv:2410.04060",
    ),
    # As the public code has it: queries, keys, values and outputs in one tensor, none of them
    # turned, h heads on the columns of all four. A head is taken to have 64 numbers, or the largest
    # divisor below: give `h` where that is not so.
    Spec.parse(
        "lorta_public",
        "a: out r, b: d r, c_head: h r, c_proj: proj r, c_layer: layer r -> out (h d)",
        {"b": "zeros", "a": "uniform(1/sqrt(r))"}
        | dict.fromkeys(("c_head", "c_proj", "c_layer"), "uniform(sqrt(6 / r))"),
        where={"h": "in / divisor(in, 64)"},
        scale="alpha / r",
        alpha="16",
        source="arXiv:2410.04060",
    ),
    # CP over inputs, heads and all queries, keys and values; the same tensor of other weights, cut
    # into squares, is not here. The public code stores alpha as its `scale`.
    Spec.parse(
        "cara",
        "lam: r, a_site: site r, a: in r, a_head: head r, a_hd: hd r -> (head hd) in",
        {
            "lam": "ones",
            "a_site": "normal(sqrt(2 / (site + r)))",
            "a": "zeros",
            "a_head": "orthogonal",
            "a_hd": "orthogonal",
        },
        scale="alpha",
        source="openreview:vexHifrbJg",
    ),
    # FLoRA's core space of a matrix (of a convolution its kernel is a part of `in` here)
    Spec.parse(
        "flora_core",
        "b: site out s, core: site s r, a: site in r",
        {"b": "normal(1/sqrt(2 * s))", "core": "zeros", "a": "normal(1/sqrt(2 * r))"},
        where={"s": "r"},
        scale="alpha",
        source="arXiv:2405.14739",
    ),
    # Gates on every two of three axes, as in a circuit; sides are filled up to n x n x n.
    Spec.parse(
        "quanta",
        "g23: site b2 b3 i2 i3, g13: site b1 o3 i1 b3, g12: site o1 o2 b1 b2"
        " -> (o1 o2 o3) (i1 i2 i3)",
        "uniform(1/n)",
        where={"n": "ceil(long ** (1 / 3) - 1 / 1000000)"}
        | {f"{axis}{k}": "n" for axis in "oi" for k in (1, 2, 3)}
        | {f"b{k}": "n" for k in (1, 2, 3)},
        base="residual",
        crop=("out", "in"),
        source="arXiv:2406.00132",
    ),
    # Weights are cut into squares (`bo` blocks of `out`, `bi` of `in`) where one side is a multiple
    # of the other; u and v are the same for all squares of a model, as in the public code.
    Spec.parse(
        "fact_tt",
        "v: x r, sigma: site bo bi r s, u: s y -> (bo x) (bi y)",
        {"v": "zeros", "sigma": "uniform(1/sqrt(bi * s))", "u": "uniform(1/sqrt(y))"},
        where=_SQUARES,
        across=("v", "u"),
        scale="alpha",
        source="arXiv:2212.03145",
    ),
    # In the public code, p starts by the number of all squares of the model (here of the weights of
    # one shape), and the cores of the four squares of an MLP weight are interleaved.
    Spec.parse(
        "fact_tk",
        "v: x r, p: site bo bi t, core: r s t, u: s y -> (bo x) (bi y)",
        {
            "v": "zeros",
            "p": "uniform(sqrt(6 / (site * bo * bi + t)))",
            "core": "uniform(sqrt(6 / ((r + s) * t)))",
            "u": "uniform(1/sqrt(y))",
        },
        where=_SQUARES,
        across=("v", "core", "u"),
        scale="alpha",
        source="arXiv:2212.03145",
    ),
    # The last core starts as zeros, the others have norm 1 on average. The public code gives every
    # core norm 1, so that its ΔW is not 0 at the start, and reverses the parts of `in`.
    Spec.parse(
        "tt_lora",
        "g1: site i1 r1, g2: site r1 i2 r2, g3: site r2 i3 r3, g4: site r3 o1 r4,"
        " g5: site r4 o2 r5, g6: site r5 o3 -> (o1 o2 o3) (i1 i2 i3)",
        {
            "g1": "normal(1/sqrt(i1 * r1))",
            "g2": "normal(1/sqrt(r1 * i2 * r2))",
            "g3": "normal(1/sqrt(r2 * i3 * r3))",
            "g4": "normal(1/sqrt(r3 * o1 * r4))",
            "g5": "normal(1/sqrt(r4 * o2 * r5))",
            "g6": "zeros",
        },
        where=_PARTS,
        scale="alpha",
        alpha="16",
        source="arXiv:2408.01008",
    ),
    # Both factors of LoRA are trains of t ranks. The last core of B starts as zeros, in the public
    # code it is random, and the order of the parts follows from a table there.
    Spec.parse(
        "loretta_rep",
        "g1: site i1 a1, g2: site a1 i2 a2, g3: site a2 i3 a3, g4: site a3 r,"
        " h1: site r b1, h2: site b1 o1 b2, h3: site b2 o2 b3, h4: site b3 o3"
        " -> (o1 o2 o3) (i1 i2 i3)",
        {
            **dict.fromkeys(("g1", "g2", "g3"), "normal((in + r) ** (-1 / 8) / sqrt(t))"),
            "g4": "normal((in + r) ** (-1 / 8))",
            **dict.fromkeys(("h1", "h2", "h3"), "normal((out + r) ** (-1 / 8) / sqrt(t))"),
            "h4": "zeros",
        },
        where=_PARTS
        | {"o2": "part(out, 3, 3)", "o3": "part(out, 3, 2)"}
        | dict.fromkeys(("a1", "a2", "a3", "b1", "b2", "b3"), "t"),
        scale="alpha / r",
        alpha="r",
        source="arXiv:2402.11417",
    ),
    Spec.parse(  # there is no public code: the start and alpha are not the paper's for certain
        "metatt",
        "g_in: in r1, g_layer: layer r1 r2, g_proj: proj r2 r3, g_out: r3 out",
        {"g_in": "zeros", "g_layer": "eye", "g_proj": "eye", "g_out": "eye"},
        scale="alpha",
        source="arXiv:2506.09105",
    ),
    Spec.parse(
        "metatt_heads",
        "g_in: in r1, g_layer: layer r1 r2, g_proj: proj r2 r3, g_head: head r3 r4, g_hd: r4 hd"
        " -> (head hd) in",
        {"g_in": "zeros", "g_layer": "eye", "g_proj": "eye", "g_head": "eye", "g_hd": "eye"},
        scale="alpha",
        source="arXiv:2506.09105",
    ),
)
