"""Charts: numbers at their places, legible, and nothing drawn outside."""

from __future__ import annotations

import math

import pytest

from tdecomp.drawing import Curve, draw_chart
from tdecomp.drawing.axes import Scale
from tdecomp.drawing.style import CURVES, DARK, LIGHT
from tests.drawing.svg import contrast, parsed, texts, view_box, words

ERRORS = Curve("svd", ((1e3, 0.9), (1e4, 0.5), None, (1e6, 0.1)), frozenset({1}))


def chart(*curves, **options):
    words = {"title": "errors", "across": "stored numbers", "up": "relative error"}
    return draw_chart(curves, **(words | options))


def many(n):
    return [Curve(f"format {k}", ((1.0 + k, 0.5), (20.0, 0.1 * k + 0.01))) for k in range(n)]


@pytest.mark.parametrize(
    "svg",
    [
        chart(ERRORS, log_across=True),
        chart(ERRORS, log_across=True, log_up=True),
        chart(*many(35)),
        chart(),
        chart(Curve("one point", ((3.0, 0.0),))),
        chart(Curve("x" * 300, ((1.0, 2.0),)), across="a" * 300, up="<b>&"),
        chart(Curve("tiny", ((1.0, 1e-300), (2.0, 1e300))), log_up=True),
    ],
    ids=["log", "log log", "many", "none", "point", "long", "wide"],
)
def test_everything_is_inside_and_nothing_is_written_over(svg):
    _, _, width, height = view_box(svg)
    lines = texts(svg)
    for k, line in enumerate(lines):
        assert 0 <= line.left < line.right <= width, line
        assert 0 <= line.top < line.bottom <= height, line
        assert not [other for other in lines[k + 1 :] if line.meets(other)], line


def test_points_stand_where_the_axes_say():
    svg = chart(ERRORS, log_across=True)
    circles = [n for n in parsed(svg).iter() if n.tag.endswith("circle")][:3]
    across = [float(c.attrib["cx"]) for c in circles]
    assert across[2] - across[1] == pytest.approx(2 * (across[1] - across[0]), abs=0.2)
    up = [float(c.attrib["cy"]) for c in circles]
    assert (up[1] - up[0]) / (up[2] - up[0]) == pytest.approx(0.5, abs=0.01)
    radii = [float(c.attrib["r"]) for c in circles]
    assert radii[1] > radii[0] == radii[2]
    assert {"svd", "stored", "relative", "1k", "1M"} <= {*words(svg).split()}


def test_what_has_no_place_on_the_axes_is_left_out():
    points = ((1.0, 0.0), (2.0, math.nan), (3.0, -1.0), (4.0, math.inf), (5.0, 1.0))
    count = lambda svg: sum(n.tag.endswith("circle") for n in parsed(svg).iter())
    assert count(chart(Curve("c", points), log_up=True)) == 1 + 1  # and one in the legend
    assert count(chart(Curve("c", points))) == 3 + 1


def test_thirty_formats_differ_without_their_colours():
    """In shape, in whether they are full, or in dashes."""
    nodes = list(parsed(chart(*many(30))).iter())
    lines = [n.attrib for n in nodes if n.tag.endswith("polyline")][-30:]
    markers = [n.attrib for n in nodes if n.tag.endswith(("circle", "polygon"))][-30:]
    looks = set()
    for line, marker in zip(lines, markers, strict=True):
        x, y = (float(n) for n in line["points"].split()[0].split(","))
        corners = [tuple(map(float, p.split(","))) for p in marker.get("points", "").split()]
        shape = tuple((round(px - x - 15), round(py - y)) for px, py in corners)
        looks.add((shape, "td-fill-ground" in marker["class"], line.get("stroke-dasharray")))
    assert len(looks) == 30


def test_curves_are_seen_by_day_and_by_night():
    for colours in (LIGHT, DARK):
        assert all(contrast(colours[name], colours["ground"]) >= 4.5 for name in CURVES)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (0.93, 0.97, False), (-5, 2e9, False), (1, 1e9, True), (30, 45, True)],
)
def test_ticks_are_few_round_and_on_the_axis(low, high, log):
    scale = Scale.around([low, high], log=log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(0 <= scale.share(t) <= 1 for t in ticks)
    assert ticks == sorted(ticks)
    assert 0 < scale.share(low) < scale.share(high) < 1
