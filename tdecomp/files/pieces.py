"""A tensor of one model as pieces of another model's tensors: slices, turned or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .parts import Part

__all__ = ["Overlap", "TensorIndex", "Piece", "Span", "spans"]

Span = tuple[int, int]
TensorIndex = tuple["slice | int", ...]


@dataclass(frozen=True)
class Overlap:
    """Where a part of a piece lies: in the result, in the base tensor and in the tuned one."""

    place: tuple[slice, ...]
    base: tuple[slice, ...]
    tuned: TensorIndex


@dataclass(frozen=True)
class Piece:
    """A block of a base tensor, and where a tensor of the tuned model holds it.

    Attributes
    ----------
    block
        (start, stop) along every axis of the base tensor.
    tensor
        Name in the tuned model.
    axes
        For every axis of that tensor a position; or the axis of the base tensor that it runs
        along, and where the block starts on it.
    """

    block: tuple[Span, ...]
    tensor: str
    axes: tuple[int | tuple[int, int], ...]

    def inside(self, wanted: Sequence[Span]) -> Overlap | None:
        """The part of the piece within the wanted spans of the base tensor."""
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.block, wanted, strict=True)]
        if any(start >= stop for start, stop in both):
            return None
        index: list[slice | int] = []
        for at in self.axes:
            if isinstance(at, int):
                index.append(at)
                continue
            axis, first = at
            (start, stop), origin = both[axis], self.block[axis][0]
            index.append(slice(first + start - origin, first + stop - origin))
        place = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, wanted, strict=True))
        return Overlap(place, tuple(slice(*span) for span in both), tuple(index))

    def turned(self, part: Part) -> Part:
        """What was opened at a block's `tuned` index, with the axes of the base tensor.

        A block that lies the other way round is read whole here: its tiles would be scattered.
        """
        order = [at[0] for at in self.axes if not isinstance(at, int)]
        missing = tuple(axis for axis in range(len(self.block)) if axis not in order)
        if order == sorted(order) and not missing:
            return part
        stored = part.codes().copy().transpose(np.argsort(order))
        return replace(part, stored=np.expand_dims(stored, missing))


def spans(index: TensorIndex, shape: tuple[int, ...]) -> list[Span]:
    """(start, stop) along every axis for an index of positions and slices without a step.

    >>> spans((1, slice(2, None)), (3, 5, 4))
    [(1, 2), (2, 5), (0, 4)]
    """
    found: list[Span] = []
    for at, size in zip((*index, *[slice(None)] * (len(shape) - len(index))), shape, strict=True):
        if isinstance(at, slice):
            start, stop, _ = at.indices(size)
        else:
            start = range(size)[at]
            stop = start + 1
        found.append((start, stop))
    return found
