"""Moments of the tokens that a weight multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdecomp._brief import brief, brief_count
from tdecomp.errors import ArgumentError
from tdecomp.statistics.directions import shrunk

__all__ = ["InputStatistics"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InputStatistics:
    """First and second moments of some tokens x, each ``(in,)``, as sums over the tokens.

    The second moment is held whole, or as its diagonal and a low-rank part ([liberty2013]): with
    rows ``d``, ``0 ≤ Σ x xᵀ - dᵀd ≤ lost · I``.

    Attributes
    ----------
    tokens
        How many there were.
    total
        Sum of them, ``(in,)``.
    squares
        Sum of their squares, entry by entry, ``(in,)``: the diagonal, exact.
    whole
        ``Σ x xᵀ``, ``(in, in)``, or None.
    directions
        ``(k, in)``, or None.
    lost
        What `directions` leave out at most, in the spectral norm.
    """

    tokens: int
    total: np.ndarray
    squares: np.ndarray
    whole: np.ndarray | None = None
    directions: np.ndarray | None = None
    lost: float = 0.0

    def __repr__(self) -> str:
        held = "whole" if self.whole is not None else f"{self.rank} directions"
        return brief(type(self), f"{brief_count(self.tokens, 'token')} of {self.width}, {held}")

    @property
    def width(self) -> int:
        """Length of a token."""
        return len(self.total)

    @property
    def rank(self) -> int:
        """Number of directions; 0 where the moment is held whole, or not at all."""
        return 0 if self.directions is None else len(self.directions)

    @property
    def mean(self) -> np.ndarray:
        """Mean token, ``(in,)``."""
        return self.total / self.tokens

    def second_moment(self) -> np.ndarray:
        """Mean of ``x xᵀ``, ``(in, in)``.

        Held as directions, what they leave out of the diagonal is put there: the trace is exact.
        """
        if self.whole is not None:
            return self.whole / self.tokens
        if self.directions is None:
            return np.diag(self.squares) / self.tokens
        found = self.directions.T @ self.directions  # (in, in)
        left = np.clip(self.squares - np.diagonal(found), 0, None)
        return (found + np.diag(left)) / self.tokens

    def principal(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Leading eigenvalues of the second moment, ``(k,)``, and eigenvectors, ``(k, in)``.

        Raises
        ------
        ArgumentError
            Fewer directions are held.
        """
        if self.whole is None and k > self.rank:
            raise ArgumentError(
                f"{k} principal directions of inputs of which {self.rank} are held: capture more,"
                f" or the whole moment (inputs={self.width} directions)"
            )
        if self.whole is None:
            assert self.directions is not None
            _, s, vh = np.linalg.svd(self.directions, full_matrices=False)
            return s[:k] ** 2 / self.tokens, vh[:k]
        values, vectors = np.linalg.eigh(self.whole / self.tokens)
        return values[::-1][:k], vectors[:, ::-1][:, :k].T

    def __add__(self, other: InputStatistics) -> InputStatistics:
        """Of the tokens of both."""
        if self.width != other.width:
            raise ArgumentError(
                f"inputs of {self.width} and of {other.width} numbers cannot be added"
            )
        if (self.whole is None) != (other.whole is None) or self.rank != other.rank:
            raise ArgumentError(
                "one of the statistics holds the second moment of the inputs whole, the other as"
                " another number of directions: capture both alike"
            )
        directions, lost = self.directions, self.lost + other.lost
        if self.directions is not None and other.directions is not None:
            both = np.concatenate([self.directions, other.directions])  # (2 k, in)
            directions, more = shrunk(both, self.rank)
            lost += more
        return InputStatistics(
            tokens=self.tokens + other.tokens,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            whole=None if self.whole is None else self.whole + _of(other.whole),
            directions=directions,
            lost=lost,
        )


def _of(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array
