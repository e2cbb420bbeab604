"""A diagram as SVG text: panels below each other, their products side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tdecomp.drawing import svg
from tdecomp.drawing.geometry import Box, Spot
from tdecomp.drawing.layout import FONT_SIZE, HEIGHT, Vertex, graph_of
from tdecomp.drawing.network import Diagram, DrawnProduct, DrawnTensor, Panel
from tdecomp.drawing.scene import Mark, Scene, Stroke, scene_of
from tdecomp.drawing.text import width, wrap

__all__ = ["write_svg"]

_MARGIN = 16.0
_WIDEST = 600.0  # a row of parts; a single one may be wider
_NOTES = 400.0  # notes are at least this wide
_TITLE = 15.0
_NOTE = 12.0
_SIGN = 18.0
_DASH = "5 3"


def write_svg(diagram: Diagram) -> str:
    """The picture of a diagram; the same text for the same diagram."""
    parts: list[str] = []
    right, y = 0.0, _MARGIN
    for panel in diagram.panels:
        written, size = _panel(panel, y)
        parts += written
        right, y = max(right, size.right), size.bottom + _MARGIN
    title = "; ".join(panel.title for panel in diagram.panels)
    return svg.document(parts, width=right + _MARGIN, height=y, title=title)


def _panel(panel: Panel, top: float) -> tuple[list[str], Box]:
    """Elements of a panel from `top` down, and the rectangle they fill."""
    rows = _rows(panel.products)
    inner = max([_NOTES, *map(_row_width, rows)])
    parts, y = _lines([panel.title], top, inner, size=_TITLE, font_weight="bold")
    y += 8
    for row in rows:
        height = max(piece.height for piece in row)
        x = _MARGIN + (inner - _row_width(row)) / 2
        for piece in row:
            parts += piece.at(x, y + (height - piece.height) / 2)
            x += piece.width + _MARGIN
        y += height + 14
    for sample, said in _legend(panel.products):
        parts += sample(Spot(_MARGIN, y + _NOTE / 2))
        at = Spot(_MARGIN + 44, y + _NOTE / 2)
        parts.append(svg.text(said, at, size=_NOTE, colour="quiet", anchor="start"))
        y += _NOTE + 8
    notes, y = _lines(panel.notes, y, inner, size=_NOTE, colour="quiet")
    return parts + notes, Box(_MARGIN, top, _MARGIN + inner, y)


def _lines(
    texts: Iterable[str], y: float, inner: float, *, size: float, **more: str
) -> tuple[list[str], float]:
    """Text from `y` down, and where it ends."""
    parts: list[str] = []
    for line in (line for text in texts for line in wrap(text, inner, size)):
        at = Spot(_MARGIN, y + size / 2)
        parts.append(svg.text(line, at, size=size, anchor="start", **more))
        y += size + 6
    return parts, y


@dataclass(frozen=True)
class _Inset:
    """One thing in a row: a part of a product, or the sign before one."""

    scene: Scene | None
    sign: str = ""

    @property
    def width(self) -> float:
        return width(self.sign, _SIGN) if self.scene is None else self.scene.bounds.width

    @property
    def height(self) -> float:
        return _SIGN if self.scene is None else self.scene.bounds.height

    def at(self, x: float, y: float) -> list[str]:
        """Its elements, the upper left corner at this place."""
        if self.scene is None:
            at = Spot(x + self.width / 2, y + _SIGN / 2)
            return [svg.text(self.sign, at, size=_SIGN)]
        bounds = self.scene.bounds
        return _elements(self.scene.moved(x - bounds.left, y - bounds.top))


def _rows(products: Iterable[DrawnProduct]) -> list[list[_Inset]]:
    """Signs and parts of products in rows that are no wider than a page."""
    rows: list[list[_Inset]] = []
    for product in products:
        graph = graph_of(product)
        pieces = [_Inset(None, product.sign)] if product.sign else []
        for part in graph.parts():
            pieces.append(_Inset(scene_of(graph, part)))
            if not rows or _row_width([*rows[-1], *pieces]) > _WIDEST:
                rows.append([])
            rows[-1] += pieces
            pieces = []
    return rows


def _row_width(row: Iterable[_Inset]) -> float:
    widths = [piece.width for piece in row]
    return sum(widths) + _MARGIN * (len(widths) - 1)


def _elements(scene: Scene) -> list[str]:
    """Lines below, tensors above them, text on top."""
    parts = [mark for stroke in scene.strokes for mark in _stroke(stroke)]
    parts += [mark for shape in scene.shapes for mark in _shape(shape)]
    for label in scene.labels:
        box, colour = label.box, "site" if label.kind == "site" else "ink"
        weight = {"font_weight": "bold"} if label.kind in ("open", "site") else {}
        if scene.is_crossed(box):
            parts.append(svg.rectangle(box, **svg.fill("ground")))
        parts.append(svg.text(label.text, box.centre, size=FONT_SIZE, colour=colour, **weight))
    return parts


def _stroke(stroke: Stroke) -> list[str]:
    """A line; a site mode is dashed and ends in a square, a name summed alone in a dot."""
    end = stroke.points[-1]
    if stroke.kind == "site":
        dashes = {"stroke_width": 1.6, "stroke_dasharray": "3 3"}
        square = svg.rectangle(Box.at(end, 7, 7), **svg.fill("site"))
        return [svg.path(stroke.points, **svg.line("site"), **dashes), square]
    line = svg.path(stroke.points, **svg.line("ink"), stroke_width=1.6)
    if stroke.kind == "summed":
        return [line, svg.element("circle", cx=end.x, cy=end.y, r=3, **svg.fill("ink"))]
    return [line]


def _shape(shape: Mark) -> list[str]:
    """A tensor: round and full, or frozen: square and dashed. A dot: full, or a ring if open."""
    box, vertex = shape.box, shape.vertex
    centre = box.centre
    if vertex.node is None:
        inside = svg.fill("ground") if vertex.is_open else svg.fill("ink")
        size = {"cx": centre.x, "cy": centre.y, "r": box.width / 2 - 1, "stroke_width": 1.6}
        return [svg.element("circle", **size, **{**inside, **_outline()})]
    if vertex.node.frozen:
        outline = {"stroke_width": 1.6, "stroke_dasharray": _DASH, **_outline()}
        return [
            svg.rectangle(box, rx=1, **svg.fill("ground"), **outline),
            svg.text(vertex.label, centre, size=FONT_SIZE),
        ]
    return [
        svg.rectangle(box, rx=HEIGHT / 2, **svg.fill("tensor")),
        svg.text(vertex.label, centre, size=FONT_SIZE, colour="on-tensor"),
    ]


def _outline() -> dict[str, str]:
    return {"stroke": "currentColor"}


def _legend(products: Iterable[DrawnProduct]) -> list[tuple[Callable[[Spot], list[str]], str]]:
    """A sample of what may not be known, where it is in the picture, and what it means."""
    frozen = any(node.frozen for product in products for node in product.nodes)
    sites = any(
        product.sites.intersection(node.modes) for product in products for node in product.nodes
    )
    found: list[tuple[Callable[[Spot], list[str]], str]] = []
    if frozen:
        found = [(partial(_sample, False), "trained"), (partial(_sample, True), "frozen")]
    if sites:
        found.append((_sample_of_site, "one part for each of these weights"))
    return found


def _sample(frozen: bool, at: Spot) -> list[str]:
    """A small tensor without a name."""
    box = Box(at.x, at.y - 7, at.x + 32, at.y + 7)
    return _shape(Mark(Vertex("", 32, DrawnTensor("", (), frozen)), box))[:1]


def _sample_of_site(at: Spot) -> list[str]:
    return _stroke(Stroke((at, Spot(at.x + 30, at.y)), "site"))
