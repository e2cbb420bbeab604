"""What healing won."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdecomp.files import Factors
from tdecomp.jobs.reports import IN_PYTHON_ONLY, Report

__all__ = ["HealReport"]


@dataclass(frozen=True, kw_only=True)
class HealReport(Report):
    """What healing won, on batches that were not trained on.

    Attributes
    ----------
    before, after
        Distance from the tuned model's outputs on the validation split: mean Kullback-Leibler
        divergence of logits, relative squared distance of other outputs. `after` is that of what
        was kept, never above `before`.
    agreement_before, agreement_after
        Share of validation rows with the tuned model's best class; None without logits.
    steps, kept_step
        Steps taken, and after which of them the factors were best; 0: as they were.
    n_params
        Numbers trained.
    train_batches, validation_batches
        How the batches were split.
    losses
        Of every step.
    factors
        Healed, with their errors; None where an adapter was healed.
    """

    before: float
    after: float
    agreement_before: float | None
    agreement_after: float | None
    steps: int
    kept_step: int
    n_params: int
    train_batches: int
    validation_batches: int
    losses: tuple[float, ...]
    factors: Factors | None = field(default=None, metadata=IN_PYTHON_ONLY)

    def __str__(self) -> str:
        if not self.kept_step:
            return f"{self.steps} steps won nothing: the factors are as they were."
        text = (
            f"Distance from the tuned model's outputs: {self.before:.4g} before,"
            f" {self.after:.4g} after {self.kept_step} of {self.steps} steps"
        )
        if self.agreement_before is not None and self.agreement_after is not None:
            text += f"; same best class: {self.agreement_before:.1%} and {self.agreement_after:.1%}"
        return f"{text}."
