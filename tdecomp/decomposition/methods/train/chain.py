"""The chain of cores that an array, a stack or a train is decomposed along."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdecomp._xp import Array, namespace
from tdecomp.decomposition.methods.train.bonds import Bonds
from tdecomp.decomposition.methods.train.sweeps import (
    Source,
    exact_train,
    reshape,
    split_cores,
    tensor_source,
    train_source,
)
from tdecomp.formats import TT, Format, to_mpo
from tdecomp.modes import Axis
from tdecomp.passes.slices import dense
from tdecomp.stack import Stack

__all__ = ["Chain", "chain_of_array", "chain_of_train", "mpo_of"]

_MANY = 5  # modes from which on the sweeps of a search run on the exact train


@dataclass(frozen=True)
class Chain:
    """How an input becomes a chain of cores.

    Attributes
    ----------
    axes, output
        As in `TT`.
    shapes
        Mode sizes of every core.
    largest
        What every bond can have.
    open
        ``many sweeps -> source``.
    given
        The train that is rounded, if the input is a format.
    """

    axes: tuple[tuple[str, ...], ...]
    output: tuple[Axis, ...]
    shapes: tuple[tuple[int, ...], ...]
    largest: Bonds
    open: Callable[[bool], Source]
    given: TT | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every core between its bonds."""
        return tuple(math.prod(shape) for shape in self.shapes)

    def flat(self, tt: TT) -> list[Array]:
        """Cores ``(r, n, s)`` of a train over this chain."""
        pairs = zip(tt.cores, self.sizes, strict=True)
        return [reshape(c, (c.shape[0], n, c.shape[-1])) for c, n in pairs]

    def train(self, cores: Sequence[Array]) -> TT:
        """The format, from ``(r, n, s)`` cores."""
        return TT(self.axes, split_cores(cores, self.shapes), self.output)


def chain_of_array(
    x: Array | Stack,
    axes: tuple[tuple[str, ...], ...],
    output: tuple[Axis, ...],
    split: tuple[int, ...],
    order: tuple[int, ...],
) -> Chain:
    """Split open (to the shape `split`), permuted by `order`, and grouped into cores."""
    left = iter(split[k] for k in order)
    shapes = tuple(tuple(next(left) for _ in names) for names in axes)
    n = tuple(math.prod(shape) for shape in shapes)
    largest = tuple(min(math.prod(n[:k]), math.prod(n[k:])) for k in range(1, len(n)))

    def open_(many: bool) -> Source:
        array = reshape(dense(x), split)
        array = reshape(namespace(array).permute_dims(array, order), n)
        return exact_train(array) if many and len(n) >= _MANY else tensor_source(array)

    return Chain(axes, output, shapes, largest, open_)


def chain_of_train(tt: TT) -> Chain:
    """The chain of a train's own cores."""
    shapes = tuple(tuple(int(n) for n in c.shape[1:-1]) for c in tt.cores)
    if 0 in tt.rank:  # zero: in bonds of one there is something to sweep over
        like, xp = tt.cores[0], namespace(*tt.cores)
        made = {"dtype": like.dtype, "device": like.device}
        tt = TT(tt.axes, tuple(xp.zeros((1, *s, 1), **made) for s in shapes), tt.output)
    tt = TT(tt.axes, tuple(dense(c) for c in tt.cores), tt.output)
    chain = Chain(
        tt.axes, tt.output, shapes, tt.rank[1:-1], lambda _: train_source(chain.flat(tt)), tt
    )
    return chain


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
