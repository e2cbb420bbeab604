"""A product with everything at its place: tensors, lines, legs, and labels that cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from tdecomp.drawing.geometry import Box, Canvas, Spot, around
from tdecomp.drawing.layout import FONT_SIZE, HEIGHT, Graph, Leg, Link, Vertex, places_of
from tdecomp.drawing.text import width

__all__ = ["Writing", "Scene", "Mark", "Stroke", "scene_of"]

_LINE = 16.0  # height of a label
_BOW = 22.0  # between parallel lines
_SAMPLES = 12  # straight pieces of a bow
_LEGS = (26.0, 44.0, 62.0, 80.0, 110.0, 150.0, 200.0)
_TURNS = (0, 25, -25, 50, -50, 75, -75, 100, -100)


@dataclass(frozen=True)
class Mark:
    """A tensor or a dot, and the rectangle it fills."""

    vertex: Vertex
    box: Box


@dataclass(frozen=True)
class Stroke:
    """A line through some places; `kind` is ``link`` or that of a leg."""

    points: tuple[Spot, ...]
    kind: str = "link"


@dataclass(frozen=True)
class Writing:
    """Text in the middle of a rectangle; `kind` as for strokes."""

    text: str
    box: Box
    kind: str = "link"


@dataclass(frozen=True)
class Scene:
    """What one part of a product looks like."""

    shapes: tuple[Mark, ...] = ()
    strokes: tuple[Stroke, ...] = ()
    labels: tuple[Writing, ...] = ()

    @property
    def bounds(self) -> Box:
        """The smallest rectangle that holds everything."""
        ends = [Box(*p, *p) for stroke in self.strokes for p in stroke.points]
        return around([*(s.box for s in self.shapes), *(t.box for t in self.labels), *ends])

    def is_crossed(self, box: Box) -> bool:
        """Whether a line runs through a rectangle."""
        return any(box.is_crossed(*ends) for s in self.strokes for ends in pairwise(s.points))

    def moved(self, x: float, y: float) -> Scene:
        """The same, elsewhere."""
        box = lambda b: Box(b.left + x, b.top + y, b.right + x, b.bottom + y)
        return Scene(
            tuple(Mark(s.vertex, box(s.box)) for s in self.shapes),
            tuple(
                Stroke(tuple(Spot(p.x + x, p.y + y) for p in s.points), s.kind)
                for s in self.strokes
            ),
            tuple(Writing(t.text, box(t.box), t.kind) for t in self.labels),
        )


def scene_of(graph: Graph, part: Sequence[int]) -> Scene:
    """Put one part of a graph in its place: tensors first, then lines, then what is written."""
    places = places_of(graph, part)
    centres = {v: centre for v, (centre, _) in places.items()}
    shapes = {v: Mark(graph.vertices[v], _box(graph.vertices[v], centres[v])) for v in part}
    canvas = Canvas([s.box for s in shapes.values()])
    links = [link for link in graph.links if link.ends[0] in places]
    boxes = {v: shape.box for v, shape in shapes.items()}
    strokes = [Stroke(_path(links, k, boxes)) for k in range(len(links))]
    for stroke in strokes:
        canvas.draw(stroke.points)
    labels = [
        _put(canvas, Writing(link.label, spot))
        for link, stroke in zip(links, strokes, strict=True)
        if link.label
        for spot in [_free(canvas, _beside(stroke.points, _size(link.label)))]
    ]
    for v in part:
        vertex = shapes[v].vertex
        if vertex.node is None:
            spots = _about(centres[v], _size(vertex.label), vertex.width)
            kind = "open" if vertex.is_open else "link"
            labels.append(_put(canvas, Writing(vertex.label, _free(canvas, spots), kind)))
    for leg in graph.legs:
        if leg.vertex in places:
            stroke, label = _leg(canvas, leg, shapes[leg.vertex].box, places[leg.vertex][1])
            strokes.append(stroke)
            canvas.draw(stroke.points)
            labels.append(_put(canvas, label))
    return Scene(tuple(shapes.values()), tuple(strokes), tuple(labels))


def _box(vertex: Vertex, centre: Spot) -> Box:
    return Box.at(centre, vertex.width, HEIGHT if vertex.node else vertex.width)


def _size(text: str) -> tuple[float, float]:
    return width(text, FONT_SIZE), _LINE


def _put(canvas: Canvas, label: Writing) -> Writing:
    canvas.boxes.append(label.box)
    return label


def _free(canvas: Canvas, spots: Iterator[Box]) -> Box:
    """The first spot that nothing stands in, else that lines alone cross, else the first."""
    tries = list(spots)
    for is_good in (canvas.is_free, canvas.is_bare):
        if found := next(filter(is_good, tries), None):
            return found
    return tries[0]


def _path(links: Sequence[Link], k: int, boxes: dict[int, Box]) -> tuple[Spot, ...]:
    """A line between two borders, or one of several bows where two vertices have more."""
    first, last = (boxes[v] for v in sorted(links[k].ends))
    a, b = first.centre, last.centre
    length = math.dist(a, b)
    along = Spot((b.x - a.x) / length, (b.y - a.y) / length)
    alike = [j for j, link in enumerate(links) if {*link.ends} == {*links[k].ends}]
    bow = _BOW * (2 * alike.index(k) - len(alike) + 1)
    if not bow:
        return a.mean(b, first.reach(along) / length), b.mean(a, last.reach(along) / length)
    middle = a.mean(b)
    top = Spot(middle.x - bow * along.y, middle.y + bow * along.x)
    shares = [j / _SAMPLES for j in range(_SAMPLES + 1)]
    return tuple(a.mean(top, s).mean(top.mean(b, s), s) for s in shares)


def _beside(path: Sequence[Spot], size: tuple[float, float]) -> Iterator[Box]:
    """Spots along a line, on both of its sides."""
    for share in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74):
        at = share * (len(path) - 1)
        k = min(int(at), len(path) - 2)
        a, b = path[k], path[k + 1]
        spot, length = a.mean(b, at - k), math.dist(a, b)
        across = Spot((b.y - a.y) / length, -(b.x - a.x) / length)
        if across.y > 0 or (across.y == 0 and across.x < 0):
            across = Spot(-across.x, -across.y)  # above, or to the right
        for side in (1, -1):
            reach = side * (_reach(across, size) + 4)
            yield Box.at(Spot(spot.x + reach * across.x, spot.y + reach * across.y), *size)


def _about(centre: Spot, size: tuple[float, float], inner: float) -> Iterator[Box]:
    """Spots around a dot."""
    for more in (0, 8, 20):
        for angle in (90, 270, 0, 180, 45, 135, 315, 225):
            reach = inner / 2 + 3 + more
            reach += _reach(Spot(0, 0).towards(angle, 1), size)
            yield Box.at(centre.towards(angle, reach), *size)


def _reach(direction: Spot, size: tuple[float, float]) -> float:
    """How far a rectangle extends in a direction from its centre, as seen along it."""
    return abs(direction.x) * size[0] / 2 + abs(direction.y) * size[1] / 2


def _leg(canvas: Canvas, leg: Leg, box: Box, outward: float | None) -> tuple[Stroke, Writing]:
    """The leg and its label where they cover nothing: short, and straight out where possible."""
    straight = outward if outward is not None else 270.0 if leg.kind == "site" else 90.0
    tries = sorted(
        ((length, turn) for length in _LEGS for turn in _TURNS),
        key=lambda way: way[0] + 0.6 * abs(way[1]),
    )
    found = list(map(partial(_one_leg, leg, box, straight), tries))
    clear = [way for way in found if canvas.is_clear(*way[0].points)]
    for is_good in (canvas.is_free, canvas.is_bare):
        if way := next((way for way in clear if is_good(way[1].box)), None):
            return way
    return found[0]


def _one_leg(leg: Leg, box: Box, straight: float, way: tuple[float, int]) -> tuple[Stroke, Writing]:
    length, turn = way
    angle = straight + turn
    middle, direction = box.centre, Spot(0, 0).towards(angle, 1)
    out = box.reach(direction)
    start, end = middle.towards(angle, out + 0.5), middle.towards(angle, out + length)
    size = _size(leg.label)
    beyond = out + length + _reach(direction, size) + 6
    spot = Box.at(middle.towards(angle, beyond), *size)
    return Stroke((start, end), leg.kind), Writing(leg.label, spot, leg.kind)
