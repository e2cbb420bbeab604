"""Charts of numbers against numbers, in the style of the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tdecomp.drawing import svg
from tdecomp.drawing.axes import Scale, brief_number
from tdecomp.drawing.geometry import Box, Spot
from tdecomp.drawing.style import CURVES
from tdecomp.drawing.text import cut, width

__all__ = ["Curve", "draw_chart"]

_WIDTH, _PLOT = 400.0, 250.0  # drawn for a phone; larger where there is room
_GROW = 1.5
_SIZE = 12.0
_ROW = 18.0
_DASHES = ("", "6 3", "2 3")
_SHAPES = 5
_LEAST = 1e-306  # on a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """Points that belong together; a None is a gap. `marked` ones are drawn larger."""

    name: str
    points: tuple[tuple[float, float] | None, ...]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Plot:
    """The rectangle that the curves are drawn in, and its axes."""

    box: Box
    x: Scale
    y: Scale

    def at(self, point: tuple[float, float]) -> Spot:
        return Spot(
            self.box.left + self.x.share(point[0]) * self.box.width,
            self.box.bottom - self.y.share(point[1]) * self.box.height,
        )


def draw_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    across: str,
    up: str,
    log_across: bool = False,
    log_up: bool = False,
) -> str:
    """Curves that differ in colour, marker and dashes, and below them which is which.

    Parameters
    ----------
    curves
        What is drawn. Points without a place on the axes (not finite; not positive on a logarithmic
        one) are left out.
    title
        What the chart shows, for those who do not see it.
    across, up
        What the axes say.
    log_across, log_up
        Whether the axes are logarithmic.
    """
    logs = (log_across, log_up)
    curves = [Curve(c.name, tuple(_kept(p, logs) for p in c.points), c.marked) for c in curves]
    points = [p for curve in curves for p in curve.points if p is not None]
    x = Scale.around((p[0] for p in points), log=log_across)
    y = Scale.around((p[1] for p in points), log=log_up)
    labels = [brief_number(n) for n in y.ticks()]
    left = 12 + max((width(label, _SIZE) for label in labels), default=0) + 6
    frame = _Plot(Box(left, 34, _WIDTH - 14, 34 + _PLOT), x, y)
    parts = _grid(frame, across, up)
    for k, curve in enumerate(curves):
        parts += _curve(frame, curve, k)
    rows, bottom = _legend(curves, frame.box.bottom + 48)
    return svg.document([*parts, *rows], width=_WIDTH, height=bottom, title=title, grow=_GROW)


def _kept(point: tuple[float, float] | None, logs: tuple[bool, bool]) -> tuple[float, float] | None:
    if point is None:
        return None
    good = all(
        math.isfinite(n) and (n >= _LEAST or not log) for n, log in zip(point, logs, strict=True)
    )
    return point if good else None


def _grid(frame: _Plot, across: str, up: str) -> list[str]:
    """Lines and numbers at the ticks, and what the axes mean."""
    box, parts = frame.box, list[str]()
    for number in frame.y.ticks():
        y = box.bottom - frame.y.share(number) * box.height
        parts.append(_faint(Spot(box.left, y), Spot(box.right, y)))
        parts.append(_text(brief_number(number), Spot(box.left - 6, y), "end"))
    free = 0.0
    for number in frame.x.ticks():
        x, label = box.left + frame.x.share(number) * box.width, brief_number(number)
        parts.append(_faint(Spot(x, box.top), Spot(x, box.bottom)))
        half = width(label, _SIZE) / 2
        if x - half > free and x + half < _WIDTH:
            parts.append(_text(label, Spot(x, box.bottom + 12), "middle"))
            free = x + half + 6
    parts.append(_text(across, Spot((box.left + box.right) / 2, box.bottom + 30), "middle"))
    parts.append(_text(up, Spot(12, 16), "start"))
    return parts


def _text(content: str, at: Spot, anchor: str) -> str:
    return svg.text(cut(content, 48), at, size=_SIZE, colour="quiet", anchor=anchor)


def _faint(a: Spot, b: Spot) -> str:
    return svg.path((a, b), stroke_width=1, **svg.line("faint"))


def _curve(frame: _Plot, curve: Curve, k: int) -> list[str]:
    """The line between neighbours, and a marker on every point."""
    parts: list[str] = []
    run: list[Spot] = []
    for point in (*curve.points, None):
        if point is not None:
            run.append(frame.at(point))
            continue
        if len(run) > 1:
            parts.append(_line(run, k))
        run = []
    for number, point in enumerate(curve.points):
        if point is not None:
            parts.append(_marker(frame.at(point), k, 6.5 if number in curve.marked else 4.0))
    return parts


def _colour(k: int) -> str:
    return CURVES[k % len(CURVES)]


def _line(run: Sequence[Spot], k: int) -> str:
    dash = _DASHES[k // (2 * _SHAPES) % len(_DASHES)]
    dashed = {"stroke_dasharray": dash} if dash else {}
    return svg.path(run, stroke_width=1.6, **svg.line(_colour(k)), **dashed)


def _marker(at: Spot, k: int, r: float) -> str:
    """Circle, square, two triangles and a diamond, full; then the same hollow."""
    hollow = k // _SHAPES % 2 == 1
    ink = svg.both("ground" if hollow else _colour(k), _colour(k))
    if k % _SHAPES == 0:
        return svg.element("circle", cx=at.x, cy=at.y, r=r, stroke_width=1.6, **ink)
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((-1.1, 0.9), (1.1, 0.9), (0, -1.1)),
        3: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        4: ((-1.1, -0.9), (1.1, -0.9), (0, 1.1)),
    }[k % _SHAPES]
    spots = [Spot(at.x + 0.9 * r * x, at.y + 0.9 * r * y) for x, y in corners]
    return svg.polygon(spots, stroke_width=1.6, **ink)


def _legend(curves: Sequence[Curve], y: float) -> tuple[list[str], float]:
    """Line, marker and name of every curve, in two columns where the names are short."""
    names = [cut(curve.name, 40) for curve in curves]
    widest = max((width(name, _SIZE) for name in names), default=0) + 56
    columns = 2 if 2 * widest <= _WIDTH - 12 else 1
    n_rows = math.ceil(len(names) / columns)
    parts: list[str] = []
    for k, name in enumerate(names):
        column, row = divmod(k, n_rows)
        at = Spot(12 + column * (_WIDTH - 12) / 2, y + row * _ROW)
        parts.append(_line((at, Spot(at.x + 30, at.y)), k))
        parts.append(_marker(Spot(at.x + 15, at.y), k, 4.0))
        parts.append(svg.text(name, Spot(at.x + 38, at.y), size=_SIZE, anchor="start"))
    return parts, y + n_rows * _ROW + 4
