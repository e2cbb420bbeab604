"""The methods and the grids of weights that the laws of adapters are tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from tdecomp.adapters import CATALOGUE, Bound, Grid, Spec, bind
from tdecomp.adapters.terms import SITE_MODES

_FEATURES = (
    Spec.parse("own places", "core: proj layer r, a: layer out r, b: r proj in", "normal"),
    Spec.parse("any order", "b: r layer out, a: in site r", ["zeros", "normal"]),
    Spec.parse("one for all", "b: out r, a: r in", ["zeros", "normal"]),
    Spec.parse("sum", "a: out r, b: r in - a: out r, c: site r in - e: layer out, f: in", "normal"),
    Spec.parse(
        "second letter",
        "*gap: layer m, b: m out r, a: m r in",
        {"gap": "banded(1)", "b": "zeros", "a": "normal"},
        where={"m": "layer"},
    ),
    Spec.parse(
        "leading part",
        "a: out r, a: in r, g: site r",
        "normal",
        modes={"a": "long r"},
        scale="min(step / 10, 1) * alpha / r",
        alpha="r / 2",
    ),
    Spec.parse(
        "long split",
        "u: site x r, v: y r, w: r short -> (x y) short",
        "normal",
        where={"x": "divisor(long, 4)"},
    ),
    Spec.parse(
        "turned and wrapped",
        "u: site long r, v: site r short -> long short",
        ["normal", "zeros"],
        wrap="rows and columns",
    ),
    Spec.parse(
        "split and wrapped",
        "b: site x y r, a: site r in -> (x y) in",
        ["zeros", "normal"],
        where={"x": "divisor(out, 4)"},
        wrap="rows",
    ),
    Spec.parse("heads", "b: head r, c: layer hd r, a: site r in -> (head hd) in", "normal"),
    Spec.parse(
        "cropped",
        "b: site x r, a: r y, *up: k, *down: g -> (k x) (g y)",
        {"b": "zeros", "a": "normal", "up": "ones", "down": "ones"},
        where={"x": "5", "y": "3", "k": "ceil(out / x)"},
        crop=("out", "in"),
    ),
    Spec.parse(
        "start taken off", "b: layer out r, a: site r in", "normal", base="residual", scale="3 / r"
    ),
    Spec.parse(
        "tail taken off",
        "u: site out r, v: site r in",
        {"u": "svd_u(1/2)", "v": "svd_vh(1/2)"},
        scale="2",
        base="truncate",
    ),
    Spec.parse(
        "partly shared bases",
        "*q: layer out r, core: site r s, *p: proj s in",
        {"q": "qr_q", "core": "zeros", "p": "svd_vh"},
        where={"s": "r"},
    ),
    Spec.parse("in its place", "w: site out in", "weight", base="replace"),
    Spec.parse("gated", "b: site out r, a: site r in", ["zeros", "normal"]).gated("r"),
)
"""What the language has, also where no published method needs it."""

METHODS: dict[str, Spec] = {**CATALOGUE, **{spec.name: spec for spec in _FEATURES}}


@dataclass(frozen=True)
class Weights:
    """Weights on a grid: their (out, in), the sizes of two site modes, and what else differs.

    `divides` says that every split of the methods has a solution.
    """

    shape: tuple[int, int]
    layer: int = 3
    proj: int = 2
    gaps: bool = False
    heads_in: bool = False
    divides: bool = True
    rank: int = 2


GRIDS = {
    "tall": Weights((12, 8)),
    "wide": Weights((8, 12)),
    "gaps": Weights((12, 8), gaps=True),
    "heads along in": Weights((8, 12), heads_in=True),
    "one projection": Weights((8, 12), proj=1),
    "one site": Weights((12, 8), layer=1, proj=1),
    "odd and tall": Weights((7, 5), divides=False),
    "odd and wide": Weights((5, 7), gaps=True, divides=False),
    "one row": Weights((1, 6), divides=False, rank=1),
    "one column": Weights((6, 1), divides=False, rank=1),
}


def bound(method: str, grid: str, *, name: str = "weights") -> Bound:
    """A method on a grid that has all the site modes it names."""
    spec, case = METHODS[method], GRIDS[grid]
    extra = [n for n in _site_modes(spec) if n not in ("layer", "proj")]
    few = case.layer * case.proj == 1
    sizes = {"layer": case.layer, "proj": case.proj} | dict.fromkeys(extra, 1 if few else 2)
    places = list(np.ndindex(*sizes.values()))
    if case.gaps:  # and in an order of their own
        places = [place for k, place in enumerate(places) if k % 3 != 1][::-1]
    modes = tuple((mode, tuple(range(n))) for mode, n in sizes.items())
    rank = case.rank if spec.open_ranks(sizes) else None
    return bind(
        spec,
        Grid(
            name=name,
            shape=case.shape,
            modes=modes,
            places=tuple(places),
            heads=2,
            heads_in=case.heads_in,
        ),
        rank=rank,
    )


def _site_modes(spec: Spec) -> list[str]:
    named = {*spec.weight_modes, *dict(spec.where), "site"}
    return [n for n in spec.letters if n in SITE_MODES and n not in named]


def fits(method: str, grid: str) -> bool:
    """Whether the grid is one for the method: its splits divide, or it has heads at all."""
    spec, case = METHODS[method], GRIDS[grid]
    if case.heads_in:
        return "head" in spec.weight_modes
    if method in ("block_lora", "rasa") and case.rank % 2:  # it divides its rank in two
        return False
    if method == "svft" and min(case.shape) == 1:  # nothing is beside the diagonal
        return False
    whole = (
        axis == side or side in spec.crop
        for side, axis in zip(spec.sides, spec.output, strict=True)
    )
    return case.divides or all(whole)


def cases(*grids: str, where: Callable[[Spec], bool] = lambda spec: True) -> Iterable:
    """Parameters (method, grid): every method on every grid, or on those named."""
    return [
        pytest.param(method, grid, id=f"{method} {grid}".replace(" ", "_"))
        for method in METHODS
        for grid in grids or GRIDS
        if fits(method, grid) and where(METHODS[method])
    ]


def methods(*grids: str) -> pytest.MarkDecorator:
    """Run a law for every method, with the grids that fit it: all, or those among some named."""
    rows = [(method, [g for g in grids or GRIDS if fits(method, g)]) for method in METHODS]
    return pytest.mark.parametrize(
        ("method", "grids"), [row for row in rows if row[1]], ids=lambda v: str(v).replace(" ", "_")
    )


def weights(bound: Bound) -> np.ndarray:
    """Base weights, ``(site, out, in)``."""
    return np.random.default_rng(1).standard_normal((bound.grid.n_sites, *bound.grid.shape))


def start(bound: Bound, seed: int = 0) -> dict[str, np.ndarray]:
    """How the factors start, on the base weights; what must be given is random."""
    rng = np.random.default_rng(2)
    given = {
        f.name: rng.standard_normal(bound.shapes[f.name])
        for f in bound.factors
        if f.init.kind == "given"
    }
    return bound.start(weights(bound).__getitem__, seed=seed, given=given)


def filled(bound: Bound, seed: int = 0) -> dict[str, np.ndarray]:
    """Every factor full of random numbers, whatever it starts as."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in bound.shapes.items()}
