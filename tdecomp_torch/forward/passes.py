"""One forward pass of a whole model: what is computed for its layers on the way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["ByThread", "Pass", "Ready", "is_checkpointed"]


@dataclass(frozen=True)
class Ready:
    """Operands of one term: a tensor for all sites, or one per site."""

    sources: tuple[Tensor | Sequence[Tensor], ...]

    def at(self, site: int) -> list[Tensor]:
        """Those of one site."""
        return [s if isinstance(s, Tensor) else s[site] for s in self.sources]


class Pass:
    """What one forward pass of the whole model computes for its layers.

    Attributes
    ----------
    ready
        Operands of every group and term, made ahead; None outside of a pass.
    with_grad
        Whether they have a gradient.
    first
        The last first product of every group and term, and what it was made from.
    dropped
        The last input after dropout, before it, and the sites that read it.
    """

    def __init__(self):
        self.ready: list[list[Ready]] | None = None
        self.with_grad = False
        self.first: dict[tuple[int, int], tuple[Tensor, Any, Tensor]] = {}
        self.dropped: tuple[Tensor, Tensor, set[tuple[int, int]]] | None = None


class ByThread(threading.local):
    """Every thread's own pass."""

    def __init__(self):
        self.now = Pass()


def is_checkpointed() -> bool:
    """Whether tensors saved for backward are intercepted, as activation checkpointing does.

    The forward is then repeated during backward, one layer at a time, and must do the same: every
    layer computes its own products.
    """
    if torch.compiler.is_compiling():
        return False
    look: Any = _look_at_hooks()
    return look is not None and look(False) is not None


@cache
def _look_at_hooks() -> Any:
    """Torch's own view of the hooks in force; None in a version that has none."""
    autograd = getattr(torch._C, "_autograd", None)
    return getattr(autograd, "_top_saved_tensors_default_hooks", None)
