"""Conversions and normal forms change the numbers that are stored, never the tensor."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import (
    canonical,
    from_tensorly,
    normalised,
    to_cp,
    to_tensorly,
    to_tt,
    to_tucker,
    to_tucker2,
)
from tests.formats.cases import CASES, agree, dense, ids, is_split

EACH = pytest.mark.parametrize("fmt", CASES, ids=ids)
PLAIN = pytest.mark.parametrize("fmt", [c for c in CASES if not is_split(c)], ids=ids)
MATRICES = pytest.mark.parametrize(
    "fmt", [c for c in CASES if c.modes[-2:] == ("out", "in")], ids=ids
)
CPS = pytest.mark.parametrize("fmt", [c for c in CASES if isinstance(c, td.CP)], ids=ids)
TTS = pytest.mark.parametrize("fmt", [c for c in CASES if isinstance(c, td.TT)], ids=ids)


def orthonormal(columns) -> bool:
    columns = to_numpy(columns)
    eye = np.eye(columns.shape[1])
    return np.allclose(columns.T @ columns, eye, atol=tol("float64", columns.size))


@EACH
def test_tucker_of_any_format(fmt):
    tucker = to_tucker(fmt)
    agree(tucker, dense(fmt))
    assert all(f is None or orthonormal(f) for f in tucker.factors)
    np.testing.assert_allclose(np.linalg.norm(tucker.core), float(fmt.norm()), rtol=1e-10)


@MATRICES
def test_tucker2_of_any_format(fmt):
    agree(to_tucker2(fmt), dense(fmt))
    swapped = to_tucker2(fmt, ("in", "out"))
    assert swapped.rank == to_tucker2(fmt).rank[::-1]
    agree(swapped, dense(fmt))


@PLAIN
def test_tensor_train_of_any_format(fmt):
    agree(to_tt(fmt), dense(fmt))
    turned = to_tt(fmt, chain=fmt.modes[1:] + fmt.modes[:1])
    assert turned.axes == tuple((m,) for m in fmt.modes[1:] + fmt.modes[:1])
    agree(turned, dense(fmt))


def test_lotr_and_the_tensor_train_out_layer_in_hold_the_same_numbers(rng):
    lotr = td.Tucker2(
        ("layer", "out", "in"),
        rng.normal(size=(4, 2, 3)),
        np.linalg.qr(rng.normal(size=(7, 2)))[0],
        np.linalg.qr(rng.normal(size=(5, 3)))[0],
    )
    tt = to_tt(lotr)
    assert tt.axes == (("out",), ("layer",), ("in",))
    assert tt.n_params == lotr.n_params
    agree(tt, dense(lotr))
    assert to_tucker2(tt).rank == lotr.rank
    agree(to_tucker2(tt), dense(lotr))


@pytest.mark.parametrize("fmt", [c for c in CASES if isinstance(c, td.LowRank)], ids=ids)
def test_independent_svds_as_cp(fmt):
    cp = to_cp(fmt)
    assert cp.rank == sum(fmt.ranks)
    agree(cp, dense(fmt))


def test_cp_rank_is_not_known_for_the_others():
    with pytest.raises(td.ArgumentError, match=r"fit one with tdecomp\.cp"):
        to_cp(CASES[0])


def test_a_chain_names_all_modes():
    with pytest.raises(td.ArgumentError, match="must name all modes"):
        to_tt(CASES[0], chain=("out", "in"))


def test_a_split_axis_has_no_core_of_its_own():
    mpo = next(c for c in CASES if c.modes[0].startswith("("))
    with pytest.raises(td.ArgumentError, match="split axis"):
        to_tt(mpo)


@CPS
def test_normalised_cp(fmt):
    unit = normalised(fmt)
    agree(unit, dense(fmt))
    assert np.all(np.diff(unit.weights) <= 0)
    assert np.all(unit.weights >= 0)
    for factor in unit.factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1.0)
    for factor in unit.factors[:-1]:
        assert np.all(factor.max(0) >= -factor.min(0))
    again = normalised(unit)
    for one, two in zip(unit.factors, again.factors, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-14)


def test_a_vanishing_term_normalises_to_zero():
    unit = normalised(td.CP(("out", "in"), np.ones(2), (np.eye(3, 2), np.eye(4, 1) * [[1.0, 0.0]])))
    assert unit.weights.tolist() == [1.0, 0.0]
    assert all(np.isfinite(f).all() for f in unit.factors)


@TTS
def test_canonical_tensor_trains(fmt):
    for center in range(len(fmt.cores)):
        tt = canonical(fmt, center)
        agree(tt, dense(fmt))
        assert all(a <= b for a, b in zip(tt.rank, fmt.rank, strict=True))
        assert all(orthonormal(c.reshape(-1, c.shape[-1])) for c in tt.cores[:center])
        assert all(orthonormal(c.reshape(c.shape[0], -1).T) for c in tt.cores[center + 1 :])
        np.testing.assert_allclose(np.linalg.norm(tt.cores[center]), float(fmt.norm()), rtol=1e-10)


def test_no_core_there():
    with pytest.raises(td.ArgumentError, match="no core 3"):
        canonical(next(c for c in CASES if isinstance(c, td.TT)), 3)


@EACH
def test_every_library(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    ours = fmt.with_arrays(arrays)
    agree(to_tucker(ours), dense(fmt))
    if not is_split(fmt):
        agree(to_tt(ours), dense(fmt))


@CPS
def test_normalised_in_every_library(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    agree(normalised(fmt.with_arrays(arrays)), dense(fmt))


@TTS
def test_canonical_in_every_library(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    agree(canonical(fmt.with_arrays(arrays), 0), dense(fmt))


MPO = next(c for c in CASES if c.modes[0] == "(o1 o2)")
TENSORLY = [
    *(c for c in CASES if isinstance(c, td.CP | td.Tucker | td.Tucker2)),
    *(to_tt(c) for c in CASES if isinstance(c, td.CP)),
    MPO,
]


@pytest.mark.parametrize("fmt", TENSORLY, ids=ids)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_to_tensorly_and_back(fmt, library):
    tensorly = pytest.importorskip("tensorly")
    module = pytest.importorskip(library)
    backend = tensorly.get_backend()
    ours = fmt.with_arrays({k: module.asarray(a) for k, a in fmt.arrays.items()})
    theirs = to_tensorly(ours)
    with tensorly.backend_context({"torch": "pytorch"}.get(library, library)):
        full = theirs.to_matrix() if fmt is MPO else theirs.to_tensor()
    np.testing.assert_allclose(to_numpy(full), dense(fmt), atol=1e-12)
    names = ["out", "in"] if fmt is MPO else fmt.modes
    back = from_tensorly(theirs, names)
    agree(back, dense(fmt))
    assert all(isinstance(a, type(module.ones(1))) for a in back.arrays.values())
    assert tensorly.get_backend() == backend


def test_what_tensorly_has_no_object_for():
    for fmt in CASES:
        if isinstance(fmt, td.LowRank | td.Network):
            with pytest.raises(td.ArgumentError, match="TensorLy has no object"):
                to_tensorly(fmt)
    with pytest.raises(td.ArgumentError, match="TensorLy has no TT with the chain"):
        to_tensorly(to_tt(CASES[6]))
    with pytest.raises(td.ArgumentError, match="got a ndarray"):
        from_tensorly(np.ones(2))
