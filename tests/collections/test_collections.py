"""Adapters side by side: one tensor over tasks, in factors, and pairs in their balanced gauge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import tol
from tdecomp.collections import AdapterPair, collect

SHAPES = [((7, 5), 2), ((5, 7), 4), ((4, 3), 6), ((1, 6), 1), ((6, 1), 3), ((4, 4), 0)]
"""(out, in) and rank: narrow, wide, wider than the matrix, of single rows, of nothing."""


@dataclass(frozen=True)
class Held:
    """A member in memory."""

    name: str
    pairs: Mapping[str, AdapterPair]
    base: str = ""
    shapes: Mapping[str, tuple[int, int]] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "shapes", {s: pair.shape for s, pair in self.pairs.items()})


def pair(rng, shape=(7, 5), rank=2, scale=0.7, dtype=np.float64) -> AdapterPair:
    b, a = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return AdapterPair(b=b.astype(dtype), a=a.astype(dtype), scale=scale)


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("scale", [0.7, -2.0, 0.0])
def test_the_factors_say_what_the_product_says(shape, rank, scale, rng):
    one = pair(rng, shape, rank, scale)
    dense, close = one.dense(), {"rtol": 0, "atol": 100 * tol("float64", 50)}
    s = np.linalg.svdvals(dense)
    assert one.energy() == pytest.approx(np.sum(dense**2), rel=1e-12)
    assert np.allclose(np.pad(one.spectrum(), (0, 99))[: len(s)], s, **close)
    svd = one.svd()
    assert np.allclose(svd.u * svd.s @ svd.vh, dense, **close)
    b, a = one.balanced()
    assert np.allclose(b @ a, dense, **close)
    assert np.allclose(b.T @ b, a @ a.T, **close)
    k = min(1, len(svd.s))
    b, a = one.balanced(k)
    assert b.shape == (shape[0], k)
    assert np.sum((b @ a - dense) ** 2) == pytest.approx(np.sum(s[k:] ** 2), abs=1e-12)


def test_members_are_one_tensor_over_tasks(rng):
    one = Held("one", {"x.q": pair(rng), "x.k": pair(rng, rank=3)}, base="A")
    two = Held("two", {"x_q": pair(rng, rank=9, dtype=np.float32)}, base="B")
    together = collect([one, two])
    assert together.names == ("one", "two")
    assert together.sites == ("x.q", "x.k")
    assert together.missing == (("two", "x.k"),)
    assert "different base models: 'one' A, 'two' B" in together.notes[0]
    here, both = together.at("x.q"), together.over(["x.q", "x.k"])
    assert (here.modes, here.shape, here.ranks) == (("task", "out", "in"), (2, 7, 5), (2, 9))
    assert (both.shape, both.ranks) == ((2, 2, 7, 5), (2, 3, 9, 0))
    dense = np.stack([one.pairs["x.q"].dense(), two.pairs["x_q"].dense()])
    assert np.allclose(here.to_dense(), dense, rtol=0, atol=tol("float64", 50))
    assert np.allclose(both.to_dense()[:, 0], dense, rtol=0, atol=tol("float64", 50))
    assert not both.to_dense()[1, 1].any()
    assert td.tucker2(here, rank=(7, 5)).error < 1e-12


def test_what_does_not_go_together_is_named(rng):
    one, two = Held("one", {"x": pair(rng)}), Held("two", {"y": pair(rng)})
    other = Held("other", {"x": pair(rng, (5, 5))})
    for given, options, words in [
        ([], {}, "no adapters"),
        ([one, two, one], {}, "2 adapters are named 'one'"),
        ([one, two], {"missing": "refuse"}, "'two' has no pair at x, and 1 more"),
        ([one], {"missing": "skip"}, "zero or refuse"),
        ([one, other], {}, r"x is \(7, 5\) in 'one' and \(5, 5\) in 'other'"),
    ]:
        with pytest.raises(td.TdecompError, match=words):
            collect(given, **options)
    with pytest.raises(td.ArgumentError, match="one is needed"):
        collect([Held("both", {"x": pair(rng), "y": pair(rng, (2, 2))})]).over(["x", "y"])
