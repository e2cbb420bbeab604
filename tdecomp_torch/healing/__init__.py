"""Healing: truncated factors are trained for a few steps on what the tuned model gives."""

from tdecomp_torch.healing.heal import heal as heal
from tdecomp_torch.healing.report import HealReport as HealReport

__all__ = ["HealReport", "heal"]
