"""What of a model's output is compared, and how far two are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from tdecomp.errors import ArgumentError
from tdecomp_torch.capture.batches import mask_of

__all__ = ["Outputs", "OutputRows", "plain_outputs"]

Outputs = Callable[[nn.Module, Any], Tensor]
"""``outputs(model, batch)``: runs the model, and gives what is to be the tuned model's."""


@dataclass(frozen=True)
class OutputRows:
    """Outputs of one batch.

    Attributes
    ----------
    rows
        One for every example, or token that counts: ``(row, class or feature)``, float32.
    scores
        Whether they are logits, which are compared as distributions; else numbers.
    """

    rows: Tensor
    scores: bool

    def loss_to(self, tuned: OutputRows) -> Tensor:
        """Kullback-Leibler divergence from the tuned model's distributions, mean over rows.

        Of numbers: squared distance relative to the tuned model's.
        """
        if self.scores:
            ours, theirs = self.rows.log_softmax(dim=1), tuned.rows.log_softmax(dim=1)
            return kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (self.rows - tuned.rows).square().sum() / tuned.rows.square().sum()

    def agreement(self, tuned: OutputRows) -> float | None:
        """Share of rows with the tuned model's best class; None of numbers."""
        if not self.scores:
            return None
        return float((self.rows.argmax(dim=1) == tuned.rows.argmax(dim=1)).double().mean())


def plain_outputs(model: nn.Module, batch: Any) -> tuple[Tensor, bool]:
    """``logits`` of a model, else its ``last_hidden_state``; labels are left out.

    Raises
    ------
    ArgumentError
        It gives neither.
    """
    if not isinstance(batch, Mapping):
        raise ArgumentError(
            f"a batch is a {type(batch).__name__}, not a mapping of arguments of the model: give"
            " outputs=lambda model, batch: ..."
        )
    given = {key: value for key, value in batch.items() if key not in ("labels", "label")}
    found = model(**given)
    for name in ("logits", "last_hidden_state"):
        value = getattr(found, name, None)
        if isinstance(value, Tensor):
            return value, name == "logits"
    raise ArgumentError(
        f"the output of {type(model).__name__} has neither logits nor last_hidden_state: give"
        " outputs=lambda model, batch: ..."
    )


def seen_of(model: nn.Module, batch: Any, outputs: Outputs | None) -> OutputRows:
    """Run a model on a batch."""
    found, scores = plain_outputs(model, batch) if outputs is None else (outputs(model, batch), 0)
    if not isinstance(found, Tensor) or found.dim() == 0:
        raise ArgumentError(f"outputs must give a tensor over examples, got {found!r}")
    mask = mask_of(batch)
    if mask is not None and found.dim() > 2 and found.shape[:2] == mask.shape:
        found = found[mask.to(found.device)]
    rows = found.reshape(-1, found.shape[-1]) if found.dim() > 1 else found[:, None]
    return OutputRows(rows.float(), bool(scores) and rows.shape[1] > 1)


def finite(seen: OutputRows) -> bool:
    """Whether all numbers are finite."""
    return bool(torch.isfinite(seen.rows).all())
