"""Sketches of real gradients hold what gradients of full size do: MiniLM on the docstring task."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tdecomp_torch import capture

DEMO = Path(__file__).parents[2] / "docs" / "demo"
RANK = 8


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield __import__("adapter")
    for name in ("adapter", "finetune", "docstrings", "quiet"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_energy_of_sketched_gradients(adapter):
    items = adapter.task(0).train[:16]
    tokens = adapter.finetune.tokenizer(adapter.finetune.minilm())
    batch = dict(adapter.finetune.encode(tokens, items))
    batch["labels"] = adapter.torch.tensor([item.label for item in items])
    model = adapter.fresh_model(0)
    options = {"targets": list(adapter.TARGETS), "inputs": None}
    whole = capture(model, [batch], gradients="whole", **options)
    few = capture(model, [batch], gradients=2 * RANK, passes=4, **options)
    best = held = 0.0
    for name, site in whole.sites.items():
        s = np.linalg.svd(site.gradient.whole(), compute_uv=False)
        best += float(np.sum(s[:RANK] ** 2))
        held += float(np.sum(few.gradient_of(name).svd(RANK)[1] ** 2))
    assert len(whole.sites) == 18
    assert (1 - 1e-3) * best <= held <= (1 + 1e-4) * best
