"""Pictures: valid, whole, legible and the same every time, whatever is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tdecomp as td
from tdecomp.adapters import CATALOGUE, Grid, bind, method
from tdecomp.drawing import Diagram, DrawnProduct, DrawnTensor, Panel, write_svg
from tdecomp.drawing.style import DARK, LIGHT, STYLE
from tdecomp.modes import Equation
from tests.drawing.svg import contrast, parsed, shapes, texts, view_box, words
from tests.formats.cases import CASES
from tests.tables import each

LOTR = "out r, layer r s, s in -> layer out in"
SIZES = {"out": 512, "in": 384, "layer": 6, "r": 4, "s": 5}


def bound(name):
    spec = method(name)
    labels = {"layer": 12, "proj": 3}
    rank = 4 if spec.open_ranks(labels) else None
    return bind(spec, Grid.full((768, 768), heads=12, **labels), rank=rank)


def fit():
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 6))
    return td.tucker2(x, rank=2, names="layer proj out in")


EVERYTHING = {
    **{f"format {k} {type(c).__name__}": c for k, c in enumerate(CASES)},
    **{f"row {name}": spec for name, spec in CATALOGUE.items()},
    **{f"bound {name}": bound(name) for name in CATALOGUE},
    "plan": td.plan(LOTR, SIZES),
    "fit": fit(),
    "fits": td.decomposition.Fits((fit(), fit())),
    "equation": Equation.parse(LOTR),
    "text": "a b, b c, c d, d a ->",
    "three ranks between two tensors": "o a b c, i a b c -> o i",
    "a number": "a, a ->",
    "no mode": " -> ",
    "apart": "a b, c d -> (a c) (b d)",
    "all with all": "a b c d e, a f g h i, b f j k l, c g j m n, d h k m o, e i l n o ->",
    "long train": td.TT.random((2,) * 23, 3),
}
drawn = each("what", EVERYTHING.values())


@drawn
def test_it_is_valid_and_fits_in_its_box(what):
    svg = td.draw(what).svg
    _, _, width, height = view_box(svg)
    for line in texts(svg):
        assert 0 <= line.left < line.right <= width, line
        assert 0 <= line.top < line.bottom <= height, line
    for shape in shapes(svg):
        assert 0 <= shape.left < shape.right <= width
        assert 0 <= shape.top < shape.bottom <= height


@drawn
def test_nothing_is_written_over_anything_else(what):
    svg = td.draw(what).svg
    lines, boxes = texts(svg), shapes(svg)
    for k, line in enumerate(lines):
        assert not [other for other in lines[k + 1 :] if line.meets(other)]
        inside = [box for box in boxes if line.meets(box)]
        assert all(box.left <= line.left and line.right <= box.right for box in inside)
    assert not [b for k, a in enumerate(boxes) for b in boxes[k + 1 :] if a.meets(b)]


@each("what", [*EVERYTHING.values()][::9])
def test_the_same_thing_gives_the_same_text(what):
    assert td.draw(what).svg == td.draw(what).svg


@each("fmt", CASES)
def test_every_array_mode_and_size_of_a_format_is_written(fmt):
    said = words(td.draw(fmt).svg)
    parts = fmt.parts if isinstance(fmt, td.Sum) else (fmt,)
    for part in parts:
        assert all(name in said for name in part.arrays)
        for mode, n in zip(part.modes, part.shape, strict=True):
            assert mode[0] == "(" or f"{mode} {n}" in said
        if isinstance(part.rank, tuple) and not isinstance(part, td.LowRank | td.Sum):
            assert all(f" {r}" in said for r in part.rank[1:-1])


@each("name", CATALOGUE)
def test_every_factor_letter_and_size_of_an_adapter_is_written(name):
    adapter = bound(name)
    lines = [line.text for line in texts(td.draw(adapter).svg)]
    sizes = dict(adapter.sizes) | {"site": adapter.grid.n_sites}
    for term in adapter.spec.terms:
        assert {o.factor for o in term.operands} <= {*lines}
        assert {f"{letter} {sizes[letter]}" for letter in term.letters} <= {*lines}
    assert all(f.name in lines for f in adapter.factors)


def test_every_site_leg_says_which_weights_a_factor_is_not_shared_over():
    lines = [t.text for t in texts(td.draw(method("loha")).svg)]
    assert lines.count("site") == 4  # every factor has a part for every weight
    lines = [t.text for t in texts(td.draw(method("lotr")).svg)]
    assert lines.count("site") == 1  # the core alone


def test_frozen_and_trained_differ_in_shape_and_line():
    svg = td.draw(method("lora_fa")).svg
    tensors = [r for r in parsed(svg).iter() if r.attrib.get("height") == "32"]
    corners = [tensor.attrib["rx"] for tensor in tensors]
    dashed = ["stroke-dasharray" in tensor.attrib for tensor in tensors]
    assert (corners, dashed) == (["16", "1"], [False, True])
    assert {"trained", "frozen"} <= {*words(svg).split()}
    assert "frozen" not in words(td.draw(method("lora")).svg)


def test_shared_indices_are_dots_and_ranks_are_lines():
    count = lambda svg, name: sum(node.tag.endswith(name) for node in parsed(svg).iter())
    chain = td.draw("i r, r s, s j -> i j").svg
    assert (count(chain, "circle"), count(chain, "polyline")) == (0, 4)
    cp = td.draw("i r, j r, k r -> i j k").svg
    assert (count(cp, "circle"), count(cp, "polyline")) == (1, 6)
    hadamard = td.draw("i j, i j -> i j").svg
    assert (count(hadamard, "circle"), count(hadamard, "polyline")) == (2, 4)
    bonds = td.draw("i a b, a b j -> i j").svg
    assert (count(bonds, "circle"), count(bonds, "polyline")) == (0, 4)


HOSTILE = [
    '<script>alert("x")</script>',
    "a & b",
    "]]>",
    "\x00\x1b[31m",
    "'\"",
    "名前" * 20,
    "x" * 500,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_whatever_is_in_them(name):
    product = DrawnProduct(
        nodes=(DrawnTensor(name, (name, "r")),), output=(name,), sizes={name: name}
    )
    svg = write_svg(Diagram((Panel(title=name, products=(product,), notes=(name,)),)))
    _, _, width, _ = view_box(svg)
    assert all(line.right <= width for line in texts(svg))
    assert "<script" not in svg
    assert {node.tag.rpartition("}")[2] for node in parsed(svg).iter()} == {
        *("svg", "title", "style", "rect", "text", "polyline", "circle")
    }


def test_text_is_legible_by_day_and_by_night():
    for colours in (LIGHT, DARK):
        for name in ("ink", "site", "quiet", "tensor"):
            assert contrast(colours[name], colours["ground"]) >= 4.5, name
        assert contrast(colours["on-tensor"], colours["tensor"]) >= 4.5
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")
    assert all(colour in STYLE for colour in DARK.values())


def test_a_notebook_shows_the_picture_and_the_line_of_text():
    html = fit()._repr_html_()
    assert "<svg" in html
    assert f"error {fit().error:.4g}" in html
    assert td.TT.random((2,) * 40, 2)._repr_html_() is None  # too many: a line of text
    assert parsed(td.draw(td.TT.random((2,) * 40, 2)).svg) is not None


def test_a_picture_reads_no_number():
    class Unread:
        ndim, dtype = 2, np.dtype(np.float32)

        def __init__(self, *shape):
            self.shape = shape

        def __array__(self, *args, **kwargs):
            raise AssertionError("a number was read")

    tucker = td.Tucker(
        ("layer", "out", "in"), Unread(2, 4, 48), (Unread(8, 2), Unread(64, 4), None)
    )
    assert "out 64" in words(td.draw(tucker).svg)
    assert "out 64" in replace(fit(), tensor=tucker)._repr_html_()


def test_save_writes_whole_files_and_replaces_only_pictures(tmp_path):
    picture, path = td.draw(LOTR), tmp_path / "lotr.svg"
    picture.save(path)
    assert path.read_text(encoding="utf-8") == picture.svg == picture._repr_svg_()
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(td.FileError, match="already exists"):
        picture.save(path)
    td.draw("a b -> a b").save(path, overwrite=True)
    assert "layer" not in path.read_text(encoding="utf-8")
    path.write_text("my notes")
    with pytest.raises(td.FileError, match="not an output of tdecomp"):
        picture.save(path, overwrite=True)


@pytest.mark.parametrize(
    ("given", "sizes", "said"),
    [
        (3, None, "a format, a fit, a plan, an adapter or an equation, got a int"),
        (td.TT, None, "got a TT"),
        ("out r", None, "->"),
        ("out r, r in -> out in", {"rr": 3}, "'rr'"),
        (method("lora"), {"r": 3}, "sizes= is for equations"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(given, sizes, said):
    with pytest.raises(td.ArgumentError, match=said):
        td.draw(given, sizes=sizes)
