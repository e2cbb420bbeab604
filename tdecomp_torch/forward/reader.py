"""The input of an adapted module, as the products of its sites read it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp.adapters import Bound
from tdecomp_torch.forward.contraction import Letters
from tdecomp_torch.model.kinds import Kind

__all__ = ["Reader"]


class Reader:
    """The input of one module, brought into the shape of tokens only when it is needed.

    Attributes
    ----------
    kind
        Of the module.
    x
        Its input.
    own
        Whether no other site reads the same tokens.
    """

    def __init__(self, kind: Kind, module: nn.Module, x: Tensor, *, own: bool = False):
        self.kind, self.module, self.x, self.own = kind, module, x, own
        self._rows: Tensor | None = None

    @property
    def looks_up(self) -> bool:
        """Whether a token is a position along ``in`` and not a vector: an embedding reads it."""
        return self.kind.looks_up

    def rows(self) -> Tensor:
        """``(token, in)``; of positions ``(token,)``."""
        if self._rows is None:
            self._rows = self.kind.tokens(self.module, self.x)
        return self._rows

    def times(self, matrix: Tensor) -> Tensor:
        """The tokens times a matrix ``(out, in)``: ``(token, out)``."""
        tokens = self.rows()
        return matrix.T[tokens] if self.looks_up else tokens.to(matrix.dtype) @ matrix.T

    def tokens(self, bound: Bound, like: Tensor) -> Tensor:
        """``(token, ...)`` over the letters of ``in``, in the precision of `like`."""
        rows = self.rows()  # (token, in)
        if rows.dtype != like.dtype and not torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(like.dtype)
        sizes = [bound.sizes[n] for n in bound.in_letters]
        if (extra := math.prod(sizes) - bound.grid.shape[1]) > 0:
            rows = functional.pad(rows, (0, extra))  # (token, in + extra)
        return rows if len(sizes) == 1 else rows.reshape(-1, *sizes)  # (token, *sizes)

    def at_positions(self, bound: Bound, letters: Letters, operand: Tensor) -> Tensor:
        """An operand at the positions along ``in`` that the tokens are: ``(token, ...)``.

        As it is if it has no axis of ``in``.
        """
        columns = bound.in_letters
        touched = [n for n in columns if n in letters]
        if not touched:
            return operand
        rest = [n for n in letters if n not in touched]
        stride, where, flat = 1, {}, self.x.reshape(-1)  # (token,)
        for n in reversed(columns):
            where[n] = flat // stride % bound.sizes[n]
            stride *= bound.sizes[n]
        order = [letters.index(n) for n in (*touched, *rest)]
        return operand.permute(order)[tuple(where[n] for n in touched)]  # (token, *rest)
