"""Trains of formats: rounding, inexact conversion, sketches, and what an error target promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.decomposition.methods.train.bonds import count_numbers, usable_bonds
from tdecomp.decomposition.methods.train.sweeps import difference_energy
from tdecomp.formats import CP, TT, Format, Network, Tucker
from tdecomp.modes import Equation
from tests.laws.cases import SHAPES, planted
from tests.tables import each

MODES = ("layer", "out", "in")
SHAPE = (4, 6, 5)


def random_train(shape, bonds, modes=None, seed: int = 0) -> TT:
    rng = np.random.default_rng(seed)
    full = (1, *bonds, 1)
    modes = modes or tuple(f"m{k}" for k in range(len(shape)))
    sizes = zip(full, shape, full[1:], strict=False)
    return TT(tuple((m,) for m in modes), tuple(rng.standard_normal(s) for s in sizes))


def decaying_train(shape, bond: int, seed: int = 0) -> TT:
    """A train whose unfoldings have falling singular values."""
    tt = random_train(shape, (bond,) * (len(shape) - 1), seed=seed)
    fall = 0.5 ** np.arange(bond)
    return TT(tt.axes, (*(c * fall for c in tt.cores[:-1]), tt.cores[-1]))


def formats() -> dict[str, Format]:
    x = planted(SHAPE, decay=0.8)
    rng = np.random.default_rng(1)
    network = Network(
        Equation.parse("layer a b, out a, in b -> layer out in"),
        tuple(rng.standard_normal(s) for s in ((4, 2, 3), (6, 2), (5, 3))),
    )
    return {
        "tt": random_train(SHAPE, (4, 5), MODES),
        "tucker": td.tucker(x, rank=(3, 4, 4), names=MODES).tensor,
        "tucker2": td.tucker2(x, rank=(4, 3), names=MODES).tensor,
        "cp": CP(MODES, np.ones(5), tuple(rng.standard_normal((n, 5)) for n in SHAPE)),
        "lowrank": td.svd(x, rank=2, names=MODES).tensor,
        "network": network,
    }


FORMATS = formats()


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def fmt(request) -> Format:
    return request.param


def dense_error(fmt: Format, fit: td.Fit) -> float:
    x = to_numpy(fmt.to_dense())
    return float(np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x))


@pytest.mark.parametrize("target", [{"rank": 2}, {"rank": (2, 3)}, {"error": 0.3}, {"error": 1e-5},
                                    {"budget": 60}], ids=str)  # fmt: skip
def test_a_format_gives_what_its_dense_tensor_gives(fmt, target):
    fit = td.tensor_train(fmt, **target)
    expected = td.tensor_train(fmt.to_dense(), names=MODES, **target)
    assert fit.error == pytest.approx(dense_error(fmt, fit), abs=tol("float64", 120))
    assert fit.error_method == "coordinates"
    assert len(fit.residual) == len(fit.energy) == 1
    assert fit.tensor.modes == MODES
    assert fit.error <= target.get("error", 1)
    assert fit.n_params <= target.get("budget", math.inf)
    assert list(fit.spectra) == list(expected.spectra)
    if "error" not in target:  # the sweeps may run from different ends
        assert fit.tensor.rank == expected.tensor.rank
        assert fit.error == pytest.approx(expected.error, rel=0.05, abs=1e-12)


@pytest.mark.parametrize("modes", [MODES[::-1], (1, 0, 2)], ids=str)
def test_a_format_in_any_chain(fmt, modes):
    fit = td.tensor_train(fmt, rank=30 // 5, modes=modes)
    chain = tuple(MODES[m] if isinstance(m, int) else m for m in modes)
    assert fit.tensor.axes == tuple((m,) for m in chain)
    assert fit.tensor.modes == MODES
    assert fit.error == pytest.approx(dense_error(fmt, fit), abs=tol("float64", 120))


def test_formats_of_every_library(xp):
    tt = decaying_train(SHAPE, 4)
    given = TT(tt.axes, tuple(xp.asarray(c) for c in tt.cores))
    fit, expected = td.tensor_train(given, error=0.1), td.tensor_train(tt, error=0.1)
    assert fit.tensor.rank == expected.tensor.rank
    assert fit.error == pytest.approx(expected.error, rel=1e-9)
    assert all(type(a) is type(given.cores[0]) for a in fit.tensor.cores)


def test_complex_trains():
    a, b = random_train(SHAPE, (4, 5)), random_train(SHAPE, (4, 5), seed=1)
    tt = TT(a.axes, tuple(x + 1j * y for x, y in zip(a.cores, b.cores, strict=True)))
    fit = td.tensor_train(tt, error=0.4)
    assert fit.error <= 0.4
    assert fit.error == pytest.approx(dense_error(tt, fit), rel=1e-9)
    assert dense_error(tt, td.tensor_train(td.tt_round(tt, rank=3, sketch=True), rank=5)) < 1


def test_rounding_of_a_format_is_part_of_its_error():
    half = lambda a: a.astype(np.float16).astype(np.float64)
    tt = decaying_train(SHAPE, 3)
    fit = td.tensor_train(tt, rank=3, rounding=half)
    assert 1e-5 < fit.error < 1e-2
    assert fit.error == pytest.approx(dense_error(tt, fit), rel=1e-9)


@pytest.mark.parametrize("distance", [1e-3, 1e-9, 1e-13])
def test_differences_are_seen_down_to_rounding(distance):
    tt = random_train((5, 6, 7, 4), (3, 4, 3))
    flat = list(tt.cores)
    moved = [*flat[:-1], flat[-1] * (1 + distance)]
    residual, energy = difference_energy(flat, moved)
    assert math.sqrt(residual / energy) == pytest.approx(distance, rel=0.2)
    assert energy == pytest.approx(np.sum(tt.to_dense() ** 2), rel=1e-12)


def test_a_rounded_mpo_keeps_its_splits():
    x = planted((3, 12, 10), decay=0.9)
    big = td.mpo(x, out=(4, 3), inp=(5, 2), rank=9, names="layer out in").tensor
    for target in ({"rank": 3}, {"error": 0.2}, {"budget": 100}):
        fit = td.mpo(big, out=(4, 3), inp=(5, 2), **target)
        assert fit.tensor.axes == big.axes
        assert fit.tensor.modes == big.modes
        assert fit.error == pytest.approx(dense_error(big, fit), abs=1e-12)
        assert fit.error <= target.get("error", 1)
        np.testing.assert_allclose(
            td.tensor_train(big, **target).tensor.to_dense(), fit.tensor.to_dense(), atol=1e-12
        )


def test_zero_formats():
    zero = td.tensor_train(np.zeros(SHAPE), error=0.1).tensor
    for tt in (zero, TT(zero.axes, tuple(np.zeros((1, n, 1)) for n in SHAPE))):
        for target in ({"rank": 1}, {"error": 0.1}, {"budget": 50}):
            fit = td.tensor_train(tt, **target)
            assert fit.error == 0
            assert not fit.tensor.to_dense().any()


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_rounding_within_a_budget(share):
    tt = random_train((4, 5, 6), (4, 5))
    small = td.tt_round(tt, budget=int(share * tt.n_params))
    assert small.n_params <= share * tt.n_params
    assert small.n_params > 0.5 * share * tt.n_params or small.rank == (1, 1, 1, 1)


@pytest.mark.parametrize("svd", [td.linalg.svd_gram, td.linalg.svd_randomized],
                         ids=lambda f: f.__name__)  # fmt: skip
def test_rounding_takes_an_svd(svd):
    tt = decaying_train((5, 6, 7, 4), 6)
    exact, other = td.tt_round(tt, rank=3), td.tt_round(tt, rank=3, svd=svd)
    assert other.rank == exact.rank
    assert float((tt - other).norm()) <= 1.05 * float((tt - exact).norm())
    assert td.tensor_train(tt, rank=3, svd=svd).svd == svd.__name__


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 8, 5), (3,) * 9, (5, 1, 6, 4)], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_sketch_is_nearly_as_good(shape, rank, seed):
    tt = decaying_train(shape, 12)
    exact = td.tt_round(tt, rank=rank)
    sketched = td.tt_round(tt, rank=rank, sketch=True, random_state=seed)
    assert sketched.rank == exact.rank
    lost, best = (np.linalg.norm(tt.to_dense() - t.to_dense()) for t in (sketched, exact))
    assert lost <= 1.1 * best + tol("float64", 1000) * np.linalg.norm(tt.to_dense())


def test_a_sketch_finds_planted_bonds(xp):
    tt = random_train((5, 6, 7, 4), (2, 3, 2))
    wide = tt + 0.5 * tt + tt - 0.25 * tt
    given = TT(wide.axes, tuple(xp.asarray(c) for c in wide.cores))
    small = td.tt_round(given, rank=(2, 3, 2), sketch=True, n_oversamples=2)
    np.testing.assert_allclose(
        to_numpy(small.to_dense()), wide.to_dense(), atol=1e-12 * np.abs(wide.to_dense()).max()
    )
    for core in small.cores[:-1]:
        flat = to_numpy(core).reshape(-1, core.shape[-1])
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-12)
    again = td.tt_round(given, rank=(2, 3, 2), sketch=True, n_oversamples=2)
    np.testing.assert_array_equal(to_numpy(small.cores[0]), to_numpy(again.cores[0]))


ERRORS = [0.6, 0.2, 0.05, 1e-3]


def paper_bonds(x: np.ndarray, error: float) -> tuple[int, ...]:
    """The rule of TT-SVD: every unfolding cut at ``ε / √(d - 1)``."""
    delta = error**2 * np.sum(x**2) / max(1, x.ndim - 1)
    bonds = []
    for k in range(1, x.ndim):
        s = np.linalg.svd(x.reshape(math.prod(x.shape[:k]), -1), compute_uv=False)
        bonds.append(max(1, int(np.argmax(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0) <= delta))))
    return tuple(bonds)


def lowered(shape, bonds: tuple[int, ...]) -> list[tuple[int, ...]]:
    ways = [(*bonds[:k], r - 1, *bonds[k + 1 :]) for k, r in enumerate(bonds) if r > 1]
    return [usable_bonds(way, shape) for way in ways]


def check_error_target(x: np.ndarray, error: float) -> None:
    fit = td.tensor_train(x, error=error)
    assert fit.error <= error
    assert fit.n_params <= count_numbers(x.shape, paper_bonds(x, error))
    for way in lowered(x.shape, fit.tensor.rank[1:-1]):
        assert td.tensor_train(x, rank=way, n_iter_max=0).error > error * (1 - 1e-9)


@each("error", ERRORS)
@pytest.mark.parametrize("decay", [0.5, 0.9])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 2, 3, 2, 3)], ids=str)
def test_no_bond_of_an_error_target_can_be_lowered(shape, decay, error):
    check_error_target(planted(shape, decay=decay), error)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(0, 999),
    st.floats(0.3, 1.0),
    st.floats(0.01, 0.9),
)
def test_no_bond_can_be_lowered_anywhere(shape, seed, decay, error):
    check_error_target(planted(tuple(shape), seed, decay), error)


@pytest.mark.parametrize("error", ERRORS)
def test_no_bond_of_a_rounded_train_can_be_lowered(error):
    tt = decaying_train((4, 5, 3, 6), 5)
    fit = td.tensor_train(tt, error=error)
    for way in lowered((4, 5, 3, 6), fit.tensor.rank[1:-1]):
        assert td.tensor_train(tt, rank=way).error > error * (1 - 1e-9)


@pytest.mark.parametrize("target", [{"rank": 1}, {"error": 0.1}, {"budget": 7}], ids=str)
def test_a_vector_is_a_train_of_one_core(target, xp):
    x = np.arange(1.0, 8.0)
    fit = td.tensor_train(xp.asarray(x), **target)
    assert fit.tensor.rank == (1, 1)
    assert fit.error == 0
    np.testing.assert_array_equal(to_numpy(fit.tensor.cores[0]).ravel(), x)
    again = td.tensor_train(fit.tensor, **target)
    assert again.error == 0


@pytest.mark.parametrize("target", [{"rank": 3}, {"error": 1e-4}, {"budget": 250}], ids=str)
def test_twenty_modes(target):
    t = np.arange(2**20) / 2**20
    x = (np.sin(30 * t) + t**2).reshape((2,) * 20)
    fit = td.tensor_train(x, **target)
    assert fit.n_params < 400
    assert fit.error <= target.get("error", 1e-2)


def test_equal_singular_values_and_orders_of_magnitude():
    eye = np.eye(6).reshape(6, 2, 3)
    assert td.tensor_train(eye, error=0.5).error <= 0.5
    assert td.tensor_train(eye, error=1e-9).tensor.rank == (1, 6, 3, 1)
    x = planted((3, 8, 6))
    for scale in (1e-100, 1e100):
        fit, plain = td.tensor_train(scale * x, error=0.1), td.tensor_train(x, error=0.1)
        assert fit.tensor.rank == plain.tensor.rank
        assert fit.error == pytest.approx(plain.error, rel=1e-6)


def test_strided_and_read_only_arrays():
    x = planted((6, 8, 5), decay=0.8)
    strided = np.asfortranarray(np.repeat(x, 2, axis=1))[::-1, ::2]
    strided.flags.writeable = False
    fit, plain = td.tensor_train(strided, rank=3), td.tensor_train(x[::-1].copy(), rank=3)
    np.testing.assert_allclose(fit.tensor.to_dense(), plain.tensor.to_dense(), atol=1e-12)


def test_bonds_by_name():
    x = planted((3, 8, 6))
    fit = td.tensor_train(x, rank={"layer | out in": 2}, names="layer out in")
    assert fit.tensor.rank == (1, 2, 6, 1)


def mpo_of(x):
    return td.mpo(x, out=(4, 2), inp=(3, 2), rank=2).tensor


@pytest.mark.parametrize("target", [{"rank": 3}, {"error": 0.2}, {"budget": 90}], ids=str)
def test_any_format_becomes_an_mpo(target):
    x = planted((2, 8, 6), decay=0.8)
    for fmt in (mpo_of(x), td.hosvd(x, rank=4).tensor, td.svd(x, rank=2).tensor):
        given = to_numpy(fmt.to_dense())
        options = {"out": (2, 4), "inp": (3, 2), "n_iter_max": 0}
        fit, expected = td.mpo(fmt, **options, **target), td.mpo(given, **options, **target)
        true = np.linalg.norm(given - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(given)
        assert fit.error == pytest.approx(true, abs=1e-12)
        assert fit.error <= max(1.05 * expected.error + 1e-12, target.get("error", 0))
        assert fit.n_params <= target.get("budget", x.size * 2)


REFUSED = [
    (lambda x: td.mpo(x, out=8, inp=6, rank=2), "must be the factors"),
    (lambda x: td.tensor_train(random_train(SHAPE, (2, 2)), rank=2, names="a b c"), "for arrays"),
    (lambda x: td.mpo(mpo_of(x), out=(3, 4), inp=(3, 2), rank=2), "multiply to 12 x 6"),
    (lambda x: td.tensor_train(random_train(SHAPE, (2, 2)), rank=(3, 2)), "rank 3 is above 2"),
    (lambda x: td.tensor_train(random_train(SHAPE, (2, 2)), budget=3), "smallest possible is"),
    (lambda x: td.tensor_train(random_train(SHAPE, (2, 2)), error=1e-15), "below 1e-14"),
    (lambda x: td.tt_round(random_train(SHAPE, (2, 2)), error=0.1, sketch=True), "takes a rank"),
    (lambda x: td.tt_round(random_train(SHAPE, (2, 2)), rank=1, sketch=True,
                           svd=td.linalg.svd_gram), "takes a rank"),
    (lambda x: td.tt_round(random_train(SHAPE, (2, 2)), rank=1, sketch=True, n_oversamples=-1),
     "n_oversamples"),
    (lambda x: td.tt_round(random_train(SHAPE, (2, 2)), rank=1, budget=20), "exactly one"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[t for _, t in REFUSED])
def test_bad_arguments_are_refused(call, text):
    with pytest.raises(td.ArgumentError, match=text.replace("(", r"\(").replace(")", r"\)")):
        call(planted((3, 8, 6)))


def test_a_format_of_nan_is_refused():
    tt = random_train(SHAPE, (2, 2))
    broken = TT(tt.axes, (tt.cores[0] * np.nan, *tt.cores[1:]))
    with pytest.raises(td.DataError, match="NaN"):
        td.tensor_train(broken, rank=1)


def test_tucker_to_train_never_forms_the_tensor():
    """10^12 entries."""
    rng = np.random.default_rng(0)
    core, factors = planted((4, 5, 3)), [rng.standard_normal((n, r)) for n, r in
                                         zip((10**4,) * 3, (4, 5, 3), strict=True)]  # fmt: skip
    fit = td.tensor_train(Tucker(MODES, core, tuple(factors)), error=0.1)
    assert fit.error <= 0.1


@pytest.mark.parametrize("sketch", [False, True])
def test_rounding_by_rank_has_no_largest_tensor(sketch):
    """2^1100 entries, more than a float64 can count."""
    tt = random_train((2,) * 1100, (3,) * 1099)
    tt = TT(tt.axes, tuple(c / np.linalg.norm(c) for c in tt.cores))
    small = td.tt_round(tt, rank=2, sketch=sketch)
    assert max(small.rank) == 2
    assert all(np.isfinite(c).all() for c in small.cores)


def test_combinations_of_ranks_reach_the_path():
    """Every pair of bonds within reach is accepted, whatever its neighbours can use."""
    x = planted((3, 4, 5), decay=0.9)
    for bonds in itertools.product(range(1, 4), range(1, 6)):
        fit = td.tensor_train(x, rank=bonds)
        assert fit.tensor.rank[1:-1] == bonds
        same = td.tensor_train(x, rank=usable_bonds(bonds, x.shape))
        np.testing.assert_allclose(fit.tensor.to_dense(), same.tensor.to_dense(), atol=1e-12)
