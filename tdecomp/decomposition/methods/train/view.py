"""An input as a chain, whole or in the coordinates of a sketch of its long ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.methods.train.bonds import Bonds
from tdecomp.decomposition.methods.train.chain import Chain
from tdecomp.decomposition.methods.train.sweeps import Source
from tdecomp.formats import TT
from tdecomp.passes.data import Data
from tdecomp.passes.stream import Ranks, Stream, worth_sketching

__all__ = ["View", "ends_worth_sketching", "plain_view"]


@dataclass(frozen=True, kw_only=True)
class View:
    """A chain to be swept, and the way back from it to the modes of the input.

    Attributes
    ----------
    chain
        Of the coordinates.
    sizes
        Of the cores of the result.
    stream, width
        The sketch, if there is one, and the largest rank that it can tell anything about.
    can_widen
        Whether a sketch twice as wide is worth it as well.
    before
        Reads of the data for narrower ones.
    """

    chain: Chain
    sizes: tuple[int, ...]
    stream: Stream | None = None
    width: int = sys.maxsize
    can_widen: bool = False
    before: int = 0

    @property
    def passes(self) -> int:
        """Reads of the data so far."""
        return self.before + (self.stream.passes if self.stream else 1)

    @property
    def limits(self) -> Bonds:
        """The largest bonds that the sketch can tell of; empty where nothing is sketched."""
        if self.stream is None:
            return ()
        first, last = (
            self.width if self.chain.sizes[end] < self.sizes[end] else sys.maxsize
            for end in (0, -1)
        )
        if len(self.sizes) == 2:  # one bond between both ends
            return (min(first, last),)
        return (first, *[sys.maxsize] * (len(self.sizes) - 3), last)

    @property
    def outside(self) -> float:
        """Squared norm of what the coordinates lack."""
        return self.stream.outside if self.stream else 0.0

    @property
    def energy(self) -> float | None:
        """Squared norm of the input, where the sketch has seen it."""
        return self.stream.energy if self.stream else None

    @property
    def energies(self) -> tuple[float, ...] | None:
        """The same for every matrix."""
        return self.stream.energies if self.stream else None

    def is_at_limit(self, bonds: Bonds) -> bool:
        """Whether one of the bonds is at the limit of the sketch."""
        return any(b >= limit for b, limit in zip(bonds, self.limits, strict=False))

    def known(self, spectra: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Singular values within the limits, and the squared norm of everything else."""
        if self.stream is None:
            return spectra, 0.0
        pairs = list(zip(spectra, self.limits, strict=True))
        beyond = sum(float(np.sum(s[limit:] ** 2)) for s, limit in pairs)
        return [s[:limit] for s, limit in pairs], self.stream.outside + beyond

    def source(self, *, many: bool) -> Source:
        """What is swept; it counts numbers as the result will store them."""
        return replace(self.chain.open(many=many), sizes=self.sizes)

    def train(self, cores: Sequence[Array]) -> TT:
        """The format in the modes of the input."""
        tensor = self.chain.train(cores)
        if self.stream is None:
            return tensor
        lifted = self.stream.frame.up(tensor)
        assert isinstance(lifted, TT)
        return lifted


def plain_view(chain: Chain) -> View:
    """The chain as it is."""
    return View(chain=chain, sizes=chain.sizes)


def ends_worth_sketching(x: Data[Any], chain: Chain, ends: Sequence[int]) -> Ranks | None:
    """Ranks of the long modes of `x`, where one is an end of the chain and a sketch is worth it.

    The first and the last of `ends` are ranks for the ends of the chain.
    """
    if x.is_format or len(x.shape) < 2:
        return None
    of_end = {chain.axes[0]: ends[0], chain.axes[-1]: ends[-1]}
    out, inp = (of_end.get((mode,)) for mode in x.modes[-2:])
    return worth_sketching(x.shape, (out, inp))
