"""Rectangles and lines in the plane, and the room that is left between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Box", "Canvas", "Spot", "around"]

_APART = 2.0  # pixels between any two things


class Spot(NamedTuple):
    """A place; y grows downwards."""

    x: float
    y: float

    def towards(self, degrees: float, length: float) -> Spot:
        """The place at this distance; 0 degrees is to the right, 90 down."""
        angle = math.radians(degrees)
        return Spot(self.x + length * math.cos(angle), self.y + length * math.sin(angle))

    def mean(self, other: Spot, share: float = 0.5) -> Spot:
        """The place on the way to another one."""
        return Spot(*((1 - share) * a + share * b for a, b in zip(self, other, strict=True)))


class Box(NamedTuple):
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def at(cls, centre: Spot, width: float, height: float) -> Box:
        """The rectangle of this size around a place."""
        x, y = centre
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top

    @property
    def centre(self) -> Spot:
        """Its middle."""
        return Spot((self.left + self.right) / 2, (self.top + self.bottom) / 2)

    def reach(self, direction: Spot) -> float:
        """From the centre to the border in a direction of length 1."""
        sides = ((self.width / 2, direction.x), (self.height / 2, direction.y))
        return min(half / abs(part) for half, part in sides if abs(part) > 1e-9)

    def meets(self, other: Box) -> bool:
        """Whether two rectangles overlap or nearly touch."""
        return (
            self.left < other.right + _APART
            and other.left < self.right + _APART
            and self.top < other.bottom + _APART
            and other.top < self.bottom + _APART
        )

    def is_crossed(self, a: Spot, b: Spot) -> bool:
        """Whether the line from `a` to `b` enters the rectangle (Liang and Barsky's clipping)."""
        enter, leave = 0.0, 1.0
        for start, step, low, high in (
            (a.x, b.x - a.x, self.left, self.right),
            (a.y, b.y - a.y, self.top, self.bottom),
        ):
            if step == 0:
                if not low <= start <= high:
                    return False
                continue
            near, far = sorted(((low - start) / step, (high - start) / step))
            enter, leave = max(enter, near), min(leave, far)
        return enter < leave


def around(boxes: Iterable[Box]) -> Box:
    """The smallest rectangle that holds all."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return Box(min(left), min(top), max(right), max(bottom))


@dataclass
class Canvas:
    """What stands where already."""

    boxes: list[Box] = field(default_factory=list)
    lines: list[tuple[Spot, Spot]] = field(default_factory=list)

    def is_free(self, box: Box) -> bool:
        """Whether nothing stands in a rectangle."""
        return self.is_bare(box) and not any(box.is_crossed(*line) for line in self.lines)

    def is_bare(self, box: Box) -> bool:
        """Whether no rectangle stands there; lines may cross it."""
        return not any(box.meets(other) for other in self.boxes)

    def is_clear(self, a: Spot, b: Spot) -> bool:
        """Whether no rectangle stands in the way of a line; lines may cross."""
        return not any(box.is_crossed(a, b) for box in self.boxes)

    def draw(self, path: Iterable[Spot]) -> None:
        """Remember a line through some places."""
        self.lines += pairwise(path)
