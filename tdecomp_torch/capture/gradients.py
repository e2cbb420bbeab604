"""States that gather gradients by weights, none larger than what is asked of it.

The gradient of a batch by a weight is ``δᵀ x`` with the tokens ``x``, ``(token, in)``, and the
gradients ``δ``, ``(token, out)``; a product with it is two thin products. Everything here is a sum
over batches, so that machines can add up what they saw at the end of every pass.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tdecomp.stack import Site
from tdecomp.statistics import Gradient

__all__ = ["GradientState", "Reduce", "SketchedGradients", "WholeGradients"]

Reduce = Callable[[Tensor], None]
"""Adds up a tensor over all processes, in place: ``torch.distributed.all_reduce``."""


class GradientState(ABC):
    """Gradients by some weights, gathered in a number of passes over the same batches.

    Attributes
    ----------
    passes
        How many it takes.
    """

    passes = 1

    @abstractmethod
    def add(self, site: int, x: Tensor, delta: Tensor) -> None:
        """Add the tokens ``(token, in)`` and output gradients ``(token, out)`` of a weight."""

    @abstractmethod
    def finish(self, number: int, reduce: Reduce) -> None:
        """End pass number `number`, from 0."""

    @abstractmethod
    def found(self, site: int, batches: int) -> Gradient:
        """The mean gradient by a weight over all batches; asked for once."""


class WholeGradients(GradientState):
    """Every gradient whole, on the CPU."""

    def __init__(self, sites: Sequence[Site]):
        self.sums = [torch.zeros(site.shape) for site in sites]

    def add(self, site: int, x: Tensor, delta: Tensor) -> None:
        whole = delta.T @ x  # (out, in)
        held = self.sums[site]
        self.sums[site] = held.to(torch.promote_types(held.dtype, whole.dtype)) + whole.cpu()

    def finish(self, number: int, reduce: Reduce) -> None:
        del number
        for own in self.sums:
            reduce(own)

    def found(self, site: int, batches: int) -> Gradient:
        return Gradient(batches=batches, left=None, right=(self.sums[site] / batches).numpy())


class SketchedGradients(GradientState):
    """Every gradient as k columns times k rows, never formed: ``O(k (out + in))`` for a weight.

    The first pass sees ``G Ω`` with random Ω, every further one by turns ``Gᵀ Q`` and ``G P`` for
    the orthonormal bases Q and P of what the last one saw: subspace iteration ([halko2011],
    algorithm 4.4), one product of it in every pass. The last pass takes the basis of all that was
    seen of its side, a block Krylov space ([musco2015]), which also holds what falls slowly.

    Parameters
    ----------
    sites
        The weights.
    width
        k, with what it takes beyond the rank.
    passes
        Two, or more for a spectrum that falls slowly; of four and more the last is wider.
    seed
        Of Ω, which every weight has its own of.
    """

    def __init__(self, sites: Sequence[Site], width: int, passes: int, seed: int):
        self.passes = passes
        self.widths = [min(width, *site.shape) for site in sites]
        self.tests: list[Tensor] = [
            _random(seed, site, k) for site, k in zip(sites, self.widths, strict=True)
        ]  # of the side that is multiplied: (in, k) at first
        self.sums: list[Tensor | None] = [None] * len(sites)
        self.before: list[list[Tensor]] = [[] for _ in sites]  # seen of the side of the last pass
        self.on_in = True

    def add(self, site: int, x: Tensor, delta: Tensor) -> None:
        first, second = (x, delta) if self.on_in else (delta, x)
        test = self.tests[site]
        if test.device != x.device or test.dtype != x.dtype:
            test = self.tests[site] = test.to(x)
        product = second.T @ (first @ test)  # (out, k) for G Ω, (in, k) for Gᵀ Q
        held = self.sums[site]
        self.sums[site] = product if held is None else held.add_(product)

    def finish(self, number: int, reduce: Reduce) -> None:
        for own in self.sums:
            if own is not None:
                reduce(own)
        left = self.passes - 1 - number
        if left == 0:
            return
        for site in range(len(self.sums)):  # what one was is freed before the next is made
            self.tests[site] = self._next_test(site, left)
        self.on_in = not self.on_in

    def _next_test(self, site: int, left: int) -> Tensor:
        """Basis of what the last pass saw, or of all that was seen of its side before the last."""
        seen, self.sums[site] = self.sums[site], None
        assert seen is not None
        basis = torch.linalg.qr(seen)[0]
        if left % 2:  # it is of the side that the last pass multiplies
            self.before[site].append(basis)
        if left > 1:
            return basis
        kept, self.before[site] = self.before[site], []
        return torch.linalg.qr(_joined(kept))[0]

    def found(self, site: int, batches: int) -> Gradient:
        # the tests are the basis of one side, the sums are the gradient times it: (other side, k)
        basis, seen = self.tests[site], self.sums[site]
        assert seen is not None
        self.tests[site], self.sums[site] = basis[:0], None  # given away
        first, second = _numpy(basis), _numpy(seen / batches)
        left, right = (second, first.T) if self.on_in else (first, second.T)
        return Gradient(batches=batches, left=left, right=np.ascontiguousarray(right))


def _joined(bases: list[Tensor]) -> Tensor:
    """All bases of a side beside one another, no more columns than it has numbers."""
    both = torch.cat(bases, dim=1)
    return both if both.shape[1] <= both.shape[0] else torch.eye(len(both)).to(both)


def _random(seed: int, site: Site, k: int) -> Tensor:
    """``(in, k)``, the same wherever the weight is seen."""
    rng = np.random.default_rng([seed, zlib.crc32(site.path.encode())])
    return torch.from_numpy(rng.standard_normal((site.shape[1], k)).astype(np.float32))


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
