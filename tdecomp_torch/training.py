"""Training an adapter: rates by factor, and what follows a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tdecomp.errors import ArgumentError
from tdecomp_torch.attached import Attached

__all__ = ["param_groups", "step"]


def param_groups(
    attached: Attached,
    lr: float,
    ratios: Mapping[str, float] | None = None,
    besides: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Parameters
    ----------
    attached
        Whose factors are trained.
    lr
        Learning rate of the factors.
    ratios
        Factor name -> what its rate is multiplied by.
    besides
        Learning rate of the parameters trained besides; default is `lr`.

    Raises
    ------
    ArgumentError
        `lr` is not a number, or `ratios` names a factor that is not trained.
    """
    if not isinstance(lr, int | float):
        raise ArgumentError(f"lr={lr!r} must be a number")
    ratios = dict(ratios or {})
    names = {f.name for g in attached.groups for f in g.factors if f.trainable}
    if unknown := sorted(set(ratios) - names):
        raise ArgumentError(
            f"ratios name {unknown[0]!r}: the trainable factors are {', '.join(sorted(names))}"
        )
    by_rate: dict[float, dict[int, nn.Parameter]] = {}  # and by id: shared ones count once
    for member in attached.pool.members:
        for name, key in member.keys.items():
            parameter = getattr(attached.pool, key)
            if isinstance(parameter, nn.Parameter):
                rate = lr * ratios.get(name, 1.0)
                by_rate.setdefault(rate, {})[id(parameter)] = parameter
    groups: list[dict[str, Any]] = [
        {"params": list(own.values()), "lr": rate} for rate, own in by_rate.items()
    ]
    others = [p for p in attached.trained_besides().values() if p.requires_grad]
    if others:
        groups.append({"params": others, "lr": lr if besides is None else besides})
    return groups


def step(attached: Attached, number: float) -> None:
    """Let scales, shares that are frozen and numbers of clusters be those of a step."""
    if not isinstance(number, int | float):
        raise ArgumentError(f"step={number!r} must be a number")
    attached.at_step = float(number)
    pool = attached.pool
    with torch.inference_mode(False), torch.no_grad():
        pool.state.scale_by(
            [[g.coefficient(term, number) for term in g.spec.terms] for g in attached.groups]
        )
        pool.freeze(number)
        pool.cluster(number)
