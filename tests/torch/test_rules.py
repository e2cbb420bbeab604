"""Base rules, wraps and faster products are rows of tables: the forward knows none by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tdecomp.adapters import CATALOGUE, Spec
from tdecomp.adapters.bases import BASES, Base
from tdecomp.adapters.wraps import WRAPS, RowGain, Wrap
from tests.torch.cases import HIDDEN, adapted, assert_close, inputs

LORA = {"b": "normal", "a": "normal(1)"}


def lora(**rules: str) -> Spec:
    return Spec.parse("mine", "b: site out r, a: site r in", LORA, **rules)


def check(spec: Spec, **options: object) -> None:
    """The forward is that of the merged weights, with gradient, without and in training."""
    model, adapter = adapted(spec, **options)
    x = inputs(3, 5, HIDDEN)
    trained = model(x)
    with torch.no_grad():
        found = [model(x), model(x)]
    adapter.merge()
    for y in (trained, *found):
        assert_close(y, model(x))


def test_a_wrap_of_ones_own(monkeypatch):
    rows = RowGain(
        measure=lambda w, delta: ((w + delta) ** 2).sum(1),
        gain=lambda squares, own: own["size"] / squares,
    )
    wrap = Wrap(factors=(("size", ("site", "out"), "ones"),), apply=rows.apply, rows=rows)
    monkeypatch.setitem(WRAPS, "squares", wrap)
    check(lora(wrap="squares"))


def test_a_wrap_of_ones_own_that_is_formed_whole(monkeypatch):
    doubled = Wrap(factors=(("by", ("site",), "ones"),), apply=lambda w, d, own, _: own["by"] * d)
    monkeypatch.setitem(WRAPS, "alone", doubled)
    check(lora(wrap="alone"))


def test_a_base_rule_of_ones_own(monkeypatch):
    def less(terms, factors, output):
        return tuple(replace(term, sign=-term.sign) for term in terms), factors

    monkeypatch.setitem(BASES, "less", Base(says="W - ΔW", expand=less))
    check(lora(base="less"))
    path = "layers.0.self_attn.q_proj"
    minus, plus = (adapted(lora(base=base))[1].delta(path) for base in ("less", "add"))
    assert torch.equal(minus, -plus)


@pytest.mark.parametrize(("name", "rank"), [("c3a", None), ("fourierft", 2)])
def test_a_faster_product_goes_with_a_wrap(name, rank):
    check(replace(CATALOGUE[name], wrap="rows"), rank=rank)
