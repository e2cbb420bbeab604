"""States that gather moments: of inputs, and of gradients by outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdecomp.statistics import InputStatistics
from tdecomp.statistics.directions import shrunk
from tdecomp_torch.capture.gradients import Reduce

__all__ = ["InputMoments", "OutputMoments", "SquaredGradients"]

_BUFFER = 2
"""Rows that wait to be shrunk, in multiples of the directions kept."""


class InputMoments:
    """Sums over tokens of x, x² and ``x xᵀ``; the last whole, or as a few directions.

    Parameters
    ----------
    width
        Length of a token.
    directions
        How many to keep; None: the second moment is held whole.
    """

    def __init__(self, width: int, directions: int | None):
        self.directions = None if directions is None else min(directions, width)
        self.tokens, self.lost = 0, 0.0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.whole = torch.zeros(width, width) if directions is None else None
        self.rows = np.zeros((0, width))

    def add(self, x: Tensor) -> None:
        """ShowBack tokens, ``(token, in)``."""
        self.tokens += len(x)
        self.total += x.sum(dim=0, dtype=torch.float64).cpu()
        self.squares += (x.double() ** 2).sum(dim=0).cpu()
        if self.whole is not None:
            if self.whole.device != x.device or self.whole.dtype != x.dtype:
                self.whole = self.whole.to(x)
            self.whole.addmm_(x.T, x)  # (in, in)
            return
        assert self.directions is not None
        # the rows of R hold all that x does for the second moment, and are no more than its width
        rows = torch.linalg.qr(x, mode="r")[1] if len(x) > x.shape[1] else x
        self.rows = np.concatenate([self.rows, rows.double().cpu().numpy()])
        if len(self.rows) > _BUFFER * self.directions:
            self.rows, lost = shrunk(self.rows, self.directions)
            self.lost += lost

    def reduce(self, reduce: Reduce) -> None:
        """Add up what all processes saw; directions cannot be."""
        tokens = torch.tensor(float(self.tokens), dtype=torch.float64)
        for own in (tokens, self.total, self.squares, self.whole):
            if own is not None:
                reduce(own)
        self.tokens = round(float(tokens))

    def found(self) -> InputStatistics:
        """All of it."""
        rows, lost = None, self.lost
        if self.directions is not None:
            rows, more = shrunk(self.rows, self.directions)
            lost += more
        return InputStatistics(
            tokens=self.tokens,
            total=self.total.numpy(),
            squares=self.squares.numpy(),
            whole=None if self.whole is None else self.whole.cpu().numpy(),
            directions=rows,
            lost=lost,
        )


class OutputMoments:
    """Sum over tokens of ``δ δᵀ``."""

    def __init__(self, width: int):
        self.tokens, self.sum = 0, torch.zeros(width, width)

    def add(self, delta: Tensor) -> None:
        """ShowBack gradients by output tokens, ``(token, out)``."""
        if self.sum.device != delta.device or self.sum.dtype != delta.dtype:
            self.sum = self.sum.to(delta)
        self.tokens += len(delta)
        self.sum.addmm_(delta.T, delta)  # (out, out)

    def reduce(self, reduce: Reduce) -> None:
        """Add up what all processes saw."""
        tokens = torch.tensor(float(self.tokens), dtype=torch.float64)
        reduce(tokens)
        reduce(self.sum)
        self.tokens = round(float(tokens))


class SquaredGradients:
    """Sum over batches of the squared gradient by a weight, on the CPU."""

    def __init__(self, shape: tuple[int, int]):
        self.sum = torch.zeros(shape)
        self.now: Tensor | None = None

    def add(self, x: Tensor, delta: Tensor) -> None:
        """ShowBack one use of the weight in the present batch."""
        whole = delta.T @ x  # (out, in)
        self.now = whole if self.now is None else self.now.add_(whole)

    def end_batch(self) -> None:
        """All uses of the weight in this batch were seen."""
        if self.now is not None:
            self.sum = self.sum.to(self.now.dtype) + (self.now**2).cpu()
        self.now = None

    def reduce(self, reduce: Reduce) -> None:
        """Add up what all processes saw."""
        reduce(self.sum)
