"""An adapter that acts at once: what it starts from is moved a little."""

from __future__ import annotations

import torch

from tdecomp_torch.attached import Attached

__all__ = ["shake"]

_SIZE = 0.1


@torch.no_grad()
def shake(attached: Attached) -> None:
    """Add noise to the trainable factors that start as one number, or to all if none does."""
    factors = attached.factors()
    flat = {key: f for key, f in factors.items() if bool((f == f.flatten()[:1]).all())}
    drawn = torch.Generator().manual_seed(attached.settings.seed)
    for factor in (flat or factors).values():
        noise = torch.randn(factor.shape, generator=drawn) * _SIZE
        factor.add_(noise.to(factor))
