"""Conversions and normal forms change the numbers that are stored, never the tensor."""

from __future__ import annotations

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.formats import (
    Sum,
    canonical,
    from_tensorly,
    normalised,
    to_cp,
    to_lowrank,
    to_mpo,
    to_tensorly,
    to_tt,
    to_tucker,
    to_tucker2,
)
from tdecomp.modes import Equation
from tests.formats.cases import CASES, agree, chain, dense, factor, ids, is_split
from tests.tables import each, in_every_library

EACH = each("fmt", CASES)
MATRICES = pytest.mark.parametrize(
    "fmt", [c for c in CASES if c.modes[-2:] == ("out", "in")], ids=ids
)
CPS = each("fmt", [c for c in CASES if isinstance(c, td.CP)])
TTS = each("fmt", [c for c in CASES if isinstance(c, td.TT)])


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


@EACH
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


@each("fmt", [c for c in CASES if isinstance(c, td.LowRank)])
def test_independent_svds_as_cp(fmt):
    cp = to_cp(fmt)
    assert cp.rank == sum(fmt.ranks)
    agree(cp, dense(fmt))


def columns_of(fmt) -> int | None:
    """Rank of the CP that is known for a format of three or more modes."""
    if isinstance(fmt, Sum) and len(fmt.modes) > 2:
        ranks = [columns_of(part) for part in fmt.parts]
        return None if None in ranks else sum(filter(None, ranks))
    return int(np.sum(fmt.rank)) if isinstance(fmt, td.CP | td.LowRank) else None


@EACH
def test_cp_where_one_is_known(fmt):
    rank = columns_of(fmt)
    if rank is not None:
        assert to_cp(fmt).rank == rank
        agree(to_cp(fmt), dense(fmt))
    elif len(fmt.modes) == 2:
        assert to_cp(fmt).rank <= min(fmt.shape)
        agree(to_cp(fmt), dense(fmt))
        assert to_cp(fmt).modes == fmt.modes
    else:
        with pytest.raises(td.ArgumentError, match=r"fit one with tdecomp\.cp"):
            to_cp(fmt)


@CPS
def test_networks_that_are_a_cp(fmt):
    network = fmt.to_network()
    agree(to_cp(network), dense(fmt))
    assert to_cp(network).rank == fmt.rank
    without = td.CP(fmt.modes, np.ones(fmt.rank), fmt.factors)
    terms = without.equation.terms[:-1]
    turned = tuple(t[::-1] for t in terms)
    equation = Equation(turned, without.equation.output)
    agree(to_cp(td.Network(equation, tuple(f.T for f in fmt.factors))), dense(without))


@EACH
def test_independent_svds_of_any_format(fmt):
    svd = to_lowrank(fmt)
    agree(svd, dense(fmt))
    start = 0
    for site, rank in enumerate(svd.ranks):
        part = slice(start, start + rank)
        start += rank
        assert orthonormal(svd.u[:, part])
        assert orthonormal(svd.vh[part, :].T)
        assert np.all(np.diff(svd.s[part]) <= 0)
        assert rank <= min(fmt.shape[-2:])
        exact = np.linalg.matrix_rank(dense(fmt).reshape(-1, *fmt.shape[-2:])[site], rtol=1e-12)
        assert rank == exact


def test_svds_of_asked_ranks_truncate_and_know_their_limit():
    fmt = next(c for c in CASES if isinstance(c, td.Tucker2))
    one = to_lowrank(fmt, ranks=1)
    best = to_lowrank(fmt)
    assert set(one.ranks) == {1}
    np.testing.assert_allclose(one.s[0], best.s[0])
    with pytest.raises(td.ArgumentError, match="at most"):
        to_lowrank(fmt, ranks=[20] * fmt.n_sites)
    with pytest.raises(td.ArgumentError, match="one for each"):
        to_lowrank(fmt, ranks=[1, 2])
    with pytest.raises(td.ArgumentError, match="hold no matrix"):
        to_lowrank(fmt[0, 0, 0])


def sizes_of(n: int) -> tuple[int, int]:
    """A split of a size in two."""
    first = next(k for k in range(2, n + 1) if n % k == 0) if n > 1 else 1
    return first, n // first


@EACH
def test_mpo_of_any_format(fmt):
    out, inp = (sizes_of(n) for n in fmt.shape[-2:])
    for rows, columns in [(out, inp), ((1, *out), (*inp, 1)), (out[:1] + out[1:], inp[::-1])]:
        mpo = to_mpo(fmt, out=rows, inp=columns)
        assert mpo.shape == fmt.shape
        agree(mpo, dense(fmt))
        tensor = dense(fmt).reshape(*fmt.shape[:-2], *rows, *columns)
        lead, k = len(fmt.shape) - 2, len(rows)
        order = [*range(lead), *(lead + j for pair in ((i, k + i) for i in range(k)) for j in pair)]
        flat = tensor.transpose(order)
        sizes = [*fmt.shape[:-2], *(a * b for a, b in zip(rows, columns, strict=True))]
        for cut, bond in enumerate(mpo.rank[1:-1], 1):
            unfolded = flat.reshape(int(np.prod(sizes[:cut])), -1)
            assert bond == max(1, np.linalg.matrix_rank(unfolded, rtol=1e-12))
    single = to_mpo(fmt, out=fmt.shape[-2:-1], inp=fmt.shape[-1:])
    agree(single, dense(fmt))


def test_mpos_need_factors_of_the_sizes():
    with pytest.raises(td.ArgumentError, match="multiply to 6 x 6"):
        to_mpo(CASES[0], out=(2, 3), inp=(3, 2))
    with pytest.raises(td.ArgumentError, match="equally many"):
        to_mpo(CASES[0], out=(7,), inp=(5, 1))


def long_tensors(d: int) -> list[td.Format]:
    """Tensors of `d` modes of size 2 and small rank in every format."""
    rng = np.random.default_rng(5)
    modes = tuple(f"m{k}" for k in range(d))
    parafac = td.CP(modes, np.ones(2), tuple(factor(rng, 2, 2) for _ in modes))
    train = td.TT(tuple((m,) for m in modes), chain(rng, *((2,),) * d))
    core = factor(rng, *(1,) * (d - 2), 2, 2)
    tucker = td.Tucker(modes, core, tuple(factor(rng, 2, n) for n in core.shape))
    tucker2 = td.Tucker2(
        modes, factor(rng, *(2,) * (d - 2), 1, 1), factor(rng, 2, 1), factor(rng, 2, 1), modes[-2:]
    )
    n = 4  # of many sites only the first have a matrix
    ranks = (1,) * n + (0,) * (2 ** (d - 2) - n)
    svd = td.LowRank(modes, (2,) * (d - 2), ranks, factor(rng, 2, n), np.ones(n), factor(rng, n, 2))
    return [parafac, train, tucker, tucker2, svd, parafac.to_network(), Sum((parafac, train))]


@pytest.mark.parametrize("fmt", long_tensors(13), ids=ids)
def test_tensors_of_many_modes(fmt):
    full = dense(fmt)
    for found in (to_tucker(fmt), to_tt(fmt), to_tucker2(fmt, fmt.modes[-2:])):
        agree(found, full)
    np.testing.assert_allclose(fmt.norm(), np.linalg.norm(full), rtol=1e-12)
    agree(fmt + fmt, 2 * full)
    agree(fmt[1, ..., 0], full[1, ..., 0])
    np.testing.assert_allclose(fmt.matrix(37), full.reshape(-1, 2, 2)[37], atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", long_tensors(20), ids=ids)
def test_tensors_of_twenty_modes(fmt):
    full = dense(fmt)
    agree(to_tt(fmt), full)
    np.testing.assert_allclose(fmt.norm(), np.linalg.norm(full), rtol=1e-10)
    agree(fmt + fmt, 2 * full)
    agree(fmt[1, ..., 0], full[1, ..., 0])


@each("fmt", [c[..., 0, 0] for c in CASES])
def test_tensors_without_matrix_modes(fmt):
    if fmt.modes:
        agree(to_tucker(fmt), dense(fmt))
        agree(to_tt(fmt), dense(fmt))


@TTS
def test_a_train_in_its_own_order_keeps_its_bonds(fmt):
    if not is_split(fmt) and fmt.output == sum(fmt.axes, ()):
        found = to_tt(fmt)
        assert set(fmt.rank) <= set(found.rank)
        agree(found, dense(fmt))


def test_a_chain_names_all_modes():
    with pytest.raises(td.ArgumentError, match="must name all modes"):
        to_tt(CASES[0], chain=("out", "in"))


def test_a_chain_is_written_as_modes_are():
    assert to_tt(CASES[0], "in out proj layer").axes == (("in",), ("out",), ("proj",), ("layer",))
    mpo = next(c for c in CASES if c.modes[0].startswith("("))
    assert to_tt(mpo, "(i1 i2) (o1 o2)").axes == (("(i1 i2)",), ("(o1 o2)",))


@EACH
def test_conversions_keep_the_modes_and_can_be_written_down(fmt):
    two = fmt.modes[-2:]
    found = [to_tucker(fmt), to_tt(fmt), to_lowrank(fmt), to_tucker2(fmt, two), fmt[..., 1:2]]
    for one in found:
        assert one.modes == fmt.modes
        for equation in (one.equation, one.to_network().equation):
            assert Equation.parse(str(equation)) == equation


def test_a_split_axis_is_joined_without_the_dense_tensor(rng):
    """4096-wide axes split in 64 x 64 over 2000 sites: 268 GB if anything were dense."""
    terms = "layer h r, d r s, i s t, j t -> layer (h d) (i j)"
    shapes = (2000, 64, 2), (64, 2, 2), (64, 2, 2), (64, 2)
    fmt = td.Network(Equation.parse(terms), tuple(rng.standard_normal(n) for n in shapes))
    train = to_tt(fmt[:3].permute("(i j) (h d) layer"))
    assert train.shape == (4096, 4096, 3)
    np.testing.assert_allclose(train.norm(), fmt[:3].norm())
    assert to_tucker(fmt[:3]).rank[-1] == 2
    lorta = td.Network(
        Equation.parse("layer r, head r, hd r, in r -> layer (head hd) in"),
        tuple(rng.standard_normal((n, 3)) for n in (4, 2, 3, 5)),
    )
    assert to_cp(lorta).rank == 3
    agree(to_cp(lorta), dense(lorta))


def test_a_joined_axis_wider_than_the_tensor_is_made_dense(rng):
    fmt = td.Network(
        Equation.parse("h r, d s, r s in -> (h d) in"),
        (factor(rng, 2, 9), factor(rng, 3, 8), factor(rng, 9, 8, 4)),
    )
    assert fmt.joined().n_params == 24
    agree(fmt.joined(), dense(fmt))


@CPS
def test_normalised_cp(fmt):
    unit = normalised(fmt)
    agree(unit, dense(fmt))
    assert np.all(np.diff(unit.weights) <= 0)
    assert np.all(unit.weights >= 0)
    for columns in unit.factors:
        np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1.0)
    for columns in unit.factors[:-1]:
        assert np.all(columns.max(0) >= -columns.min(0))
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
@in_every_library
def test_every_library(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    ours = fmt.with_arrays(arrays)
    agree(to_tucker(ours), dense(fmt))
    agree(to_tt(ours), dense(fmt))


@CPS
@in_every_library
def test_normalised_in_every_library(fmt, xp):
    arrays = {k: xp.asarray(a.tolist(), dtype=xp.float64) for k, a in fmt.arrays.items()}
    agree(normalised(fmt.with_arrays(arrays)), dense(fmt))


@TTS
@in_every_library
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
        if isinstance(fmt, td.LowRank | td.Network | Sum):
            with pytest.raises(td.ArgumentError, match="TensorLy has no object"):
                to_tensorly(fmt)
    with pytest.raises(td.ArgumentError, match="TensorLy has no TT with the chain"):
        to_tensorly(to_tt(CASES[6]))
    with pytest.raises(td.ArgumentError, match="got a ndarray"):
        from_tensorly(np.ones(2))
