"""Updates that are a product with the base weight itself."""

from __future__ import annotations

from tdecomp.adapters.spec import Spec

__all__ = ["MULTIPLIED"]

_DOWN = "uniform(1/sqrt(in))"  # torch's Kaiming-uniform with a = sqrt(5)

MULTIPLIED: tuple[Spec, ...] = (
    # (IA)³ scales rows of keys and values, columns of the last weight of an MLP. `l` is its vector
    # less one, so that it starts as zeros.
    Spec.parse(
        "ia3",
        "*w: site out in, l: site out",
        {"w": "weight", "l": "zeros"},
        source="arXiv:2205.05638",
    ),
    Spec.parse(
        "ia3_in",
        "*w: site out in, l: site in",
        {"w": "weight", "l": "zeros"},
        source="arXiv:2205.05638",
    ),
    # LoRMA+: the weight times 1 + BA
    Spec.parse(
        "lorma",
        "b: site out r, a: site r m, *w: site m in",
        {"b": "zeros", "a": "uniform(1/sqrt(out))", "w": "weight"},
        where={"m": "out"},
        modes={"w": "site out in"},
        scale="alpha / r",
        alpha="2 * r",
        source="arXiv:2506.07621",
    ),
    # The same from the side of the inputs, with one pair for all layers. alpha is LoRA's.
    Spec.parse(
        "wegeft",
        "*w: site out m, phi: proj r m, psi: proj r in",
        {"w": "weight", "phi": "zeros", "psi": _DOWN},
        where={"m": "in"},
        modes={"w": "site out in", "phi": "proj r in"},
        scale="alpha / r",
        alpha="r",
        source="arXiv:2312.00700",
    ),
    # The two paths that change the weight, both low-rank (PEFT's default); those of the bias are no
    # update of a weight.
    Spec.parse(
        "glora",
        "*w: site out in, a_up: site out r, a_down: site r in"
        " + b_up: site out r, b_down: site r in",
        {"w": "weight", "a_up": "zeros", "a_down": _DOWN, "b_up": "zeros", "b_down": _DOWN},
        source="arXiv:2306.07967",
    ),
)
