"""What a user holds prints as one line, made of shapes alone."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._brief import brief_dtype, brief_list, brief_ranks
from tdecomp.adapters import CATALOGUE, Grid, bind, method
from tdecomp.adapters.lora import LoRAModule
from tdecomp.formats import FORMATS
from tdecomp.modes import Equation
from tdecomp.stack import find_sites
from tests.formats.cases import space
from tests.tables import each

WEIGHTS = {f"h.{i}.att.{p}.weight": np.zeros((6, 4)) for i in range(3) for p in "qk"}
LOTR = Equation.parse("out r, layer r s, s in -> layer out in")


class Unread:
    """Looks like an array and has no number in it."""

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, *shape):
        self.shape = shape

    def __array__(self, *args, **kwargs):
        raise AssertionError("a number was read")


def tucker():
    factors = (Unread(8, 2), Unread(64, 4), None)
    return td.Tucker(("layer", "out", "in"), Unread(2, 4, 48), factors)


def grid():
    return Grid.full((64, 48), layer=12, proj=2)


LINES = [
    (tucker(), "Tucker(layer 8, out 64, in 48; rank 2,4,48; 656 numbers; f32)"),
    (
        td.LowRank(("layer", "out", "in"), (3,), (1, 0, 4), Unread(6, 5), Unread(5), Unread(5, 7)),
        "LowRank(layer 3, out 6, in 7; rank 1,0,4; 70 numbers; f32)",
    ),
    (
        td.LowRank(
            ("m", "out", "in"), (9,), (1, 2, 3) * 3, Unread(6, 18), Unread(18), Unread(18, 7)
        ),
        "LowRank(m 9, out 6, in 7; ranks 1 to 3, 18 in all; 252 numbers; f32)",
    ),
    (
        td.Network(LOTR, (Unread(3, 2), Unread(5, 2, 2), np.ones((2, 4)))),
        f"Network(layer 5, out 3, in 4; {LOTR}; rank 2,2; 34 numbers; f32, f64)",
    ),
    (
        td.Sum((tucker(), tucker())),
        "Sum(layer 8, out 64, in 48; Tucker of rank 2,4,48 + Tucker of rank 2,4,48; 1,312 numbers;"
        " f32)",
    ),
    (td.Stack.from_arrays(WEIGHTS)[0], "Stack(att.6x4; layer 3, proj 2, out 6, in 4)"),
    (
        td.Stack.from_arrays(WEIGHTS)[0].group,
        "Group(att.6x4; layer 3, proj 2, out 6, in 4; full)",
    ),
    (
        find_sites({name: (6, 4) for name in WEIGHTS}, {}).sites[0],
        "Site(h.0.att.q; layer 0, proj q; out 6, in 4)",
    ),
    (
        find_sites({"x.bias": (6,)} | {name: (6, 4) for name in WEIGHTS}, {}),
        "Survey(generic; 6 sites, 1 other tensor, 0 notes)",
    ),
    (LOTR, f"Equation({LOTR})"),
    (method("lora"), "Spec(lora: b: site out r, a: site r in -> out in)"),
    (method("lora_fa").factors[1], "Factor(*a: site r in; uniform(1/sqrt(in)))"),
    (method("dcft").terms[0], "Term(b: site p r, a: site r q, kernel: site x y)"),
    (grid(), "Grid(weights; layer 12, proj 2, out 64, in 48)"),
    (
        Grid(name="few", shape=(64, 48), modes=(("layer", (0, 1, 2)),), places=((0,), (2,))),
        "Grid(few; layer 3, out 64, in 48; 2 weights, 1 gap)",
    ),
    (
        bind(method("lotr"), grid(), 2),
        "Bound(lotr on weights; r 2, s 2; 320 trained, 0 frozen)",
    ),
    (
        td.plan(LOTR, {"out": 512, "in": 512, "layer": 6, "r": 4, "s": 4}),
        "Plan(2 steps; flops 1.27e+07; peak 1.57e+06 numbers)",
    ),
    (
        LoRAModule(
            module="h.0.q",
            a=Unread(4, 48),
            b=Unread(64, 4),
            transpose=False,
            departure=0.0,
            energy=1.0,
        ),
        "LoRAModule(h.0.q; b f32[64,4], a f32[4,48])",
    ),
]


@pytest.mark.parametrize(("held", "line"), LINES, ids=[line.split("(")[0] for _, line in LINES])
def test_prints_as_one_line(held, line):
    assert repr(held) == line


@pytest.mark.parametrize("fmt", space(), ids=lambda fmt: type(fmt).__name__)
def test_every_format_tells_its_modes_numbers_and_dtype(fmt):
    line = repr(fmt)
    assert line.startswith(f"{type(fmt).__name__}(layer 4, ")
    assert line.endswith(f"; {fmt.n_params} numbers; f64)")
    assert len(line) < 160
    assert "\n" not in line


def test_every_format_was_printed():
    assert {type(fmt).__name__ for fmt in space()} == FORMATS.keys()


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_arrays_of_other_libraries(library):
    xp = pytest.importorskip(library)
    for fmt in space():
        own = fmt.with_arrays({k: xp.asarray(a.astype("float32")) for k, a in fmt.arrays.items()})
        assert repr(own) == repr(fmt).replace("f64", "f32")


def test_inside_of_compiled_functions_and_with_stand_ins():
    jax, lines = pytest.importorskip("jax"), []
    fmt = space()[0]
    jax.jit(lambda x: lines.append(repr(x)))(fmt)
    assert lines == [repr(fmt).replace("f64", "f32")]
    assert repr(jax.tree.map(lambda a: None, fmt)).startswith("Tucker(layer out in; ")


@each("name", CATALOGUE)
def test_every_row_of_the_catalogue(name):
    assert repr(method(name)) == f"Spec({name}: {method(name).equation})"


def test_what_is_long_is_cut_in_the_middle():
    assert brief_list([*"abcdefgh"], most=5) == ["a", ".. 5 more ..", "g", "h"]
    assert brief_ranks(range(1, 100), per_site=True) == "ranks 1 to 99, 4,950 in all"
    assert brief_ranks([7] * 9, per_site=True) == "rank 7 each, 63 in all"
    assert brief_ranks((), per_site=True) == ""


@pytest.mark.parametrize(
    ("dtype", "short"),
    [("float32", "f32"), ("bfloat16", "bf16"), ("uint8", "u8"), ("bool", "bool"), (">f8", "f64")]
    + [("float8_e4m3fn", "f8_e4m3fn"), ("complex128", "c128"), ("torch.int64", "i64")],
)
def test_dtypes(dtype, short):
    known = dtype if "." in dtype or dtype in ("bfloat16", "float8_e4m3fn") else np.dtype(dtype)
    assert brief_dtype(known) == short


def test_fits_and_what_is_seen_of_the_data():
    x = np.random.default_rng(0).standard_normal((3, 6, 4))
    fit = td.tucker(x, rank=2, names="layer out in")
    assert repr(fit) == f"Fit(error {fit.error:.4g}; {fit.tensor!r})"
    fits = td.decompose([x, x], td.svd, rank=1)
    assert repr(fits) == f"Fits(2 fits; error {fits.error:.4g}; {fits.n_params} numbers)"
    found = td.explore(x, [40, 60], names="layer out in")
    assert repr(found).startswith(f"Exploration({len(found.rows)} candidates; least errors: ")
    assert f"{found.winners[0].name} {found.winners[0].error:.3g} within 40" in repr(found)
    assert repr(td.ranks(x, names="layer out in")) == (
        "Spectra(singular values of layer 3, out 6, in 4)"
    )
