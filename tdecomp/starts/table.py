"""Every start rule by name. A new one is a function and a row here."""

from __future__ import annotations

from collections.abc import Mapping

from tdecomp._nearest import among, nearest
from tdecomp.errors import ArgumentError
from tdecomp.starts.any_row import step, weights, zero_core
from tdecomp.starts.data_rule import DataRule
from tdecomp.starts.lora_rows import (
    corda,
    eva,
    gora,
    lora_ga,
    lora_one,
    lora_sb,
    olora,
    pissa,
)

__all__ = ["RULES", "rule_of"]

_OURS = "tdecomp"
_GRADIENTS, _INPUTS = frozenset({"gradients"}), frozenset({"inputs"})
_WEIGHTS = frozenset({"weights"})

RULES: Mapping[str, DataRule] = {
    "zero": DataRule(
        says="bases are those of the gradients, the factor that starts as zeros stays zero",
        source=_OURS,
        make=zero_core,
        needs=_GRADIENTS,
        fitted=True,
        ranks=2,
        zero=True,
    ),
    "step": DataRule(
        says="the first change is a step against the fitted gradients",
        source=_OURS,
        make=step,
        needs=_GRADIENTS,
        fitted=True,
        ranks=2,
    ),
    "offset": DataRule(
        says="a step against the fitted gradients, taken off the weights again",
        source=_OURS,
        make=step,
        needs=_GRADIENTS,
        fitted=True,
        ranks=2,
        residual=True,
    ),
    # As in the paper: PEFT multiplies B, and only B, by the singular values and c.
    "lora_ga": DataRule(
        says="A of leading right singular vectors of the gradient, B of the next left ones",
        source="arXiv:2407.05000",
        make=lora_ga,
        needs=_GRADIENTS,
        ranks=2,
        rows="pairs",
        residual=True,
    ),
    "lora_one": DataRule(
        says="a step along the leading singular triplets of the gradient",
        source="arXiv:2502.01235",
        make=lora_one,
        needs=_GRADIENTS,
        rows="pairs",
    ),
    # The constant that sets the size of the step is not known here: `size` is in its place.
    "gora": DataRule(
        says="A at random, B the nearest to a step against the gradient",
        source="arXiv:2502.12171",
        make=gora,
        needs=_GRADIENTS,
        rows="pairs",
        whole=True,
    ),
    # One sign of the summed gradient, and `size` in the place of the learning rate of its paper.
    "lora_sb": DataRule(
        says="outer factors and core of the first update of full fine-tuning",
        source="arXiv:2411.19557",
        make=lora_sb,
        needs=_GRADIENTS,
        rows="cores",
        whole=True,
    ),
    "eva": DataRule(
        says="A of the principal directions of the inputs, not centred",
        source="arXiv:2410.07170",
        make=eva,
        needs=_INPUTS,
        rows="pairs",
        zero=True,
    ),
    "corda": DataRule(
        says="the leading part of the weight as the inputs see it, taken off again",
        source="arXiv:2406.05223",
        make=corda,
        needs=_INPUTS | _WEIGHTS,
        rows="pairs",
        residual=True,
    ),
    # LoTR's own code does this for its stack and leaves it on the weights.
    "weights": DataRule(
        says="the factors nearest to the weights, taken off again: PiSSA for any adapter",
        source=_OURS,
        make=weights,
        needs=_WEIGHTS,
        residual=True,
    ),
    "pissa": DataRule(
        says="the leading singular triplets of the weight, taken off again",
        source="arXiv:2404.02948",
        make=pissa,
        needs=_WEIGHTS,
        rows="pairs",
        residual=True,
    ),
    "olora": DataRule(
        says="the first columns of Q and rows of R of the weight, taken off again",
        source="arXiv:2406.01775",
        make=olora,
        needs=_WEIGHTS,
        rows="pairs",
        residual=True,
    ),
}


def rule_of(name: str) -> DataRule:
    """Look up a rule.

    Raises
    ------
    ArgumentError
        There is none of that name.
    """
    if name not in RULES:
        near = nearest(str(name), RULES)
        raise ArgumentError(f"start {name!r}{near}: expected one of {among(str(name), RULES)}")
    return RULES[name]
