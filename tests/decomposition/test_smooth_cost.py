"""The cost of a number does not hang on how many modes or tensors the numbers are split into."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest

import tdecomp as td
from tdecomp import linalg
from tdecomp.decomposition.methods import svd as method_of_svd
from tdecomp.decomposition.methods.train import sweeps
from tdecomp.decomposition.methods.tucker.hosvd import project
from tdecomp.decomposition.methods.tucker.tucker2 import Tucker2Method
from tdecomp.decomposition.run import _Run
from tdecomp.passes import residual
from tdecomp.passes.pieces import cut

hooi = importlib.import_module("tdecomp.decomposition.methods.tucker.hooi")

SPLITS = [(1024, 1024), (340, 342, 3, 3), (8,) * 7, (4,) * 10, (2,) * 20, (2,) * 21, (2,) * 24]


@pytest.mark.parametrize("shape", SPLITS, ids=lambda s: f"{len(s)} modes of {s[0]}")
def test_pieces_per_number(shape):
    assert len(list(cut(shape))) <= 1 + 2 * math.prod(shape) / 2**20


@pytest.mark.parametrize("shape", [(8,) * 4, (4,) * 6, (2,) * 12, (64, 64), (16, 4, 8, 8)], ids=str)
@pytest.mark.parametrize("method", [td.tucker2, td.tucker, td.hosvd, td.tensor_train])
def test_an_array_is_compared_once(method, shape, monkeypatch):
    called, form = [], residual._of_block
    monkeypatch.setattr(residual, "_of_block", lambda *a: called.append(1) or form(*a))
    method(np.random.default_rng(0).standard_normal(shape), rank=2)
    assert len(called) == 1


@pytest.mark.parametrize("n", [10, 100, 1000, 10_000])
@pytest.mark.parametrize("target", [{"rank": 2}, {"error": 0.5}, {"budget": 50}], ids=str)
def test_tiny_matrices_are_decomposed_in_pieces(n, target, monkeypatch):
    """As many calls for ten thousand matrices as for ten."""
    if n == 10_000 and "rank" not in target:
        n = 2000
    x, called = np.random.default_rng(0).standard_normal((n, 6, 5)), []
    form = method_of_svd.residual_of_pairs
    monkeypatch.setattr(method_of_svd, "residual_of_pairs", lambda *a: called.append(1) or form(*a))
    target = target | ({"budget": 20 * n} if "budget" in target else {})
    fit = td.svd(x, **target)
    assert len(called) == 1
    difference = np.linalg.norm(x - fit.tensor.to_dense())
    assert fit.error == pytest.approx(difference / np.linalg.norm(x), rel=1e-12)
    apart = td.decompose(list(x), td.svd, **target)
    assert len(called) == 2
    assert [f.tensor.ranks[0] for f in apart] == list(fit.tensor.ranks)
    np.testing.assert_array_equal([f.residual[0] for f in apart], fit.residual)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("target", [{"rank": 2}, {"error": 0.5}, {"budget": 300}], ids=str)
def test_tiny_matrices_together_are_those_one_by_one(dtype, target, monkeypatch, xp):
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 5)).astype(dtype)
    together = td.svd(xp.asarray(x), **target)
    arrays = [xp.asarray(x[0]), xp.asarray(x[:2, 0]), xp.asarray(x[1])]
    fits = td.decompose(arrays, td.svd, names="site out in", **target)
    monkeypatch.setattr(method_of_svd, "_TINY", 0)
    alone = td.svd(xp.asarray(x), **target)
    for a, b in zip(fits, td.decompose(arrays, td.svd, names="site out in", **target), strict=True):
        assert (a.tensor.modes, a.tensor.ranks) == (b.tensor.modes, b.tensor.ranks)
        difference = np.linalg.norm(np.asarray(a.tensor) - np.asarray(b.tensor))
        assert difference <= 1e-4 * b.energy.sum() ** 0.5
    assert together.tensor.ranks == alone.tensor.ranks
    assert together.residual == pytest.approx(alone.residual, rel=1e-4)
    assert together.energy == pytest.approx(alone.energy, rel=1e-5)
    for a, b in zip(together.spectra["sites"], alone.spectra["sites"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "calls"), [((64, 128), 1), ((90, 92), 0), ((32, 256), 1), ((33, 256), 0)]
)
def test_which_matrices_are_tiny(shape, calls, monkeypatch):
    """Whether many go together hangs on their numbers, and with that no sketch is ever tried."""
    called, form = [], method_of_svd.residual_of_pairs
    monkeypatch.setattr(method_of_svd, "residual_of_pairs", lambda *a: called.append(1) or form(*a))
    x = np.random.default_rng(0).standard_normal((12, *shape))
    fit = td.svd(x, error=0.9)
    assert (len(called), fit.svd) == (calls, "exact")
    assert 0 < fit.error <= 0.9


@pytest.mark.parametrize("d", [3, 20, 200])
def test_decompositions_per_core_of_a_train(d, monkeypatch):
    rng, called, basis = np.random.default_rng(0), [], sweeps.left_basis
    monkeypatch.setattr(sweeps, "left_basis", lambda *a: called.append(1) or basis(*a))
    bonds = (1, *(4,) * (d - 1), 1)
    cores = tuple(
        rng.standard_normal((a, 3, b)) / 3 for a, b in zip(bonds, bonds[1:], strict=False)
    )
    tt = td.TT(tuple((f"m{k}",) for k in range(d)), cores)
    td.tt_round(tt + tt, error=1e-8)
    assert len(called) == d - 1


@pytest.mark.parametrize("method", [td.svd, td.hosvd, td.tucker, td.tucker2, td.tensor_train])
@pytest.mark.parametrize("shape", [(2, 300, 400), (3, 40, 2000)], ids=str)
def test_noise_is_looked_at_twice(method, shape, monkeypatch):
    """A sketch says how much is missing: sketches doubled in width would each be thrown away."""
    looks, wider = [], _Run._wider
    monkeypatch.setattr(_Run, "_wider", lambda *a: looks.append(1) or wider(*a))
    monkeypatch.setattr(linalg, "_EXACT_FLOPS", 1e6)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert 0.38 < method(x, error=0.4).error <= 0.4
    assert len(looks) <= 1


def test_a_stack_is_sketched_no_wider_than_seems_needed(monkeypatch):
    """Where a sketch is too wide, all of it would be loaded at once."""
    widths, look = [], Tucker2Method.look
    monkeypatch.setattr(
        Tucker2Method, "look", lambda m, x, width, *a: widths.append(width) or look(m, x, width, *a)
    )
    monkeypatch.setattr(linalg, "_EXACT_FLOPS", 1e6)
    rng, x = np.random.default_rng(0), {}
    left, right = (np.linalg.qr(rng.standard_normal((n, 96)))[0] for n in (480, 600))
    for k in range(2):
        matrix = left @ rng.standard_normal((96, 96)) @ right.T
        x[f"model.layers.{k}.self_attn.q_proj.weight"] = matrix
    (stack,) = td.Stack.from_arrays(x)
    assert td.tucker2(np.asarray(stack.dense()), error=0.3).error <= 0.3
    in_memory, widths[:] = widths[1], []
    assert td.tucker2(stack, error=0.3).error <= 0.3
    assert widths[1] < in_memory


def test_what_an_error_leaves_room_for_goes_at_once(monkeypatch):
    """As many looks for a hundred directions as for one, and the same are dropped."""
    called, basis = [], hooi.left_basis
    monkeypatch.setattr(hooi, "left_basis", lambda *a: called.append(1) or basis(*a))
    rng = np.random.default_rng(0)
    for room in (-1.0, 0.0, 0.01, 0.1, 0.5):
        core = rng.standard_normal((3, 60, 40))
        bases = {k: np.linalg.qr(rng.standard_normal((n, n)))[0] for k, n in ((1, 60), (2, 40))}
        room *= np.linalg.norm(core) ** 2
        called.clear()
        found, kept = hooi.trimmed(core, bases, room, core.shape)
        assert len(called) <= 8
        shape, one_by_one = _dropped_one_by_one(core, room)
        assert found.shape == shape
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(one_by_one))
        assert [kept[k].shape for k in (1, 2)] == [(60, shape[1]), (40, shape[2])]


def _dropped_one_by_one(core, room):
    """Of the modes 1 and 2: the column that saves the most numbers and fits, again and again."""
    sizes = core.shape
    while True:
        options = []
        for k in (1, 2):
            u, s, _ = np.linalg.svd(np.moveaxis(core, k, 0).reshape(core.shape[k], -1))
            least = s[-1] ** 2 if len(s) == core.shape[k] else 0.0
            if core.shape[k] > 1 and least <= room:
                saved = core.size // core.shape[k] + sizes[k]
                options.append((saved, -k, u[:, : core.shape[k] - 1], least))
        if not options:
            return core.shape, core
        _, k, u, lost = max(options, key=lambda option: option[:2])
        core, room = project(core, {-k: u}), room - lost
