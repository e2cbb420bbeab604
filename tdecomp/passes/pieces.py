"""A tensor in pieces of about a million numbers, however these are split into modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tdecomp._xp import Array, detached, namespace, working
from tdecomp.stack import Stack
from tdecomp.tensor import promoted

__all__ = ["PIECE", "Chunk", "cut", "is_cut_finely", "pieces_of"]

PIECE = 1 << 20  # numbers of a piece, at most
_LARGE = 1 << 18  # numbers of a matrix, from which on each is a piece of its own
_READ = 1 << 16  # where each is read by itself


@dataclass(frozen=True)
class Chunk:
    """Some neighbouring matrices of a tensor.

    Attributes
    ----------
    index
        What picks them out of the tensor, by its leading modes.
    sites
        Their positions, in C order.
    """

    index: tuple[int | slice, ...]
    sites: slice

    @property
    def n_sites(self) -> int:
        """How many matrices."""
        return self.sites.stop - self.sites.start


def is_cut_finely(shape: Sequence[int], *, read: bool = False) -> bool:
    """Whether the matrices of a tensor are small, so that many go together.

    Those that are `read` one by one, here or by workers, have to be smaller for that.
    """
    return len(shape) > 2 and math.prod(shape[-2:]) < (_READ if read else _LARGE)


def cut(shape: Sequence[int]) -> Iterator[Chunk]:
    """Pieces of whole matrices, in C order over the modes before the last two.

    The first modes are fixed, one is cut into ranges, those after it are whole: so the matrices of
    a piece are neighbours, and a format gives them as a slice.

    >>> [piece.index for piece in cut((3, 512, 1024, 2))]
    [(slice(0, 1, None),), (slice(1, 2, None),), (slice(2, 3, None),)]
    >>> [piece.index for piece in cut((2, 1024, 1024, 2))][:3]
    [(0, slice(0, 512, None)), (0, slice(512, 1024, None)), (1, slice(0, 512, None))]
    """
    sites = [int(n) for n in shape[:-2]]
    numbers = math.prod(shape[-2:])
    fixed = max(0, len(sites) - 1)
    while fixed and math.prod(sites[fixed:]) * numbers <= PIECE:
        fixed -= 1
    if not sites:
        yield Chunk((), slice(0, 1))
        return
    each = math.prod(sites[fixed + 1 :])  # matrices of one index of the mode that is cut
    rows, start = max(1, PIECE // (each * numbers)), 0
    for prefix in np.ndindex(*sites[:fixed]):
        for row in range(0, sites[fixed], rows):
            end = min(row + rows, sites[fixed])
            stop = start + (end - row) * each
            yield Chunk((*prefix, slice(row, end)), slice(start, stop))
            start = stop


def pieces_of(x: Array | Stack) -> Iterator[tuple[Chunk, Array]]:
    """Every piece with its matrices ``(sites, out, in)`` in working precision, not looked at."""
    found = cut(x.shape)
    if isinstance(x, Stack):
        matrices = x.slices()
        for piece in found:
            some = [detached(working(m)) for m in islice(matrices, piece.n_sites)]
            yield piece, namespace(*some).stack(promoted(some))
    else:
        flat = namespace(x).reshape(x, (-1, *x.shape[-2:]))
        for piece in found:
            yield piece, detached(working(flat[piece.sites, ...]))
