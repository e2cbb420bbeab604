"""Every rule of ranks by name. A new one is a function and a row here.

Left out: Sensitivity-LoRA (arXiv:2509.09119), whose weights between its two measures are not known
here, and GeLoRA (arXiv:2412.09250), which estimates dimensions from the tokens themselves, where
`capture` keeps their moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tdecomp._nearest import among, nearest
from tdecomp.allocation.allocation_rule import AllocationRule
from tdecomp.allocation.rules import (
    energy_of_gradients,
    energy_of_inputs,
    energy_of_weights,
    explained_variance,
    gora_importance,
    low_feature_norms,
    uniform,
)
from tdecomp.errors import ArgumentError

__all__ = ["ALLOCATIONS", "allocation_of"]

_SELF = "tdecomp"

ALLOCATIONS: Mapping[str, AllocationRule] = {
    "uniform": AllocationRule(
        says="the largest rank that all can have alike",
        source=_SELF,
        make=uniform,
        alone=False,
    ),
    "energy": AllocationRule(
        says="energy of the gradients per number, over all weights at once",
        source=_SELF,
        make=energy_of_gradients,
        needs=frozenset({"gradients"}),
        alone=False,
    ),
    "energy_of_weights": AllocationRule(
        says="energy of the weights per number, over all weights at once",
        source=_SELF,
        make=energy_of_weights,
        needs=frozenset({"weights"}),
        alone=False,
    ),
    "energy_of_inputs": AllocationRule(
        says="energy of the inputs per number, over all weights at once",
        source=_SELF,
        make=energy_of_inputs,
        needs=frozenset({"inputs"}),
    ),
    # Not centred, as the start "eva"; PEFT's principal components are.
    "eva": AllocationRule(
        says="directions of the inputs by the share of their own input that they explain",
        source="arXiv:2410.07170",
        make=explained_variance,
        needs=frozenset({"inputs"}),
        spread=2.0,
    ),
    # As in the authors' code with the root of the features; the reference rank is the budget's.
    "gora": AllocationRule(
        says="importance mean |W ∘ G|",
        source="arXiv:2502.12171",
        make=gora_importance,
        needs=frozenset({"gradients", "weights"}),
        whole=True,
    ),
    "plop": AllocationRule(
        says="one rank for the kinds of modules whose features are short",
        source="arXiv:2506.20629",
        make=low_feature_norms,
        needs=frozenset({"inputs", "weights"}),
        spread=math.inf,
    ),
}


def allocation_of(name: str) -> AllocationRule:
    """Look up a rule.

    Raises
    ------
    ArgumentError
        There is none of that name.
    """
    if name not in ALLOCATIONS:
        near = nearest(str(name), ALLOCATIONS)
        raise ArgumentError(
            f"ranks {name!r}{near}: expected one of {among(str(name), ALLOCATIONS)}"
        )
    return ALLOCATIONS[name]
