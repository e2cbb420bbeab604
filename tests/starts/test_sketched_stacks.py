"""Fits to sketched gradients: as to the whole ones, which are never written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tdecomp.adapters import Grid, bind, method
from tdecomp.starts import fit_row
from tdecomp.statistics import Gradient

SHAPE = (70, 60)


def sketched(noise: float) -> list[Gradient]:
    """Of rank 5, most of it in two directions that all share."""
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((70, 2)), rng.standard_normal((2, 60))
    found = []
    for _ in range(6):
        core = rng.standard_normal((2, 2))
        columns = np.hstack([left @ core, noise * rng.standard_normal((70, 3))])
        rows = np.vstack([right, rng.standard_normal((3, 60))])
        found.append(Gradient(batches=1, left=columns, right=rows))
    return found


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("row", ["lotr", "tenslora_qkv_depth", "lorta"])
def test_the_fit_is_that_of_the_whole_gradients(row, noise, monkeypatch):
    matrices = sketched(noise)
    grid = Grid.full(SHAPE, layer=3, proj=2, heads=2)
    places = grid.places[::-1]  # in another order than the last mode fastest
    bound = bind(method(row), replace(grid, places=places), 2)
    whole = [Gradient(batches=1, left=None, right=m.whole()) for m in matrices]
    expected = fit_row(bound, whole)
    if row != "lorta":  # which splits a side into heads

        def written_out(matrix: Gradient) -> np.ndarray:
            raise AssertionError("a gradient is written out")

        monkeypatch.setattr(Gradient, "whole", written_out)
    found = fit_row(bound, matrices)
    monkeypatch.undo()
    assert found.error == pytest.approx(expected.error, rel=1e-3, abs=1e-6)
    gaps = [
        m.whole() - bound.delta(found.factors, k) / bound.scale() for k, m in enumerate(matrices)
    ]
    total = np.sqrt(sum(m.norm() ** 2 for m in matrices))
    assert np.linalg.norm(gaps) / total == pytest.approx(found.error, rel=1e-6, abs=1e-6)
