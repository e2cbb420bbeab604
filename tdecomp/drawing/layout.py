"""Where the tensors of a product stand: a chain for trains, a star around a core, else a ring.

Tensors and dots are the points of a graph. A rank of two tensors is a line between them; a rank of
more, or an open mode of more than one, is a dot with a line to each. Open modes of one tensor, and
site modes of any, are legs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise

from tdecomp.drawing.geometry import Spot
from tdecomp.drawing.network import DrawnProduct, DrawnTensor
from tdecomp.drawing.text import cut, width

__all__ = ["FONT_SIZE", "HEIGHT", "Graph", "Leg", "Link", "Vertex", "graph_of", "places_of"]

FONT_SIZE = 13.0
HEIGHT = 32.0  # of a tensor
_DOT = 10.0
_GAP = 46.0  # between neighbours, at least
_IN_A_ROW = 5
_ACROSS = 12.0  # of radius for every line across a ring
_ROWS = 150.0  # from one row of a long chain to the next


@dataclass(frozen=True)
class Vertex:
    """A tensor, or a dot where more than two tensors meet."""

    label: str
    width: float
    node: DrawnTensor | None = None
    is_open: bool = False


@dataclass(frozen=True)
class Link:
    """A line between two vertices; that to a dot has no label, the dot has it."""

    ends: tuple[int, int]
    label: str = ""


@dataclass(frozen=True)
class Leg:
    """A line that ends free: an open mode, a site mode, or a name summed over one tensor alone."""

    vertex: int
    label: str
    kind: str


@dataclass(frozen=True)
class Graph:
    """A product as vertices, links and legs."""

    vertices: tuple[Vertex, ...]
    links: tuple[Link, ...]
    legs: tuple[Leg, ...]

    def neighbours(self, vertex: int) -> set[int]:
        """Vertices that a line leads to."""
        return {n for link in self.links if vertex in link.ends for n in link.ends} - {vertex}

    def parts(self) -> list[list[int]]:
        """The vertices, those together that lines join, in order of appearance."""
        left, found = list(range(len(self.vertices))), []
        while left:
            part = self.walk(left[0])
            left = [v for v in left if v not in part]
            found.append(part)
        return found

    def walk(self, start: int) -> list[int]:
        """All that lines lead to from a vertex, depth first."""
        seen: list[int] = []
        waiting = [start]
        while waiting:
            vertex = waiting.pop()
            if vertex not in seen:
                seen.append(vertex)
                waiting += sorted(self.neighbours(vertex) - {*seen}, reverse=True)
        return seen


def graph_of(product: DrawnProduct) -> Graph:
    """Vertices, links and legs of a product, names in order of appearance."""
    vertices = [_tensor(node) for node in product.nodes]
    links: list[Link] = []
    legs: list[Leg] = []
    for name in dict.fromkeys(n for node in product.nodes for n in node.modes):
        carriers = [k for k, node in enumerate(product.nodes) if name in node.modes]
        label, is_open = cut(product.label(name)), name in product.output
        if name in product.sites:
            legs += [Leg(k, label, "site") for k in carriers]
        elif len(carriers) == 1 and (is_open or product.sizes.get(name) != "1"):
            legs.append(Leg(carriers[0], label, "open" if is_open else "summed"))
        elif len(carriers) == 2 and not is_open:
            links.append(Link((carriers[0], carriers[1]), label))
        elif len(carriers) > 1:
            links += [Link((k, len(vertices))) for k in carriers]
            vertices.append(Vertex(label, _DOT, is_open=is_open))
    return Graph(tuple(vertices), tuple(links), tuple(legs))


def _tensor(node: DrawnTensor) -> Vertex:
    label = cut(node.name)
    return Vertex(label, max(HEIGHT + 8, width(label, FONT_SIZE) + 18), node)


def places_of(graph: Graph, part: Sequence[int]) -> dict[int, tuple[Spot, float | None]]:
    """Where each vertex of one part stands, and the direction in which its legs point.

    A direction of None: open modes down and site modes up.
    """
    if len(part) == 1:
        return {part[0]: (Spot(0, 0), None)}
    near = {v: graph.neighbours(v) for v in part}
    pairs = sum(map(len, near.values())) // 2
    if pairs == len(part) - 1 and max(map(len, near.values())) <= 2:
        start = next(v for v in part if len(near[v]) == 1)
        return _chain(graph, graph.walk(start))
    hubs = [v for v in part if len(near[v]) == len(part) - 1]
    if hubs and pairs == len(part) - 1:
        return _star(graph, hubs[0], [v for v in sorted(part) if v != hubs[0]])
    return _ring(graph, part)


def _chain(graph: Graph, order: Sequence[int]) -> dict[int, tuple[Spot, float | None]]:
    """One row; a longer chain in rows of equal length, read to and fro."""
    n_rows = math.ceil(len(order) / _IN_A_ROW)
    n_columns = math.ceil(len(order) / n_rows)
    steps = [_distance(graph, a, b) for a, b in pairwise(order)]
    if n_rows > 1:
        steps = [max(steps)] * (n_columns - 1)
    columns = [0.0, *accumulate(steps)]
    places: dict[int, tuple[Spot, float | None]] = {}
    for k, vertex in enumerate(order):
        row, column = divmod(k, n_columns)
        column = n_columns - 1 - column if row % 2 else column
        places[vertex] = Spot(columns[column], row * _ROWS), None
    return places


def _distance(graph: Graph, a: int, b: int) -> float:
    """From centre to centre of two neighbours, so that the label of their line has room."""
    labels = [width(k.label, FONT_SIZE) for k in graph.links if set(k.ends) == {a, b}]
    return (graph.vertices[a].width + graph.vertices[b].width) / 2 + max(_GAP, *labels, 0) + 12


def _star(graph: Graph, hub: int, others: Sequence[int]) -> dict[int, tuple[Spot, float | None]]:
    """One vertex in the middle, from the left around by way of the top."""
    radius = max(_radius(graph, others), *(_distance(graph, hub, v) for v in others))
    return {hub: (Spot(0, 0), 90.0)} | _circle(others, radius)


def _ring(graph: Graph, part: Sequence[int]) -> dict[int, tuple[Spot, float | None]]:
    """In the order of a walk; larger where many lines cross the middle."""
    n_across = sum(link.ends[0] in part for link in graph.links) - len(part)
    return _circle(part, max(_radius(graph, part), _ACROSS * n_across))


def _radius(graph: Graph, around: Sequence[int]) -> float:
    """So that neighbours on the circle have room between them."""
    widest = max(_distance(graph, a, b) for a, b in combinations(around, 2))
    return max(70.0, 0.5 * widest / math.sin(math.pi / max(len(around), 2)))


def _circle(vertices: Sequence[int], radius: float) -> dict[int, tuple[Spot, float | None]]:
    angles = {v: 180 + 360 * k / len(vertices) for k, v in enumerate(vertices)}
    return {v: (Spot(0, 0).towards(angle, radius), angle) for v, angle in angles.items()}
