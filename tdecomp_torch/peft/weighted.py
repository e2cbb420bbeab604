"""Adapters added up to one more adapter, exactly: what PEFT calls a weighted adapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tdecomp.adapters.sums import direct_sum, why_not_summed
from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import Attached

__all__ = ["check_summable", "fill_with_sum", "summed_ranks"]


def check_summable(adapters: Sequence[Attached]) -> None:
    """Refuse adapters of which no adapter of the same method is the sum.

    Raises
    ------
    ArgumentError
        Says why, and what to do instead.
    """
    first = adapters[0]
    advice = "merge them with merge_adapter(adapter_names=[...]), or write each with save_lora"
    for other in adapters[1:]:
        if other.spec != first.spec or other.settings.sides != first.settings.sides:
            raise ArgumentError(
                f"{first.name!r} ({first.spec.name}) and {other.name!r} ({other.spec.name}) are not"
                f" of one method and no sum of both is: {advice}"
            )
        if other.grids != first.grids:
            raise ArgumentError(
                f"{first.name!r} and {other.name!r} are on different weights: {advice}"
            )
    for bound in first.groups:
        if reason := why_not_summed(first.spec, [*bound.ranks]):
            raise ArgumentError(
                f"the sum of adapters of {first.spec.name!r} is none of it, as {reason}: {advice}"
            )


def summed_ranks(adapters: Sequence[Attached]) -> dict[str, int]:
    """Rank by letter of the sum.

    Raises
    ------
    ArgumentError
        Ranks differ from weight to weight.
    """
    ranks = [
        {n: sum(own.groups[m].ranks[n] for own in adapters) for n in bound.ranks}
        for m, bound in enumerate(adapters[0].groups)
    ]
    if any(own != ranks[0] for own in ranks):
        raise ArgumentError(
            "the ranks of these adapters differ from weight to weight: merge them with"
            " merge_adapter(adapter_names=[...])"
        )
    return ranks[0]


@torch.no_grad()
def fill_with_sum(summed: Attached, adapters: Sequence[Attached], weights: Sequence[float]) -> None:
    """Write ``Σ_k w_k ΔW_k`` into the factors of an adapter with `summed_ranks`."""
    for m, bound in enumerate(summed.groups):
        term = bound.spec.terms[0]
        scale = bound.coefficient(term, summed.schedule.at_step)
        scaled = [
            weight * own.groups[m].coefficient(term, own.schedule.at_step) / scale
            for weight, own in zip(weights, adapters, strict=True)
        ]
        arrays = [_numbers(own, m) for own in adapters]
        for name, array in direct_sum(bound.spec, [*bound.ranks], arrays, scaled).items():
            factor = getattr(summed.pool, summed.pool.members[m].keys[name])
            factor.copy_(torch.from_numpy(array).to(factor.dtype))


def _numbers(attached: Attached, m: int) -> dict[str, np.ndarray]:
    factors = attached.pool.factors(m)
    return {name: factor.detach().double().cpu().numpy() for name, factor in factors.items()}
