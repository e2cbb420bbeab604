"""Learning rates by factor, as parameter groups for an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tdecomp.errors import ArgumentError
from tdecomp_torch.forward.pool import FactorPool

__all__ = ["param_groups"]


def param_groups(
    pool: FactorPool,
    lr: float,
    ratios: Mapping[str, float] | None = None,
    *,
    besides: Sequence[nn.Parameter] = (),
    besides_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Parameters
    ----------
    pool
        Holds the factors.
    lr
        Learning rate of the factors.
    ratios
        Factor name -> what its rate is multiplied by.
    besides, besides_lr
        Other parameters that are trained, and their rate; default is `lr`.

    Raises
    ------
    ArgumentError
        `lr` is not a number, or `ratios` names a factor that is not trained.
    """
    if not isinstance(lr, int | float):
        raise ArgumentError(f"lr={lr!r} must be a number")
    ratios = dict(ratios or {})
    names = {f.name for member in pool.members for f in member.bound.factors if f.trainable}
    if unknown := sorted(set(ratios) - names):
        raise ArgumentError(
            f"ratios name {unknown[0]!r}: the trainable factors are {', '.join(sorted(names))}"
        )
    by_rate: dict[float, dict[int, nn.Parameter]] = {}  # and by id: shared ones count once
    for member in pool.members:
        for name, key in member.keys.items():
            parameter = getattr(pool, key)
            if isinstance(parameter, nn.Parameter):
                rate = lr * ratios.get(name, 1.0)
                by_rate.setdefault(rate, {})[id(parameter)] = parameter
    groups: list[dict[str, Any]] = [
        {"params": list(own.values()), "lr": rate} for rate, own in by_rate.items()
    ]
    if besides:
        groups.append({"params": list(besides), "lr": lr if besides_lr is None else besides_lr})
    return groups
