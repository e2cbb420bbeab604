"""A stored tensor, or a part of it, widened tile by tile while the tile is in cache.

Whole-array passes cost a trip to memory each; here every number is fetched once, whatever is
done with it, and what is needed beside the result is a few tiles.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from .dtypes import copy_into

__all__ = ["TILE", "Part", "Tile", "tiles"]

Tile = tuple["int | slice | EllipsisType", ...]
"""Index of a tile; ends in ``...``, so that it always gives a view."""

TILE = 1 << 16  # numbers: two float32 tiles and two stored ones fit a 1 MiB cache
_KEPT = 128  # tiles after which mapped pages are let go


def tiles(shape: Sequence[int], size: int = TILE) -> Iterator[Tile]:
    """Indices of blocks of at most ``size`` numbers that cover an array once, in C order.

    Each block is contiguous in a C-contiguous array of that shape; an empty array has none.

    Examples
    --------
    >>> list(tiles((3, 4), 8))
    [(slice(0, 2, None), Ellipsis), (slice(2, 4, None), Ellipsis)]
    """
    inner = math.prod(shape[1:])
    if not shape:
        yield (...,)
    elif inner > size:
        for i in range(shape[0]):
            yield from ((i, *rest) for rest in tiles(shape[1:], size))
    elif inner:  # else there is nothing to cover
        step = size // inner
        for start in range(0, shape[0], step):
            yield (slice(start, start + step), ...)


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a stored tensor that an index selects, not yet read.

    Parameters
    ----------
    stored
        The selected items as stored; usually a view on the file.
    dtype
        Of the widened numbers.
    fill
        ``fill(stored, out)`` widens.
    mapped
        The memory map below ``stored``, if there is one.
    """

    stored: np.ndarray
    dtype: np.dtype
    fill: Callable[[np.ndarray, np.ndarray], None] = copy_into
    mapped: mmap.mmap | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self.stored.shape

    def scratch(self) -> np.ndarray:
        """Memory for `widened`: one tile, flat."""
        return np.empty(min(TILE, self.stored.size), self.dtype)

    def widened(self, tile: Tile, scratch: np.ndarray) -> np.ndarray:
        """One tile, widened into ``scratch``; a read-only view where there is nothing to widen."""
        stored = self.stored[tile]
        if stored.dtype == self.dtype:
            return stored
        out = scratch[: stored.size].reshape(stored.shape)
        self.fill(stored, out)
        return out

    def whole(self) -> np.ndarray:
        """Everything, widened, in a new C-contiguous array."""
        out = np.empty(self.shape, self.dtype)
        for tile in self.walk():
            self.fill(self.stored[tile], out[tile])
        return out

    def walk(self, *others: Part) -> Iterator[Tile]:
        """Tiles in order; pages of the files that were passed do not stay resident.

        ``others`` are parts of the same shape that are read along.
        """
        for count, tile in enumerate(tiles(self.shape), 1):
            yield tile
            if count % _KEPT == 0:
                for part in (self, *others):
                    part.let_go()

    def let_go(self) -> None:
        """Drop the mapped pages from this process; the system keeps them cached."""
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)
