"""A few tokens times ΔW of one site where nothing is differentiated, as in generation.

A product of a few tokens costs less than what leads up to it. Here every factor was laid out
before, as views, so that a site only multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdecomp_torch.forward.contraction import Arrangement, Contraction, PairwiseStep

__all__ = ["LaidProducts", "laid_products"]

_AS_IT_IS = Arrangement()


@dataclass(frozen=True, kw_only=True, eq=False)
class _LaidFactor:
    """One product with a factor that is laid out."""

    step: PairwiseStep
    factor: Tensor
    plain: bool

    def times(self, x: Tensor) -> Tensor:
        if self.plain:
            return torch.matmul(x, self.factor)
        a = self.step.left_as.lay(x)
        product = a * self.factor if self.step.entrywise else torch.matmul(a, self.factor)
        return product if self.step.shape is None else product.reshape(self.step.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class LaidProducts:
    """Tokens times one factor after the other.

    Attributes
    ----------
    links
        In order.
    last
        Lays out the result.
    adds_at_once
        The last product is one of two matrices, to which something can be added on the way.
    """

    links: tuple[_LaidFactor, ...]
    last: Arrangement
    adds_at_once: bool

    def takes(self, x: Tensor, rows: Tensor) -> bool:
        """Whether tokens and rows are of the precision and on the device of the factors."""
        own = self.links[-1].factor
        return own.dtype == x.dtype == rows.dtype and own.device == x.device

    def first(self, x: Tensor) -> Tensor:
        """The tokens ``(token, ...)`` times the first factor."""
        return self.links[0].times(x)

    def onto(self, rows: Tensor, x: Tensor, scale: float, *, done: int = 0) -> Tensor:
        """``rows + scale * (x times the factors)``; the first `done` are in `x` already."""
        links = self.links[done:]
        if not self.adds_at_once or not links:
            for link in links:
                x = link.times(x)
            return torch.add(rows, self.last.lay(x), alpha=scale)
        for link in links[:-1]:
            x = link.times(x)
        return torch.addmm(rows, links[-1].step.left_as.lay(x), links[-1].factor, alpha=scale)


def laid_products(
    contraction: Contraction, operands: Sequence[Tensor], width: int
) -> LaidProducts | None:
    """The products of a contraction whose first operand is the tokens; None where it is no chain.

    Parameters
    ----------
    contraction
        For a few tokens.
    operands
        All of it but the tokens.
    width
        Of the rows that the result is added to.
    """
    left: list[Tensor | None] = [None, *operands]  # None: the tokens, and what becomes of them
    links: list[_LaidFactor] = []
    for step in contraction.steps:
        factor = left[step.right]
        if left[step.left] is not None or factor is None:
            return None
        for i in sorted((step.left, step.right), reverse=True):
            del left[i]
        left.append(None)
        laid = step.right_as.lay(factor)
        if laid.untyped_storage().data_ptr() != factor.untyped_storage().data_ptr():
            return None  # a copy, which would not follow the factor
        plain = step.left_as == _AS_IT_IS and not step.entrywise and step.shape is None
        links.append(_LaidFactor(step=step, factor=laid, plain=plain))
    at_once = contraction.columns == width and contraction.last == _AS_IT_IS
    return (
        LaidProducts(links=tuple(links), last=contraction.last, adds_at_once=at_once)
        if links
        else None
    )
