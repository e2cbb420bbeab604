"""The gradient of one weight: whole, or as a few columns times a few rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tdecomp._brief import brief
from tdecomp.errors import ArgumentError

__all__ = ["Gradient"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Gradient:
    """Mean gradient of a loss by a weight, ``(out, in)``, over batches: ``left @ right``.

    Attributes
    ----------
    batches
        How many there were.
    left
        ``(out, k)``; None where the gradient is held whole.
    right
        ``(k, in)``; ``(out, in)`` where it is held whole.
    """

    batches: int
    left: np.ndarray | None
    right: np.ndarray

    def __repr__(self) -> str:
        held = "whole" if self.left is None else f"{self.right.shape[0]} columns times rows"
        return brief(type(self), f"{self.shape[0]}×{self.shape[1]}, {held}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows = self.right if self.left is None else self.left
        return len(rows), self.right.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns that it is held as; no more than its smaller side."""
        return min(*self.shape, len(self.right))

    def whole(self) -> np.ndarray:
        """``(out, in)``."""
        return self.right if self.left is None else self.left @ self.right

    def norm(self) -> float:
        """Frobenius norm of what is held."""
        if self.left is None:
            return float(np.linalg.norm(self.right))
        of_columns, of_rows = self.triangles
        return float(np.linalg.norm(of_columns @ of_rows.T))

    @cached_property
    def triangles(self) -> tuple[np.ndarray, np.ndarray]:
        """R of the columns and T of the rows: ``left = Q R`` and ``rightᵀ = P T``, each ``(k, k)``.

        Raises
        ------
        ArgumentError
            It is held whole.
        """
        if self.left is None:
            raise ArgumentError("a gradient that is held whole has no columns and rows")
        of_columns, of_rows = (np.linalg.qr(x, mode="r") for x in (self.left, self.right.T))
        return np.asarray(of_columns), np.asarray(of_rows)

    def svd(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Leading singular triplets: ``(out, k)``, ``(k,)`` descending, ``(k, in)``.

        Raises
        ------
        ArgumentError
            The gradient is held as fewer columns.
        """
        if k > self.rank:
            raise ArgumentError(
                f"{k} singular vectors of a gradient of {self.shape} that is held as {self.rank}"
                " columns: capture it with a larger rank"
            )
        if self.left is None:
            u, s, vh = np.linalg.svd(self.right, full_matrices=False)
        else:
            q, r = np.linalg.qr(self.left)  # (out, k), (k, k)
            p, t = np.linalg.qr(self.right.T)  # (in, k), (k, k)
            u, s, vh = np.linalg.svd(r @ t.T)
            u, vh = q @ u, vh @ p.T
        return u[:, :k], s[:k], vh[:k]

    def __add__(self, other: Gradient) -> Gradient:
        """Mean over the batches of both; columns stand beside one another."""
        if self.shape != other.shape:
            raise ArgumentError(f"gradients of {self.shape} and {other.shape} cannot be added")
        batches = self.batches + other.batches
        mine, theirs = self.batches / batches, other.batches / batches
        if self.left is None or other.left is None:
            whole = mine * self.whole() + theirs * other.whole()
            return Gradient(batches=batches, left=None, right=whole)
        return Gradient(
            batches=batches,
            left=np.concatenate([mine * self.left, theirs * other.left], axis=1),
            right=np.concatenate([self.right, other.right]),
        )
