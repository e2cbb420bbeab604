"""The chain of cores that an array, a stack or a train is decomposed along."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.decomposition.fit import Distance
from tdecomp.decomposition.methods.train.bonds import Bonds, bond_names
from tdecomp.decomposition.methods.train.sweeps import (
    Source,
    difference_energy,
    exact_train,
    reshape,
    split_cores,
    tensor_source,
    train_source,
)
from tdecomp.formats import TT, Format, to_mpo
from tdecomp.modes import Axis
from tdecomp.passes.data import Data
from tdecomp.passes.slices import dense

__all__ = ["ArrayChain", "Chain", "TrainChain", "chain_of_array", "chain_of_train", "mpo_of"]

_MANY = 5  # modes from which on the sweeps of a search run on the exact train


@dataclass(frozen=True, kw_only=True)
class Chain(ABC):
    """How an input becomes a chain of cores.

    Attributes
    ----------
    axes, output
        As in `TT`.
    shapes
        Mode sizes of every core.
    """

    axes: tuple[tuple[str, ...], ...]
    output: tuple[Axis, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every core between its bonds."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def names(self) -> list[str]:
        """Names of the bonds."""
        return bond_names(self.axes)

    @property
    @abstractmethod
    def largest(self) -> Bonds:
        """What every bond can have."""

    @property
    @abstractmethod
    def distance(self) -> Distance | None:
        """How far a train of this chain is from it, where it is a train itself."""

    @abstractmethod
    def open(self, *, many: bool) -> Source:
        """What is swept, prepared for many sweeps or for one."""

    def flat(self, tt: TT) -> list[Array]:
        """Cores ``(r, n, s)`` of a train over this chain."""
        pairs = zip(tt.cores, self.sizes, strict=True)
        return [reshape(c, (c.shape[0], n, c.shape[-1])) for c, n in pairs]  # (r, n, s)

    def train(self, cores: Sequence[Array]) -> TT:
        """The format, from ``(r, n, s)`` cores."""
        return TT(self.axes, split_cores(cores, self.shapes), self.output)


@dataclass(frozen=True, kw_only=True)
class ArrayChain(Chain):
    """The modes of a dense tensor, split open, permuted, and grouped into cores.

    Attributes
    ----------
    x
        Array or stack.
    split, order
        Its shape with the split modes apart, and the order in which they are chained.
    """

    x: Data[Any]
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def largest(self) -> Bonds:
        """The smaller side of every unfolding."""
        n = self.sizes
        return tuple(min(math.prod(n[:k]), math.prod(n[k:])) for k in range(1, len(n)))

    @property
    def distance(self) -> Distance | None:
        """The array itself is compared."""
        return None

    def open(self, *, many: bool) -> Source:
        """The dense tensor; for many sweeps over many modes, its exact train."""
        array = reshape(self.x.dense(), self.split)
        array = namespace(array).permute_dims(array, self.order)
        array = reshape(array, self.sizes)  # (n_1, ..., n_d)
        return exact_train(array) if many and len(self.sizes) >= _MANY else tensor_source(array)


@dataclass(frozen=True, kw_only=True)
class TrainChain(Chain):
    """The cores of a train, to be rounded.

    Attributes
    ----------
    given
        The train, in working precision.
    """

    given: TT

    @property
    def largest(self) -> Bonds:
        """Its own bonds."""
        return self.given.rank[1:-1]

    @property
    def distance(self) -> Distance | None:
        """Core by core: the tensor is never formed."""
        return self._difference

    def open(self, *, many: bool) -> Source:
        """The train, ready to be swept from the left."""
        del many
        return train_source(self.flat(self.given))

    def _difference(self, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
        residual, energy = difference_energy(self.flat(self.given), self.flat(tensor))
        return np.array([residual]), np.array([energy])


def chain_of_array(
    x: Data[Any],
    axes: tuple[tuple[str, ...], ...],
    *,
    output: tuple[Axis, ...],
    split: tuple[int, ...],
    order: tuple[int, ...],
) -> ArrayChain:
    """Split open (to the shape `split`), permuted by `order`, and grouped into cores."""
    left = iter(split[k] for k in order)
    shapes = tuple(tuple(next(left) for _ in names) for names in axes)
    return ArrayChain(axes=axes, output=output, shapes=shapes, x=x, split=split, order=order)


def chain_of_train(tt: TT) -> TrainChain:
    """The chain of a train's own cores."""
    shapes = tuple(tuple(int(n) for n in c.shape[1:-1]) for c in tt.cores)
    if 0 in tt.rank:  # zero: in bonds of one there is something to sweep over
        like, xp = tt.cores[0], namespace(*tt.cores)
        made = {"dtype": like.dtype, "device": like.device}
        tt = TT(tt.axes, tuple(xp.zeros((1, *s, 1), **made) for s in shapes), tt.output)
    tt = TT(tt.axes, tuple(dense(c) for c in tt.cores), tt.output)
    return TrainChain(axes=tt.axes, output=tt.output, shapes=shapes, given=tt)


def mpo_of(x: Format, out: tuple[int, ...], inp: tuple[int, ...]) -> TT:
    """`x` as an exact MPO of these splits: as it is where it is one."""
    k = len(out)
    if isinstance(x, TT) and len(x.axes) == len(x.output) - 2 + k:
        sites, cores = x.axes[: len(x.axes) - k], x.axes[len(x.axes) - k :]
        if sites == tuple((m,) for m in x.output[:-2]) and all(len(names) == 2 for names in cores):
            left, right = zip(*cores, strict=True)
            ends = (left, right) if k > 1 else (*left, *right)
            sizes = [tuple(c.shape[1:-1]) for c in x.cores[len(sites) :]]
            if x.output[-2:] == ends and sizes == list(zip(out, inp, strict=True)):
                return x
    return to_mpo(x, out=out, inp=inp)
