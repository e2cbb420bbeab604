"""SVG text read back: what is written where, in which colours, how wide."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_LETTER = 0.61  # width over size of the widest font that the pictures name


class Written(NamedTuple):
    """A line of text and the rectangle it fills."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Written) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def view_box(svg: str) -> tuple[float, ...]:
    return tuple(map(float, parsed(svg).attrib["viewBox"].split()))


def texts(svg: str) -> list[Written]:
    """All lines of text."""
    found = []
    for node in parsed(svg).iter(f"{_SVG}text"):
        x, y, size = (float(node.attrib[key]) for key in ("x", "y", "font-size"))
        text = node.text or ""
        width = len(text) * size * _LETTER
        left = {"start": x, "middle": x - width / 2, "end": x - width}[node.attrib["text-anchor"]]
        found.append(Written(text, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return found


def words(svg: str) -> str:
    """Everything that can be read, in one line."""
    return " ".join(t.text for t in texts(svg))


def shapes(svg: str) -> list[Written]:
    """Rectangles that are large enough to be tensors, the ground left out."""
    boxes = []
    for node in list(parsed(svg).iter(f"{_SVG}rect"))[1:]:
        x, y, w, h = (float(node.attrib[key]) for key in ("x", "y", "width", "height"))
        if h > 20:
            boxes.append(Written("", x, y, x + w, y + h))
    return boxes


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(pair, 16) / 255 for pair in re.findall("..", colour.lstrip("#"))]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2)."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
