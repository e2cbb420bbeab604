"""Structured updates: blocks, Kronecker products, circulants, Fourier coefficients."""

from __future__ import annotations

from tdecomp.adapters.spec import Spec

__all__ = ["STRUCTURED"]

_DOWN = "uniform(1/sqrt(in))"  # torch's Kaiming-uniform with a = sqrt(5), fan in = in
_UP = "uniform(1/sqrt(r))"  # the same with fan in = r

_PRODUCTS = (
    # The starts of loha and lokr are those of PEFT. LyCORIS, which gave them their names, starts
    # b1 ~ N(0, 0.1), a1 ~ N(0, 1), b2 = 0, a2 ~ N(0, 1), and lokr with a = 0 and `left` as torch
    # starts a linear layer: give these arrays with `given` to train as it does.
    Spec.parse(
        "loha",
        "b1: site out r, a1: site r in, b2: site out s, a2: site s in",
        {"b1": _UP, "a1": _DOWN, "b2": _UP, "a2": "zeros"},
        where={"s": "r"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2108.06098",
    ),
    Spec.parse(
        "lokr",
        "left: site p q, b: site x r, a: site r y -> (p x) (q y)",
        {"left": "zeros", "b": _UP, "a": "uniform(1/sqrt(y))"},
        where={"p": "divisor(out, sqrt(out))", "q": "divisor(in, sqrt(in))"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2309.14859",
    ),
    # LoHa whose first pair starts as the leading part of the weight
    Spec.parse(
        "abba",
        "b1: site out r, a1: site r in, b2: site out s, a2: site s in",
        {
            "b1": "svd_u(1/2)",
            "a1": "svd_vh(1/2)",
            "b2": "zeros",
            "a2": "uniform(sqrt(6 / in))",
        },
        where={"s": "r"},
        scale="alpha",
        alpha="8",
        source="arXiv:2505.14238",
    ),
    # a Kronecker product of an r wide and an r high factor, of those of the paper (`c3a` is the
    # circulant one)
    Spec.parse(
        "surm",
        "left: site p q, right: site x y -> (p x) (q y)",
        {"left": "zeros", "right": "uniform(1/sqrt(y))"},
        where={"q": "r", "x": "r"},
        scale="alpha / r",
        alpha="1",
        source="arXiv:2406.17740",
    ),
    # both factors whole: what PEFT makes of it where r is half a side of the second or more
    Spec.parse(
        "lokr_full",
        "left: site p q, right: site x y -> (p x) (q y)",
        {"left": "zeros", "right": "uniform(1/sqrt(y))"},
        where={"p": "divisor(out, sqrt(out))", "q": "divisor(in, sqrt(in))"},
        scale="alpha",
        source="arXiv:2309.14859",
    ),
    # a transposed convolution whose stride is its kernel is a Kronecker product; as in the authors'
    # code all factors start near zero, none at it
    Spec.parse(
        "dcft",
        "b: site p r, a: site r q, kernel: site x y -> (p x) (q y)",
        "normal(0.02)",
        where={"d": "divisor(gcd(out, in), 8)", "x": "d", "y": "d"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2503.01419",
    ),
    # no rank: a is the root of the short side, b as small as will do; `in` is a square's long side
    Spec.parse(
        "kradapter",
        "v: site short b, u: site short a -> short (b a)",
        {"v": "uniform(sqrt(3 / (13 * b)))", "u": "zeros"},
        where={"a": "floor(sqrt(short))", "b": "ceil(long / a)"},
        scale="alpha",
        alpha="2",
        crop=("long",),
        source="arXiv:2508.00230",
    ),
)

_BLOCKS = (
    # g blocks on the diagonal, each a LoRA of rank r
    Spec.parse(
        "melora",
        "b: site g x r, a: site g r y, *same: g h -> (g x) (h y)",
        {"b": "zeros", "a": "uniform(1/sqrt(y))", "same": "eye"},
        where={"g": "divisor(gcd(out, in), 4)", "h": "g"},
        scale="alpha / r",
        alpha="16",
        source="arXiv:2402.17263",
    ),
    # a grid of k x k blocks, each a LoRA of rank r / k: as many numbers as LoRA of rank r
    Spec.parse(
        "gralora",
        "b: site p q s x, a: site q p s y -> (p x) (q y)",
        {"b": "zeros", "a": "uniform(1/sqrt(y))"},
        where={"k": "2", "p": "k", "q": "k", "s": "r / k"},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2505.20355",
    ),
    # Monarch: a pair of block-diagonal factors with r blocks, and a permutation between them; the
    # outputs of a block are r apart
    Spec.parse(
        "more",
        "b: site q x r, a: site r q y -> (x q) (r y)",
        {"b": "zeros", "a": "uniform(1/sqrt(y))"},
        where={"q": "r"},
        source="arXiv:2408.17383",
    ),
    # and an ordinary LoRA of rank t beside it
    Spec.parse(
        "gralora_hybrid",
        "b: site p q s x, a: site q p s y + b_whole: site p x t, a_whole: site t q y"
        " -> (p x) (q y)",
        {"b": "zeros", "a": "uniform(1/sqrt(y))", "b_whole": "zeros", "a_whole": _DOWN},
        where={"k": "2", "p": "k", "q": "k", "s": "r / k"},
        scale="alpha / (r + t)",
        alpha="2 * (r + t)",
        source="arXiv:2505.20355",
    ),
    # the r rows of A are g times the same r / g rows: the blocks of B only add up
    Spec.parse(  # g, the start and alpha are ours: there is no public code
        "block_lora",
        "b: site g out s, a: site s in",
        {"b": "zeros", "a": _DOWN},
        where={"g": "2", "s": "r / g"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2501.16720",
    ),
    # A block-diagonal in n blocks, for weights whose inputs are sharded
    Spec.parse(
        "bd_lora",
        "b: site out n s, a: site n s y -> out (n y)",
        {"b": "zeros", "a": "uniform(sqrt(6 / y))"},
        where={"n": "divisor(gcd(in, r), 4)", "s": "r / n"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2510.23346",
    ),
    # and B, for weights whose outputs are
    Spec.parse(
        "bd_lora_out",
        "b: site n x s, a: site n s in -> (n x) in",
        {"b": "zeros", "a": _DOWN},
        where={"n": "divisor(gcd(out, r), 4)", "s": "r / n"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2510.23346",
    ),
    # inputs are averaged over the groups that share a scale of the quantised weight, and scaled by
    # the number p of groups
    Spec.parse(
        "qa_lora",
        "b: site out r, a: site r p, *pool: g -> out (p g)",
        {"b": "zeros", "a": "uniform(1/sqrt(p))", "pool": "ones"},
        where={"g": "divisor(in, 16)"},
        scale="alpha / r * p / g",
        alpha="r",
        source="arXiv:2309.14717",
    ),
    # one r columns wide block, again and again along in
    Spec.parse(
        "miss",
        "block: site out r, *tile: g -> out (g r)",
        {"block": "zeros", "tile": "ones"},
        where={"g": "ceil(in / r)"},
        crop=("in",),
        source="arXiv:2409.15371",
    ),
    # m rows of the block, again and again along out, too
    Spec.parse(
        "miss_mini",
        "block: site m r, *tile_out: h, *tile: g -> (h m) (g r)",
        {"block": "zeros", "tile_out": "ones", "tile": "ones"},
        where={"m": "divisor(out, 64)", "g": "ceil(in / r)"},
        crop=("in",),
        source="arXiv:2409.15371",
    ),
    # the nonlinear variant: every (r, r) block of W is multiplied, and one of D is added
    Spec.parse(
        "bat",
        "*weight: site g x h z, block: site g z r + block: site g x r, *tile: h -> (g x) (h r)",
        {"weight": "weight", "block": "zeros", "tile": "ones"},
        where={"x": "r", "z": "r"},
        modes={"weight": "site g x h r", "block": "site g x r"},
        source="arXiv:2409.15371",
    ),
)

_SQUARES = (
    # inputs are summed in groups of a, outputs repeat; where a does not divide in, zeros fill the
    # last group, in the authors' code the first inputs once more
    Spec.parse(
        "mora",
        "square: site a b, *up: k, *down: g -> (k a) (g b)",
        {"square": "zeros", "up": "ones", "down": "ones"},
        where={
            "a": "round(sqrt((out + in) * r))",
            "b": "a",
            "k": "ceil(out / a)",
            "g": "ceil(in / a)",
        },
        crop=("out", "in"),
        source="arXiv:2405.12130, equation 6",
    ),
    # every group of inputs is rotated by its number and has outputs of its own
    Spec.parse(
        "mora_rope",
        "square: site a b, *turn: g b c, *own: k g -> (k a) (g c)",
        {"square": "zeros", "turn": "rotation", "own": "cyclic"},
        where={
            "a": "2 * floor(round(sqrt((out + in) * r)) / 2)",
            "b": "a",
            "c": "a",
            "k": "ceil(out / a)",
            "g": "ceil(in / a)",
        },
        crop=("out", "in"),
        source="arXiv:2405.12130, equation 9",
    ),
)

_SPECTRA = (
    # no rank: blocks of size b, each a circulant of b numbers
    Spec.parse(
        "c3a",
        "kernel: site m n b, *shift: b x y -> (m x) (n y)",
        {"kernel": "uniform(sqrt(6 / (out + in)))", "shift": "circulant"},
        where={"b": "divisor(gcd(out, in), 256)", "x": "b", "y": "b"},
        scale="1 / in",
        fast="circulant",
        source="arXiv:2407.19342",
    ),
    # the real part of an inverse DFT with k coefficients
    Spec.parse(
        "fourierft",
        "spectrum: site k, *cos_out: out k, *cos_in: k in"
        " - spectrum: site k, *sin_out: out k, *sin_in: k in",
        {
            "spectrum": "normal",
            "cos_out": "cos(out, in, 0)",
            "cos_in": "cos(out, in, 1)",
            "sin_out": "sin(out, in, 0)",
            "sin_in": "sin(out, in, 1)",
        },
        scale="alpha / (out * in)",
        alpha="150",
        fast="fourier",
        source="arXiv:2405.03003",
    ),
    # k coefficients of a 2D Haar wavelet transform of one level
    Spec.parse(
        "waveft",
        "spectrum: site k, *rows: out k, *columns: k in",
        {"spectrum": "zeros", "rows": "haar(out, in, 0)", "columns": "haar(out, in, 1)"},
        scale="alpha",
        alpha="25",
        source="arXiv:2505.12532",
    ),
    # n random pairs of rank r, scaled and added to full rank
    Spec.parse(
        "randlora",
        "*bases: long n r, strength: site r n, *base: r short, weights: site n short -> long short",
        {
            "bases": "uniform(sqrt(3))",
            "strength": "zeros",
            "base": "uniform(sqrt(3))",
            "weights": "constant(1 / max(n, short))",
        },
        where={"n": "ceil(short / r)"},
        across=("bases", "base"),
        scale="alpha / r",
        alpha="20 * r",
        source="arXiv:2502.00987",
    ),
)

_LAYERS = (
    # Layers in the place of the weights (of an MLP, for the paper), trained from scratch there. The
    # low-rank one starts as the nearest to the weight, the other at random.
    Spec.parse(
        "ffn_low_rank",
        "b: site out r, a: site r in",
        {"b": "svd_u(1/2)", "a": "svd_vh(1/2)"},
        base="replace",
        source="arXiv:2406.16450",
    ),
    Spec.parse(
        "ffn_block_dense",
        "b: site out n s, a: site n s y -> out (n y)",
        {"b": "normal(1/sqrt(r))", "a": "normal(1/sqrt(y))"},
        where={"n": "divisor(gcd(in, r), 4)", "s": "r / n"},
        base="replace",
        source="arXiv:2406.16450",
    ),
)

STRUCTURED: tuple[Spec, ...] = _PRODUCTS + _BLOCKS + _SQUARES + _SPECTRA + _LAYERS
