"""Costs as polynomials are those of the plans."""

from __future__ import annotations

from tdecomp._plan import plan
from tdecomp.adapters import CATALOGUE
from tests.adapters.cases import bound, fits
from tests.tables import each
from theory.flops import applied, flop_count
from theory.formulas import at, size_of


@each("name", CATALOGUE)
def test_flops_of_every_row_at_every_size(name):
    grid = "tall" if fits(name, "tall") else "heads along in"
    b = bound(name, grid)
    sides = {"out": b.grid.shape[0], "in": b.grid.shape[1], "long": 12, "short": 8}
    for equation in applied(b.spec):
        for tokens in (1, 500):
            sizes = dict(b.sizes) | sides | {"token": tokens}
            planned = plan(equation, sizes)
            count = flop_count(equation, sizes)
            assert count.is_polynomial()
            assert at(count, sizes) == planned.flops


def test_lora_costs_two_flops_a_number_and_token():
    (equation,) = applied(CATALOGUE["lora"])
    few = flop_count(equation, {"out": 64, "in": 64, "r": 4, "token": 100})
    r, token, sides = size_of("r"), size_of("token"), size_of("out") + size_of("in")
    assert (few - 2 * r * token * sides).expand() == 0
