"""Batches: read once, kept on the CPU for further passes, put where the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tdecomp.errors import ArgumentError

__all__ = ["BatchLoss", "TokenMask", "kept_batches", "loss_of", "mask_of", "moved", "sampled"]

BatchLoss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: runs the model, and gives a scalar."""

TokenMask = Callable[[Any], Tensor | None]
"""``mask(batch)``: true for the tokens that count, ``(example, token)``; None: all do."""


def kept_batches(batches: Iterable[Any], steps: int | None) -> list[Any]:
    """The first batches, on the CPU.

    Raises
    ------
    ArgumentError
        There is none, or what is given is no iterable of batches.
    """
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"batches must be a DataLoader or a list of batches, got one {type(batches).__name__}"
        )
    found = [moved(batch, torch.device("cpu")) for batch in islice(batches, steps)]
    if not found:
        raise ArgumentError("batches is empty: there is nothing to look at")
    return found


def moved(batch: Any, device: torch.device) -> Any:
    """A batch whose tensors are on a device; what else is in it stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):  # what the tokenizers of transformers give is one, too
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model of transformers gives for a batch with labels."""
    found = _output(model, batch)
    loss = getattr(found, "loss", None)
    if loss is None:
        raise ArgumentError(
            "the model gives no loss for this batch: put labels in it, or give"
            " loss=lambda model, batch: ..."
        )
    return loss


def sampled(seed: int, mask: TokenMask | None = None) -> BatchLoss:
    """Cross entropy of labels drawn from what the model predicts, for the true Fisher matrix.

    Every position that counts is one draw; the loss is their mean. Where the logits are not over
    examples and tokens (one prediction for every example), all of them count.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = getattr(_output(model, batch), "logits", None)
        if logits is None:
            raise ArgumentError(
                'labels="model" draws labels from logits, and the model gives none: give'
                " loss=lambda model, batch: ..."
            )
        rows = _that_count(logits, None if mask is None else mask(batch)).float()  # (draw, class)
        chances = rows.detach().softmax(dim=1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].to(rows.device)
        return torch.nn.functional.cross_entropy(rows, drawn)

    return loss


def _that_count(logits: Tensor, counts: Tensor | None) -> Tensor:
    """Logits of the positions that count, ``(position, class)``."""
    if counts is None or logits.shape[:-1] != counts.shape:
        return logits.reshape(-1, logits.shape[-1])
    if not bool(counts.any()):
        raise ArgumentError("the mask leaves no token of a batch: there is no label to draw")
    return logits[counts.bool().to(logits.device)]


def mask_of(batch: Any) -> Tensor | None:
    """``attention_mask`` of a batch that has one over examples and tokens."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _output(model: nn.Module, batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        raise ArgumentError(
            f"a batch is a {type(batch).__name__}, not a mapping of arguments of the model: give"
            " loss=lambda model, batch: ..."
        )
    return model(**batch)
