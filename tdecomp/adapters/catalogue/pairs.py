"""Two thin factors of every weight, or of many weights at once: LoRA and its nearest relatives."""

from __future__ import annotations

from tdecomp.adapters.spec import Spec

__all__ = ["PAIRS"]

_DOWN = "uniform(1/sqrt(in))"  # torch's Kaiming-uniform with a = sqrt(5)

PAIRS: tuple[Spec, ...] = (
    Spec.parse(
        "lora",
        "b: site out r, a: site r in",
        {"b": "zeros", "a": _DOWN},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2106.09685, equation 3",
    ),
    Spec.parse(
        "rslora",
        "b: site out r, a: site r in",
        {"b": "zeros", "a": _DOWN},
        scale="alpha / sqrt(r)",
        alpha="8",
        source="arXiv:2312.03732",
    ),
    Spec.parse(
        "lora_fa",
        "b: site out r, *a: site r in",
        {"b": "zeros", "a": _DOWN},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2308.03303",
    ),
    Spec.parse(
        "asymmetric",
        "b: site out r, *a: site r in",
        {"b": "zeros", "a": "orthogonal"},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2402.16842",
    ),
    # B is the left singular vectors of the r smallest singular values.
    Spec.parse(
        "mica",
        "*b: site out r, a: site r in",
        {"b": "svd_u(0, short - r)", "a": "zeros"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2604.01694",
    ),
    # Directions, and a strength apart from them that starts as alpha. Every column of the weight
    # has a norm of its own, as in PEFT, where the paper writes one for the weight.
    Spec.parse(
        "delora",
        "b: site out r, strength: site, a: site r in, *norm: site in",
        {"b": "zeros", "strength": "constant(alpha)", "a": _DOWN, "norm": "norm"},
        unit={"b": "out", "a": "in"},
        scale="1 / r",
        alpha="15",
        source="arXiv:2503.18225",
    ),
    # A of all layers in one (ShareA), of queries, keys and values each its own.
    Spec.parse(
        "sharelora",
        "b: site out r, a: proj r in",
        {"b": "zeros", "a": _DOWN},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2406.10785",
    ),
    # The paper adapts a weight that holds queries, keys and values: one A, a B for each of them.
    # There is no public code: the starts and alpha are LoRA's, vectors of ones.
    Spec.parse(
        "tied_lora",
        "v: site out, b: proj out r, u: layer r, a: r in",
        {"v": "ones", "b": "zeros", "u": "ones", "a": _DOWN},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2311.09578",
    ),
    # Every layer gives k of its r ranks away; all layers use what they have given, each weighted in
    # its own way.
    Spec.parse(
        "rasa",
        "b: site out p, d: site p, a: site p in"
        " + b_shared: proj out m, d_shared: site m, a_shared: proj m in",
        {
            "b": "zeros",
            "d": "constant(alpha / (2 * p))",
            "a": _DOWN,
            "b_shared": "zeros",
            "d_shared": "constant(alpha / (2 * m))",
            "a_shared": _DOWN,
        },
        where={"k": 1, "p": "r - k", "m": "k * layer"},
        alpha="8",
        source="arXiv:2503.12576",
    ),
    # One vector of d numbers for the whole model: every entry of A and B is one of them. PEFT
    # counts how often a number is used over the whole model, here over the weights of one shape.
    Spec.parse(
        "uni_lora",
        "theta: d, *pick_b: site out r d, theta: e, *pick_a: site r in e",
        {
            "theta": "uniform(0.02)",
            "pick_b": "pick(sqrt(d / (site * r * (out + in))))",
            "pick_a": "pick(sqrt(d / (site * r * (out + in))))",
        },
        where={"d": 256, "e": "d"},
        across=("theta",),
        source="arXiv:2506.00799",
    ),
    # The inner pair trains between singular vectors of the weight (in the paper's second version
    # of one scaled by activations: give them as `b_outer` and `a_outer`). The start of the inner
    # pair and alpha are LoRA's, the paper's are not known here.
    Spec.parse(
        "nora",
        "*b_outer: site out r, b: site r k, a: site k s, *a_outer: site s in",
        {
            "b_outer": "svd_u(1)",
            "b": "zeros",
            "a": "uniform(1/sqrt(s))",
            "a_outer": "svd_vh",
        },
        where={"s": "r"},
        scale="alpha / k",
        alpha="k",
        source="arXiv:2408.10280",
    ),
    # p and q are the widths of the two frozen outer factors. Starts and alpha are LoRA's, the
    # paper's are not known here.
    Spec.parse(
        "lora_mini",
        "*b_outer: site out p, b: site p r, a: site r q, *a_outer: site q in",
        {
            "b_outer": "uniform(1/sqrt(p))",
            "b": "zeros",
            "a": "uniform(1/sqrt(q))",
            "a_outer": _DOWN,
        },
        scale="alpha / r",
        alpha="r",
        source="arXiv:2411.15804",
    ),
    # B and A are mixtures of k random matrices; A has a frozen start of its own. The bases are the
    # same for every weight here, where the public code draws them anew for each.
    Spec.parse(
        "nola",
        "beta: site k, *b: k out r, *a_start: site r in"
        " + beta: site k, *b: k out r, alphas: site m, *a: m r in",
        {
            "beta": "zeros",
            "b": "uniform(1/sqrt(k))",
            "a_start": _DOWN,
            "alphas": "zeros",
            "a": "uniform(1/sqrt(m))",
        },
        where={"k": 512, "m": "k"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2310.02556",
    ),
    # One factor, its leading rows for the shorter side. T is the length of the ramp in steps. The
    # start is that of an unofficial implementation: the paper has no public code.
    Spec.parse(
        "singlora",
        "a: site out r, a: site in r",
        "uniform(1/sqrt(r))",
        modes={"a": "site long r"},
        where={"T": 1000},
        scale="alpha / r * min(step / T, 1)",
        alpha="r",
        source="arXiv:2507.05566, equation 8",
    ),
    # The paper finds the mask by a first, dense run, with one threshold for all weights (give it as
    # `mask`); here it is random. A tenth of B is left.
    Spec.parse(
        "lori",
        "b: site out r, *mask: site out r, *a: site r in",
        {"b": "zeros", "mask": "mask(0.1)", "a": _DOWN},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2504.07448",
    ),
    # A of all layers in one; B of one layer after another gives way to that of the closest one,
    # from step T on, one every `every` steps, until `left` are in use.
    Spec.parse(
        "aslora",
        "b: proj g out r, *assign: proj layer g, a: proj r in",
        {"b": "zeros", "assign": "one_hot", "a": _DOWN},
        clusters={"assign": "max(left, layer - floor(max(step - T, 0) / every))"},
        where={"g": "layer", "left": "ceil(5 * layer / 12)", "T": 320, "every": 240},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2412.10135, equation 2",
    ),
    # The block shortcut: a layer also uses the pairs of the `before` layers before it. The other
    # two shortcuts of the paper mix activations of layers: those are not updates of a weight.
    Spec.parse(
        "reslora",
        "*band: layer m, b: proj m out r, a: proj m r in",
        {"band": "banded(before)", "b": "zeros", "a": _DOWN},
        where={"m": "layer", "before": 1},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2402.18039, equation 3",
    ),
    # Terms k that all tasks share, weighted anew for every task. Without a `task` mode there is one
    # task, the present one: for the next, give the terms so far, padded by new ones, with their
    # number as `old`: these no longer train. The paper has no base weight; here it is kept, and the
    # selector starts as zeros where the public code has ones.
    Spec.parse(
        "itl",
        "u: layer proj out k, selector: layer proj task k, v: layer proj in k",
        {"u": "orthogonal", "selector": "zeros", "v": "orthogonal"},
        freeze={"u": "old / k", "v": "old / k"},
        where={"task": 1, "old": 0},
        source="arXiv:2207.09074",
    ),
    # k principal directions of adapters that exist already; only the loadings train. They start at
    # random, or at those of one adapter (give `b` and `a`).
    Spec.parse(
        "eigenlorax",
        "*directions_out: site out k, b: site k r, a: site r j, *directions_in: site j in",
        {
            "directions_out": "given",
            "b": "uniform(1/2)",
            "a": "uniform(1/2)",
            "directions_in": "given",
        },
        where={"j": "k"},
        source="arXiv:2502.04700",
    ),
    # A pair for every task; weights without this mode have one task. The paper trains W ∘ (BA) and
    # names no start. We write W ∘ (1 + BA) with B = 0, so that training starts at W.
    Spec.parse(
        "flora",
        "*w: site out in, b: layer proj task out r, a: layer proj task r in",
        {"w": "weight", "b": "zeros", "a": _DOWN},
        where={"task": 1},
        source="arXiv:2312.05677, equation 4",
    ),
    Spec.parse(
        "hira",
        "*w: site out in, b: site out r, a: site r in",
        {"w": "weight", "b": "zeros", "a": _DOWN},
        source="openreview:TwJrTz9cRS, equation 6",
    ),
)
