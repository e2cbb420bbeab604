"""Formats from sizes and ranks alone: random, zeros, ones."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from array_api_compat import device

from tdecomp._xp import Array, find_dtype, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Factored
from tdecomp.formats.fields import read_sizes

__all__ = ["Blank", "Blanks", "Shaped", "drawn", "placed", "ranks_within", "read_shape"]

Blanks = tuple[tuple[str, ...], dict[str, "Blank"], Mapping[str, Any]]
"""Names of the modes, the arrays to fill, and the layout for `build`."""


class Blank(NamedTuple):
    """An array to be filled.

    Attributes
    ----------
    shape
        Its sizes.
    spread
        Standard deviation of random entries, a number or an array that fits the last axis.
    fixed
        Whether it holds `spread` itself where all others are drawn: weights and singular values.
    """

    shape: tuple[int, ...]
    spread: Any = 1.0
    fixed: bool = False


class Shaped(Factored):
    """A format that the sizes of its modes and its ranks describe."""

    @classmethod
    @abstractmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        """The arrays of a tensor of these sizes and ranks, checked."""

    @classmethod
    def random(
        cls,
        shape: Sequence[Any],
        rank: Any,
        *,
        names: Any = None,
        random_state: int | np.random.Generator | None = None,
        dtype: Any = None,
        like: Array | None = None,
    ) -> Self:
        """A tensor of normal factors, its entries of mean 0 and variance 1.

        Parameters
        ----------
        shape
            Sizes of the modes; of a `TT` also pairs, ``[(o1, i1), (o2, i2)]``, for an MPO.
        rank
            As the format counts it; a single number stands for every mode, bond or matrix, cut to
            what the sizes allow. Entries of a tuple are taken literally: one that is above its
            size is an `ArgumentError`.
        names
            Of the modes, ``"layer out in"``; by default m0, m1, ....
        random_state
            Seed or generator; None means the seed 0. Numbers are drawn in numpy, the same for every
            library.
        dtype
            ``"float32"`` or a dtype; by default that of `like`, else float64.
        like
            An array of the library and device to use; by default numpy's.

        Examples
        --------
        >>> from tdecomp.formats import CP, TT
        >>> TT.random((4, 5, 6), rank=3)
        TT(m0 4, m1 5, m2 6; rank 1,3,3,1; 75 numbers; f64)
        >>> CP.random((4, 5), 2, names="out in", dtype="float32")
        CP(out 4, in 5; rank 2; 20 numbers; f32)
        """
        modes, blanks, layout = cls._blanks(shape, rank, names)
        rng = np.random.default_rng(random_state or 0)
        make = lambda blank: drawn(blank, rng, dtype, like)
        return cls.build(modes, {name: make(blank) for name, blank in blanks.items()}, layout)

    @classmethod
    def zeros(
        cls,
        shape: Sequence[Any],
        *,
        names: Any = None,
        dtype: Any = None,
        like: Array | None = None,
    ) -> Self:
        """The zero tensor, of rank 1; parameters as in `random`."""
        return cls._filled(0.0, shape, names, dtype, like)

    @classmethod
    def ones(
        cls,
        shape: Sequence[Any],
        *,
        names: Any = None,
        dtype: Any = None,
        like: Array | None = None,
    ) -> Self:
        """The tensor of ones, of rank 1; parameters as in `random`."""
        return cls._filled(1.0, shape, names, dtype, like)

    @classmethod
    def _filled(
        cls, value: float, shape: Sequence[Any], names: Any, dtype: Any, like: Array | None
    ) -> Self:
        modes, blanks, layout = cls._blanks(shape, 1, names)
        arrays = {
            name: placed(np.full(blank.shape, value), dtype, like) for name, blank in blanks.items()
        }
        return cls.build(modes, arrays, layout)


def read_shape(shape: Any) -> tuple[int, ...]:
    """Sizes of modes, 1 or more each."""
    sizes = read_sizes("shape", shape)
    if not sizes or 0 in sizes:
        raise ArgumentError(f"shape={shape!r} must be sizes of modes, 1 or more each")
    return sizes


def drawn(blank: Blank, rng: np.random.Generator, dtype: Any, like: Array | None) -> Array:
    """Normal numbers of the spread of a blank, or the spread itself."""
    if blank.fixed:
        return placed(np.broadcast_to(blank.spread, blank.shape).astype(np.float64), dtype, like)
    numbers = rng.standard_normal(blank.shape)
    if "complex" in str(_default(dtype, like)):
        numbers = (numbers + 1j * rng.standard_normal(blank.shape)) / math.sqrt(2)
    return placed(numbers * blank.spread, dtype, like)


def _default(dtype: Any, like: Array | None) -> Any:
    return dtype if dtype is not None else "float64" if like is None else like.dtype


def placed(numbers: np.ndarray, dtype: Any, like: Array | None) -> Array:
    """Numbers in the dtype, library and device asked for."""
    like = numbers if like is None else like
    xp = namespace(like)
    wanted = find_dtype(xp, _default(dtype, like))
    if not xp.isdtype(wanted, ("real floating", "complex floating")):
        raise ArgumentError(f"dtype={dtype!r}: a format is made of real or complex floats")
    return xp.asarray(
        numbers.astype(np.complex128 if np.iscomplexobj(numbers) else np.float64),
        dtype=wanted,
        device=device(like),
    )


def ranks_within(
    what: str, names: Sequence[str], rank: Any, most: Sequence[int], *, least: int = 1
) -> tuple[int, ...]:
    """Ranks as a tuple: a number cut to `most`, or as many entries as `names`, none above it.

    >>> ranks_within("mode", ("out", "in"), 3, (4, 2)), ranks_within("mode", ("a",), [3], (4,))
    ((3, 2), (3,))
    """
    if not hasattr(rank, "__len__") or getattr(rank, "shape", None) == ():
        (number,) = read_sizes("rank", [rank])
        entries = tuple(min(number, n) for n in most)
    else:
        entries = read_sizes("rank", rank)
    if len(entries) != len(names):
        raise ArgumentError(f"rank={rank!r} needs {len(names)} entries: {', '.join(names) or '-'}")
    for name, r, n in zip(names, entries, most, strict=True):
        if not least <= r <= n:
            raise ArgumentError(
                f"rank {r} of the {what} {name!r} must be {least} to {n}, as its sizes allow"
            )
    return entries
