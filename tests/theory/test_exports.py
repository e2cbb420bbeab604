"""LoRA pairs are as wide as the narrowest cut says, and sharing pays where the counts say."""

from __future__ import annotations

import pytest

from tdecomp.adapters import CATALOGUE, Grid, bind, method
from tests.adapters.cases import bound, cases, filled
from tests.tables import each
from theory.counts import trainable_count
from theory.exports import MINILM, exported_count, lora_rank, lotr_break_even
from theory.formulas import at, size_of

NARROWER = ("fact_tt", "fact_tk", "qa_lora")
"""Rows with one square, or one group of inputs, on weights as small as these: see `lora_rank`."""


def is_published(spec):
    return spec in CATALOGUE.values() and spec.name not in NARROWER


@each(("name", "grid"), cases("tall", "wide", "heads along in", where=is_published))
def test_pairs_are_as_wide_as_the_cut(name, grid):
    b = bound(name, grid)
    sides = {"out": b.grid.shape[0], "in": b.grid.shape[1]}
    sizes = dict(b.sizes) | sides | {"long": 12, "short": 8}
    left, right = b.tensor(filled(b)).pair(0)
    assert left.shape[1] == right.shape[0] == at(lora_rank(b.spec), sizes)


def test_export_of_fact_is_narrow_once_its_weights_are_one_square():
    b = bind(method("fact_tt"), Grid.full((12, 8), layer=2), 2)
    assert b.sizes["bo"] == b.sizes["bi"] == 1
    assert b.tensor(filled(b)).pair(0)[0].shape[1] == 2


@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("sites", [2, 18, 96])
def test_lotr_up_to_its_break_even_trains_less_and_exports_more(k, sites):
    sizes = {"out": 384, "in": 384, "site": sites, "k": k}
    edge = at(lotr_break_even(), sizes)
    grid = Grid.full((384, 384), layer=sites)
    lora = bind(method("lora"), grid, k).n_trainable
    below, above = (bind(method("lotr"), grid, int(edge) + more).n_trainable for more in (0, 1))
    assert below <= lora < above
    assert edge > k
    ranks = {"r": int(edge), "s": int(edge)}
    exported = [
        at(exported_count(method(name)), sizes | rank)
        for name, rank in (("lotr", ranks), ("lora", {"r": k}))
    ]
    assert exported == [sites * 768 * int(edge), sites * 768 * k]


def test_the_break_even_solves_the_equation_of_the_counts():
    r, k = size_of("r"), size_of("k")
    lotr = trainable_count(method("lotr")).subs(size_of("s"), r)
    lora = trainable_count(method("lora")).subs(r, k)
    assert (lotr - lora).subs(r, lotr_break_even()).simplify() == 0
    assert int(at(lotr_break_even(), MINILM)) == 13
