"""Whatever the modes, the data are read in pieces of about a million numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import tol
from tdecomp.decomposition.methods.tucker.hosvd import core_energy
from tdecomp.passes import pieces, residual
from tdecomp.passes.pieces import cut, pieces_of
from tdecomp.passes.stream import streamed
from tdecomp.tensor import mode_product

SPLITS = [(2,) * 24, (4,) * 12, (8,) * 8, (16,) * 6, (64,) * 4, (512, 512, 8, 8), (2, 2**21, 2, 2),
          (2**21, 4, 2), (2,) * 12 + (64, 64), (3, 5, 7, 11, 13, 17, 19, 4, 1)]  # fmt: skip


@pytest.mark.parametrize("shape", SPLITS, ids=lambda s: f"{len(s)} modes")
def test_pieces_are_few_whatever_the_modes(shape):
    """They cover all matrices, in order, and there are at most twice as many as there must be."""
    found = list(cut(shape))
    ends = [piece.sites.stop for piece in found]
    assert [piece.sites.start for piece in found] == [0, *ends[:-1]]
    assert ends[-1] == math.prod(shape[:-2])
    assert len(found) <= 2 * math.ceil(math.prod(shape) / pieces.PIECE)
    numbers = math.prod(shape[-2:])
    assert max(piece.n_sites for piece in found) * numbers <= max(pieces.PIECE, numbers)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2,) * 7, (7, 3, 2), (12, 11)], ids=str)
@pytest.mark.parametrize("size", [1, 7, 40, 300])
def test_a_piece_of_a_format_is_that_of_the_data(shape, size, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", size)
    x = np.random.default_rng(0).standard_normal(shape)
    for fmt in (td.tucker(x, rank=2).tensor, td.tensor_train(x, rank=3).tensor):
        dense = fmt.to_dense()
        for piece, block in pieces_of(dense):
            there = fmt[piece.index] if piece.index else fmt
            np.testing.assert_allclose(
                there.to_dense().reshape(block.shape), block, atol=tol("float64", x.size)
            )


METHODS = {
    "tucker2": lambda x: td.tucker2(x, rank=2),
    "tucker": lambda x: td.tucker(x, rank=2),
    "hosvd": lambda x: td.hosvd(x, rank=2),
    "tensor_train": lambda x: td.tensor_train(x, rank=2),
    "cp": lambda x: td.cp(x, rank=2),
    "masked": lambda x: td.tucker(x, rank=2, weights=np.ones(x.shape), n_iter_max=2),
    "interpolative": lambda x: td.interpolative(x, rank=2),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_of_pieces_are_those_of_the_whole(method, dtype, monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 4, 6, 3)).astype(dtype)
    whole = method(x)
    monkeypatch.setattr(pieces, "PIECE", 30)
    monkeypatch.setattr(residual, "PIECE", 30)
    fit = method(x)
    wide = np.sum((x.astype(float) - whole.tensor.to_dense()) ** 2, axis=(2, 3)).ravel()
    assert fit.residual == pytest.approx(wide, rel=1e-4)
    assert fit.energy == pytest.approx(np.sum(x.astype(float) ** 2, axis=(2, 3)).ravel(), rel=1e-6)
    assert fit.error == pytest.approx(whole.error, rel=1e-6)


def test_a_stack_of_small_matrices_is_compared_in_pieces(monkeypatch):
    x, called = np.random.default_rng(0).standard_normal((40, 6, 5)), []
    (stack,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    form = residual._of_block
    monkeypatch.setattr(residual, "_of_block", lambda *a: called.append(1) or form(*a))
    fit = td.tucker2(td.Stack(stack.group, lambda site: x[int(dict(site.labels)["layer"])]), rank=3)
    assert fit.error == pytest.approx(td.tucker2(x, rank=3).error, rel=1e-9)
    assert len(called) == 2


def test_nan_in_any_piece_is_refused(monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 4, 6, 3))
    fit = td.tucker2(x, rank=2)
    monkeypatch.setattr(pieces, "PIECE", 30)
    monkeypatch.setattr(residual, "PIECE", 30)
    x[4, 3, 5, 2] = np.nan
    with pytest.raises(td.DataError, match="NaN"):
        residual.measure(x, fit.tensor)


@pytest.mark.parametrize("modes", [(), (0,), (1,), (2, 3), (0, 3), (1, 2), (0, 1, 2, 3)], ids=str)
def test_the_energy_of_a_core_by_some_modes(modes):
    core = np.random.default_rng(0).standard_normal((3, 4, 2, 5))
    rest = tuple(k for k in range(4) if k not in modes)
    np.testing.assert_allclose(core_energy(core, modes), np.sum(core**2, axis=rest))


@pytest.mark.parametrize("ranks", [(3, None), (None, 3)], ids=["out", "in"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_one_long_mode_of_many_small_slices_is_one_product(ranks, dtype, monkeypatch):
    """As many products as passes, however many slices there are; also of complex rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 2, 3)) @ rng.standard_normal((3, 70))
    if dtype == "complex128":
        x = x * np.exp(1j * rng.standard_normal(70))
    x = x.astype(dtype)
    x = x if ranks[1] else np.moveaxis(x, -1, -2)
    stream = streamed(x, ranks, 0)
    back = stream.tensor.to_dense()
    assert np.linalg.norm(back - x) < tol(dtype.replace("complex128", "float64"), 70) * (
        np.linalg.norm(x)
    )
    assert stream.core is not None
    assert stream.core.shape[:2] == (3, 4)
    assert stream.energy == pytest.approx(np.linalg.norm(x) ** 2, rel=1e-6)


@pytest.mark.parametrize("mode", range(4))
def test_products_along_the_last_small_modes(mode):
    """As one product of short rows where there are many."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 3, 2, 4))
    matrix = rng.standard_normal((5, x.shape[mode]))
    expected = np.moveaxis(np.tensordot(matrix, x, (1, mode)), 0, mode)
    np.testing.assert_allclose(mode_product(x, matrix, mode), expected, atol=tol("float64", 9))


def test_modes_that_are_kept_whole_take_no_sweeps():
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    full, one = td.tucker(x, rank=(3, 4, 5)), td.tucker(x, rank=(3, 2, 5))
    assert full.trace.errors == ()
    assert full.error < 1e-14
    assert one.trace.reason == "one mode: the first sweep is the optimum"
    assert one.error == pytest.approx(td.hosvd(x, rank=(3, 2, 5)).error, rel=1e-12)


@pytest.mark.parametrize("decompose", [td.tucker, td.tucker2, td.hosvd])
def test_the_leading_vectors_of_a_single_mode_are_not_swept(decompose, monkeypatch):
    """To an error that only the long mode leaves room for: HOSVD is the optimum there."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 3, 6)) @ rng.standard_normal((6, 40))).transpose(2, 0, 1)
    x = x + 1e-3 * rng.standard_normal(x.shape)
    monkeypatch.setattr("tdecomp.decomposition.methods.tucker.hooi._improved", None)
    fit = decompose(x, error=0.01)
    tail = np.linalg.svd(x.reshape(40, 6), compute_uv=False)[fit.tensor.core.shape[0] :]
    assert fit.error <= 0.01
    assert np.linalg.norm(tail) <= 0.01 * np.linalg.norm(x)
