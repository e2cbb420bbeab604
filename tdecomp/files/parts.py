"""A stored tensor, or a part of it, widened tile by tile while the tile is in cache.

Whole-array passes cost a trip to memory each; here every number is fetched once, whatever is
done with it, and what is needed beside the result is a few tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from .dtypes import copy_into
from .stored import Stored

__all__ = ["TILE", "Part", "Tile", "tiles"]

Tile = tuple["int | slice | EllipsisType", ...]
"""Index of a tile; ends in ``...``, so that it always gives a view."""

# Numbers: a few float32 tiles fit a cache of some MiB, and two threads at work on tiles of their
# own seldom wait for each other, as they do between all steps on smaller ones.
TILE = 1 << 18

# glibc hands each freed block of a tile's size back to the system, and every new page is a fault:
# four times the time of the work itself. It stops that for good once a larger block was freed.
np.empty(1 << 24, np.uint8)


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
        The selected items as stored: in a file, or in memory.
    dtype
        Of the widened numbers.
    fill
        ``fill(stored, out)`` widens.
    """

    stored: np.ndarray | Stored
    dtype: np.dtype
    fill: Callable[[np.ndarray, np.ndarray], None] = copy_into

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self.stored.shape

    def scratch(self) -> np.ndarray:
        """Memory for `widened`: one tile, flat."""
        return np.empty(min(TILE, self.stored.size), self.dtype)

    def widened(self, tile: Tile, scratch: np.ndarray) -> np.ndarray:
        """One tile, widened into ``scratch``; read-only where there is nothing to widen.

        Valid until the next tile is read.
        """
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

    def codes(self) -> np.ndarray:
        """Everything as stored, read-only."""
        return self.stored[(...,)]

    def walk(self) -> Iterator[Tile]:
        """Tiles in order."""
        return tiles(self.shape)
