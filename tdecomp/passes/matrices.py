"""Every matrix of the data in coordinates, with the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tdecomp._xp import Array, adjoint, namespace, quick_sum_of_squares
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.linalg import is_cheap
from tdecomp.passes.coordinates import Frame, Metric, metric_frame
from tdecomp.passes.residual import residual_of_pair
from tdecomp.passes.slices import dense, each_slice, first_slice
from tdecomp.stack import Stack
from tdecomp.tasks import sendable
from tdecomp.tensor import mode_product

__all__ = ["Matrix", "each_of_format", "each_of_slices"]

Found = TypeVar("Found")

_Side = tuple[Array, Array]
"""``lift, drop`` of a mode."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix in coordinates: ``W = lift_out array lift_inᵀ``.

    Attributes
    ----------
    array
        ``(k_out, k_in)``.
    energy
        ``‖array‖²``, where it is known.
    out, inp
        ``lift (n, k), drop (k, n)`` of each side; None: as it is.
    """

    array: Array
    energy: float | None = None
    out: tuple[Array, Array] | None = None
    inp: tuple[Array, Array] | None = None

    def lifted(self, u: Array, s: Array, vh: Array) -> tuple[Array, Array, Array]:
        """Triplets of the array as triplets of the matrix."""
        u = u if self.out is None else self.out[0] @ u  # (out, r)
        return u, s, vh if self.inp is None else vh @ self.inp[0].T  # (r, in)

    def residual(self, left: Array, right: Array) -> tuple[float, float]:
        """``‖W − L R‖²`` and ``‖W‖²`` in the norm of the coordinates."""
        left = left if self.out is None else self.out[1] @ left  # (k_out, r)
        right = right if self.inp is None else right @ self.inp[1].T  # (r, k_in)
        return residual_of_pair(self.array, left, right, self.energy)


@contextmanager
def each_of_slices(
    x: Array | Stack,
    modes: tuple[str, ...],
    metric: Metric | None,
    work: Callable[[int, Matrix], Found],
    *,
    in_turn: bool = False,
) -> Iterator[Iterator[Found]]:
    """`each_slice` with the matrices in the coordinates of a metric if there is one.

    Norms of large ones are taken on the way; small ones are checked entry by entry.
    """
    k = len(x.shape) - 2
    cheap = is_cheap(tuple(x.shape[-2:]), 0, many=True)
    frame = Frame()
    if metric is not None:
        frame = _matrix_frame(metric, modes, tuple(x.shape), first_slice(x))

    of_slice = partial(_in_coordinates, work, cheap, _both(frame, k), _both(frame, k + 1))
    with each_slice(x, of_slice, in_turn=in_turn) as found:
        yield found


@sendable
def _in_coordinates(
    work: Callable[[int, Matrix], Found],
    cheap: bool,
    out: _Side | None,
    inp: _Side | None,
    i: int,
    matrix: Array,
) -> Found:
    """The work on one matrix of `each_of_slices`."""
    energy = None
    if cheap:
        matrix = dense(matrix)
    elif not math.isfinite(energy := quick_sum_of_squares(matrix)):
        dense(matrix)  # refuses it in words
    for mode, side in enumerate((out, inp)):
        if side is not None:
            matrix, energy = mode_product(matrix, side[1], mode), None
    return work(i, Matrix(array=matrix, energy=energy, out=out, inp=inp))


def each_of_format(
    x: Format, metric: Metric | None, work: Callable[[int, Matrix], Found]
) -> Iterator[Found]:
    """``left right = Q_out (R_out R_inᵀ) Q_inᵀ`` for every site's pair of factors."""
    frame = _matrix_frame(metric, x.modes, x.shape, next(iter(x.arrays.values())))
    down = frame.down(x)
    k = len(x.shape) - 2
    for i in range(x.n_sites):
        left, right = down.pair(i)
        xp = namespace(left, right)
        if left.shape[1] == 0:  # rank 0: one zero in place of nothing
            made = {"dtype": left.dtype, "device": left.device}
            left, right = (xp.zeros(shape, **made) for shape in ((x.shape[k], 1), (1, x.shape[-1])))
        q, r = xp.linalg.qr(left, mode="reduced")  # (out, r), (r, r)
        p, t = xp.linalg.qr(right.T, mode="reduced")  # (in, r), (r, r)
        whole = frame.then(Frame({k: q, k + 1: p}, {k: adjoint(q), k + 1: adjoint(p)}))
        yield work(i, Matrix(array=dense(r @ t.T), out=_both(whole, k), inp=_both(whole, k + 1)))


def _matrix_frame(
    metric: Metric | None, modes: tuple[str, ...], shape: tuple[int, ...], like: Array
) -> Frame:
    frame = metric_frame(metric, modes, shape, like)
    if frame and min(frame.lift) < len(shape) - 2:
        raise ArgumentError("svd takes a metric for its two matrix modes only; use tucker2")
    return frame


def _both(frame: Frame, mode: int) -> _Side | None:
    return (frame.lift[mode], frame.drop[mode]) if mode in frame.lift else None
