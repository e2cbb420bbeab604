"""SVG elements as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tdecomp.drawing.geometry import Box, Spot
from tdecomp.drawing.style import LIGHT, STYLE
from tdecomp.drawing.text import FONT, clean

__all__ = [
    "both",
    "document",
    "element",
    "fill",
    "line",
    "number",
    "path",
    "polygon",
    "rectangle",
    "text",
]


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """One element; attributes are escaped, the content is SVG already.

    >>> element("circle", cx=1.25, r=2, stroke_width=1)
    '<circle cx="1.2" r="2" stroke-width="1"/>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else number(value)


def number(x: float) -> str:
    """A length to a tenth of a pixel."""
    return f"{round(x, 1) + 0.0:.1f}".removesuffix(".0")


def fill(colour: str) -> dict[str, str]:
    """Attributes of a shape or text in one of the colours; ``ink`` is the colour of the page."""
    if colour == "ink":
        return {"fill": "currentColor"}
    return {"class_": f"td-fill-{colour}", "fill": LIGHT[colour]}


def line(colour: str) -> dict[str, str]:
    """Attributes of a line in one of the colours."""
    if colour == "ink":
        return {"stroke": "currentColor"}
    return {"class_": f"td-line-{colour}", "stroke": LIGHT[colour]}


def both(inside: str, outline: str) -> dict[str, str]:
    """Attributes of a shape in two of the colours, neither of them ``ink``."""
    a, b = fill(inside), line(outline)
    return a | b | {"class_": f"{a['class_']} {b['class_']}"}


def text(
    content: str,
    at: Spot,
    *,
    size: float,
    colour: str = "ink",
    anchor: str = "middle",
    **more: str,
) -> str:
    """A line of text; `at` is the middle of its height."""
    return element(
        "text",
        escape(clean(content)),
        x=at.x,
        y=at.y + 0.35 * size,
        font_size=size,
        text_anchor=anchor,
        **(fill(colour) | more),
    )


def rectangle(box: Box, **attributes: str | float) -> str:
    """A rectangle."""
    return element("rect", x=box.left, y=box.top, width=box.width, height=box.height, **attributes)


def polygon(points: Sequence[Spot], **attributes: str | float) -> str:
    """A closed shape through some points."""
    return element("polygon", points=_points(points), **attributes)


def path(points: Sequence[Spot], **attributes: str | float) -> str:
    """A line through some points."""
    return element("polyline", points=_points(points), fill="none", **attributes)


def _points(points: Sequence[Spot]) -> str:
    return " ".join(f"{number(p.x)},{number(p.y)}" for p in points)


def document(
    parts: Iterable[str], *, width: float, height: float, title: str, grow: float = 1.0
) -> str:
    """A whole picture on its ground, `grow` times as large where the page is wide enough."""
    ground = rectangle(Box(0, 0, width, height), rx=6, **fill("ground"))
    said = element("title", escape(clean(title)) or "picture")
    return element(
        "svg",
        "".join([said, element("style", STYLE), ground, *parts]),
        xmlns="http://www.w3.org/2000/svg",
        class_="td-picture",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=grow * width,
        height=grow * height,
        style="max-width:100%;height:auto",
        color=LIGHT["ink"],
        font_family=FONT,
        role="img",
        aria_label=clean(title) or "picture",
    )
