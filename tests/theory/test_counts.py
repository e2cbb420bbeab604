"""The formulas count what the formats and the adapters store."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from tdecomp.adapters import CATALOGUE, Grid, bind, method
from tests.adapters.cases import GRIDS, bound, fits
from tests.adapters.test_counts import CLOSED_FORMS
from tests.laws.cases import METHODS, SHAPES, planted
from tests.tables import each
from theory.counts import break_even_rank, dense_count, letter_sizes, stored_count, trainable_count
from theory.formulas import at, formula, size_of

RESOLVED = {
    "lora": "site * r * (out + in)",
    "singlora": "site * r * max(out, in)",
    "denselora": "proj * r * (out + in) + site * r ** 2",
    "lorta": "r * (in + out / head + head + proj + layer)",
    "lorta_public": "r * (out + divisor(in, 64) + in / divisor(in, 64) + proj + layer)",
    "tenslora_att": "site * (in * r + out / head * s + head * t + r * s * t)",
    "tenslora_qkv": "layer * (in * r + out * s + proj * u + r * s * u)",
    "tenslora_depth": "proj * (in * r + out * s + layer * v + r * s * v)",
    "tenslora_att_qkv": "layer * (in * r + out / head * s + head * t + proj * u + r * s * t * u)",
    "tenslora_att_depth": "proj * (in * r + out/head * s + head * t + layer * v + r * s * t * v)",
    "tenslora_qkv_depth": "in * r + out * s + proj * u + layer * v + r * s * u * v",
    "tenslora_att_qkv_depth": (
        "in * r + out / head * s + head * t + proj * u + layer * v + r * s * t * u * v"
    ),
    "tenslora_att_cp": "site * r * (in + out / head + head)",
    "tenslora_qkv_cp": "layer * r * (in + out + proj)",
    "tenslora_depth_cp": "proj * r * (in + out + layer)",
    "tenslora_att_qkv_cp": "layer * r * (in + out / head + head + proj)",
    "tenslora_att_depth_cp": "proj * r * (in + out / head + head + layer)",
    "tenslora_qkv_depth_cp": "r * (in + out + proj + layer)",
    "tenslora_att_qkv_depth_cp": "r * (in + out / head + head + proj + layer)",
    "loha": "2 * site * r * (out + in)",
    "lokr_full": (
        "site * (divisor(out, sqrt(out)) * divisor(in, sqrt(in))"
        " + out / divisor(out, sqrt(out)) * in / divisor(in, sqrt(in)))"
    ),
    "lokr": (
        "site * (divisor(out, sqrt(out)) * divisor(in, sqrt(in))"
        " + r * out / divisor(out, sqrt(out)) + r * in / divisor(in, sqrt(in)))"
    ),
    "dcft": ("site * (r * (out + in) / divisor(gcd(out, in), 8) + divisor(gcd(out, in), 8) ** 2)"),
    "kradapter": (
        "site * min(out, in) * (floor(sqrt(min(out, in)))"
        " + ceil(max(out, in) / floor(sqrt(min(out, in)))))"
    ),
    "surm": "site * (out + in)",
    "more": "site * r * (out + in)",
    "quanta": "3 * site * ceil(max(out, in) ** (1 / 3) - 1 / 1000000) ** 4",
    "loretta_rep": (
        "site * (t * (part(in, 3, 1) + t * part(in, 3, 2) + t * part(in, 3, 3) + 2 * r)"
        " + t * (t * part(out, 3, 1) + t * part(out, 3, 3) + part(out, 3, 2)))"
    ),
    "melora": "site * r * (out + in)",
    "gralora": "site * r * (out + in)",
    "gralora_hybrid": "site * (r + t) * (out + in)",
    "block_lora": "site * r * (out + in / 2)",
    "bd_lora": "site * r * (out + in / divisor(gcd(in, r), 4))",
    "bd_lora_out": "site * r * (out / divisor(gcd(out, r), 4) + in)",
    "qa_lora": "site * r * (out + in / divisor(in, 16))",
    "miss": "site * r * out",
    "miss_mini": "site * r * divisor(out, 64)",
    "bat": "site * r * out",
    "mora": "site * round(sqrt((out + in) * r)) ** 2",
    "mora_rope": "site * (2 * floor(round(sqrt((out + in) * r)) / 2)) ** 2",
    "c3a": "site * out * in / divisor(gcd(out, in), 256)",
    "fourierft": "site * k",
    "waveft": "site * k",
    "randlora": "site * ceil(min(out, in) / r) * (r + min(out, in))",
    "ffn_block_dense": "site * r * (out + in / divisor(gcd(in, r), 4))",
    "svft": "site * (3 * min(out, in) - 2)",
    "lorma": "2 * site * r * out",
    "ia3": "site * out",
    "ia3_in": "site * in",
    "dora": "site * (r * (out + in) + out)",
    "edora": "site * (r ** 2 + out)",
    "bora": "site * (r * (out + in) + out + in)",
    "map": "site * (r * (out + in) + 2)",
}
"""Trainable numbers in sizes and open ranks alone, as the papers say them."""


@each("shape", SHAPES)
@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.name != "svd"])
def test_the_formula_counts_the_stored_numbers(method, shape):
    tensor = method(planted(shape), rank=2).tensor
    arrays = list(tensor.arrays.values())
    sizes = tensor.equation.sizes([a.shape for a in arrays])
    assert at(stored_count(tensor.equation), sizes) == tensor.n_params
    assert at(dense_count(tensor.equation), sizes) == np.prod(shape)


def test_every_row_has_a_closed_form():
    """Those in letters are checked beside the adapters, those in sizes here."""
    assert RESOLVED.keys() | CLOSED_FORMS.keys() == CATALOGUE.keys()


@each("name", RESOLVED)
def test_the_equation_and_its_rules_imply_the_closed_form(name):
    count = trainable_count(method(name), resolve=True)
    assert sympy.expand(count - formula(RESOLVED[name])) == 0


@each("name", CATALOGUE)
def test_counts_in_sizes_alone_are_those_of_the_adapter(name):
    """Of every row on every grid that it fits, from the sizes of the grid and the open ranks."""
    spec = CATALOGUE[name]
    count = trainable_count(spec, resolve=True)
    grids = [grid for grid in GRIDS if fits(name, grid)]
    assert grids
    for grid in grids:
        b = bound(name, grid)
        sides = b.grid.shape[:: -1 if b.grid.heads_in else 1]  # heads divide `out` in the formula
        sizes = {"out": sides[0], "in": sides[1], "site": b.grid.n_sites, "head": 2}
        sizes |= {mode: len(labels) for mode, labels in b.grid.modes}
        sizes |= {rank: b.numbers[rank] for rank in spec.open_ranks(sizes)}
        assert at(count, sizes) == b.n_trainable, grid


def test_lotr_counts_of_its_paper():
    """LoTR (arXiv 2402.01376): 2 d r + L r² for square weights."""
    d, r, layers = size_of("d"), size_of("r"), size_of("layer")
    count = stored_count("out r, layer r s, in s -> layer out in")
    square = at(count, {"out": d, "in": d, "s": r})
    assert square.equals(2 * d * r + layers * r**2)


def test_break_even_is_where_the_counts_meet():
    shared, lora = (
        "out r, layer r s, in s -> layer out in",
        "layer out k, layer k in -> layer out in",
    )
    rank = break_even_rank(shared, lora, "k")
    sizes = {"out": 7, "in": 5, "layer": 3, "r": 2, "s": 4}
    meet = at(rank, sizes)
    assert at(stored_count(lora), sizes | {"k": meet}) == at(stored_count(shared), sizes)
    grid = Grid.full((7, 5), layer=3)
    trained = bind(method("lotr"), grid, {"r": 2, "s": 4}).n_trainable
    below, above = (bind(method("lora"), grid, int(meet) + k).n_trainable for k in (0, 1))
    assert below <= trained < above


@pytest.mark.parametrize(
    ("text", "values", "found"),
    [
        ("round(x)", {"x": sympy.Rational(5, 2)}, 2),  # as Python rounds: to the even one
        ("round(x)", {"x": sympy.Rational(7, 2)}, 4),
        ("round(sqrt(x))", {"x": 20}, 4),
        ("gcd(x, y)", {"x": 12, "y": 18}, 6),
        ("part(x, 3, 2)", {"x": 384}, 8),
        ("divisor(x, sqrt(y))", {"x": 12, "y": 26}, 4),
        ("max(1, (x // y) * (1 - min(1, x % y)))", {"x": 12, "y": 4}, 3),
    ],
)
def test_formulas_have_the_values_of_the_core(text, values, found):
    assert at(formula(text), values) == found


def test_rules_are_written_out_in_sizes():
    sizes = letter_sizes(method("gralora"))
    assert sizes["s"] == size_of("r") / 2
    assert sizes["x"] == size_of("out") / 2
