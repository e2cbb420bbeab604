"""Laws of traced, exported and compiled models: one program, for all inputs and all steps."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tdecomp.adapters import Spec
from tests.torch.cases import HIDDEN, adapted, assert_close, inputs, set_random

METHODS = (
    "lora",
    "lotr",
    "tenslora_qkv_depth",
    "tt_lora",
    "hira",
    "c3a",
    "fourierft",
    "dora",
    "map",
)
SCHEDULED = Spec.parse(
    "scheduled",
    "u: site out r, v: site r in",
    {"u": "zeros", "v": "normal(0.1)"},
    scale="min(step / 100, 1)",
)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", METHODS)
def test_a_trace_holds_for_other_inputs(name):
    model, adapter = adapted(name)
    traced = torch.jit.trace(model, inputs(3, 5, HIDDEN))
    for shape in ((2, 4), (1, 1), (40, 2)):
        x = inputs(*shape, HIDDEN)
        assert_close(traced(x), model(x))
    set_random(adapter, seed=8)
    assert_close(traced(x), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("name", ["lora", "dora", "fourierft"])
def test_a_strict_export_holds_for_other_batches_and_lengths(name):
    _export(name, strict=True)


@pytest.mark.parametrize("name", ["tenslora_qkv_depth", "c3a"])
def test_an_export_has_a_dynamic_batch(name):
    _export(name, strict=False)


def _export(name: str, strict: bool) -> None:
    model, _ = adapted(name)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("t", min=2, max=90)
    exported = torch.export.export(
        model, (inputs(3, 5, HIDDEN),), dynamic_shapes=({0: batch, 1: length},), strict=strict
    ).module()
    for shape in ((2, 4), (40, 2)):
        x = inputs(*shape, HIDDEN)
        assert_close(exported(x), model(x))


@pytest.fixture
def dynamo():
    """A compiler without a past."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(
    ("spec", "options"),
    [(SCHEDULED, {}), ("singlora", {"rank": {"r": 2, "T": 4}}), ("lamda", {"rank": 4})],
    ids=["scale", "singlora", "lamda"],
)
def test_a_schedule_is_compiled_at_its_first_step_only(spec, options):
    """Scales and frozen columns change with every step; the compiler's limit is 8 programs."""
    model, adapter = adapted(spec, **options)
    layer, counter = model.layers[0].self_attn.q_proj, CompileCounterWithBackend("aot_eager")
    run, x = torch.compile(layer, fullgraph=True, backend=counter), inputs(3, 5, HIDDEN)
    counts = []
    for step in range(1, 6):
        adapter.step(step)
        found = []
        for forward in (run, layer):
            adapter.pool.zero_grad()
            y = forward(x)
            y.square().sum().backward()
            found.append((y, [p.grad for p in adapter.factors().values() if p.grad is not None]))
        assert_close(found[0][0], found[1][0])
        for a, b in zip(found[0][1], found[1][1], strict=True):
            assert_close(a, b)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 5
