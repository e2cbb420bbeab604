"""CP of formats, of vectors and of many modes, of several inputs, and without negative entries."""

from __future__ import annotations

import importlib
import itertools
import math
import sys

import numpy as np
import pytest
import tensorly

import tdecomp as td
from tdecomp._xp import to_numpy, tol
from tdecomp.decomposition.methods.cp.cp import CPMethod
from tdecomp.decomposition.methods.cp.sweeps import mttkrp
from tdecomp.decomposition.run import run
from tdecomp.formats import CP, TT, Format, Network, Tucker
from tdecomp.modes import Equation
from tdecomp.ranking.target import Target
from tests.laws.cases import SHAPES, planted
from tests.tables import BACKENDS

MODES = ("layer", "out", "in")
SHAPE = (4, 9, 8)


def random_cp(shape, rank: int, seed: int = 0, modes=None) -> CP:
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((n, rank)) for n in shape]
    factors = [f / np.linalg.norm(f, axis=0) for f in factors]
    modes = modes or tuple(f"m{k}" for k in range(len(shape)))
    return CP(modes, np.linspace(1, 2, rank), tuple(factors))


def formats() -> dict[str, Format]:
    x = planted(SHAPE, decay=0.7)
    rng = np.random.default_rng(1)
    equation = Equation.parse("layer a b, out a, in b -> layer out in")
    shapes = (4, 2, 3), (9, 2), (8, 3)
    return {
        "tt": td.tensor_train(x, rank=3, names=MODES).tensor,
        "tucker": td.tucker(x, rank=3, names=MODES).tensor,
        "tucker2": td.tucker2(x, rank=(4, 3), names=MODES).tensor,
        "cp": random_cp(SHAPE, 4, modes=MODES),
        "lowrank": td.svd(x, rank=2, names=MODES).tensor,
        "network": Network(equation, tuple(rng.standard_normal(s) for s in shapes)),
    }


FORMATS = formats()


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def fmt(request) -> Format:
    return request.param


def dense_error(fmt: Format, fit: td.Fit) -> float:
    x = to_numpy(fmt.to_dense())
    return float(np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x))


@pytest.mark.parametrize("target", [{"rank": 3}, {"error": 0.2}, {"budget": 66}], ids=str)
def test_cp_of_a_format(fmt, target):
    fit = td.cp(fmt, **target)
    assert fit.error == pytest.approx(dense_error(fmt, fit), abs=tol("float64", 300))
    assert fit.error_method == "coordinates"
    assert fit.tensor.modes == MODES
    assert fit.error <= target.get("error", 1)
    assert fit.n_params <= target.get("budget", math.inf)
    assert fit.n_params == fit.tensor.rank * (1 + sum(SHAPE))
    assert fit.error <= 1.01 * td.cp(fmt.to_dense(), rank=fit.tensor.rank).error + 1e-9


def test_fewer_components_of_a_cp_begin_with_its_strongest():
    clean = random_cp((7, 8, 9), 3)
    weak = random_cp((7, 8, 9), 3, seed=1)
    x = clean + 1e-3 * weak
    fit = td.cp(x, rank=3)
    strongest = float((x - clean).norm() / x.norm())
    assert fit.error <= strongest
    assert td.cp(x, rank=6).error < 1e-10
    given = td.cp(x, rank=3, init=clean, n_iter_max=1)
    assert "given" in given.trace.reason
    assert given.error <= strongest


def test_any_format_starts_the_cp_of_a_format():
    x = FORMATS["tucker"]
    for start in FORMATS.values():
        assert td.cp(x, rank=3, init=start).error <= 1.1 * td.cp(x, rank=3).error


def test_formats_of_every_library(xp):
    start = random_cp(SHAPE, 3)
    x = start.with_arrays({k: xp.asarray(a) for k, a in start.arrays.items()})
    fit = td.cp(x, rank=2)
    assert all(type(a) is type(x.weights) for a in fit.tensor.arrays.values())
    assert fit.error == pytest.approx(td.cp(start, rank=2).error, rel=1e-6)


def test_a_split_axis_becomes_one_mode():
    mpo = td.mpo(planted((3, 8, 6)), out=(4, 2), inp=(3, 2), rank=3, names="layer out in").tensor
    fit = td.cp(mpo, rank=3)
    assert fit.tensor.modes == ("layer", "(o1 o2)", "(i1 i2)")
    assert fit.error == pytest.approx(dense_error(mpo, fit), abs=1e-12)


def test_the_dense_tensor_is_never_formed():
    """10^15 entries."""
    x = random_cp((10**5,) * 3, 3)
    fit = td.cp(x, rank=2)
    assert 0 < fit.error < 1
    assert fit.tensor.rank == 2


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 2, 4, 2, 3)], ids=str)
def test_the_half_tensors_give_every_update(shape, rng):
    if len(shape) < 2:
        return
    x, factors = rng.standard_normal(shape), [rng.standard_normal((n, 3)) for n in shape]
    for mode in range(len(shape)):
        rest = [f for k, f in enumerate(factors) if k != mode]
        unfolded = np.moveaxis(x, mode, 0).reshape(shape[mode], -1)
        expected = unfolded @ (
            tensorly.tenalg.khatri_rao(rest) if len(rest) > 1 else rest[0].reshape(-1, 3)
        )
        np.testing.assert_allclose(mttkrp(x, factors, mode), expected, atol=1e-10)


@pytest.mark.parametrize("target", [{"rank": 1}, {"error": 0.1}, {"budget": 8}], ids=str)
def test_a_vector_has_rank_one(target, xp):
    x = np.arange(-3.0, 4.0)
    fit = td.cp(xp.asarray(x), **target)
    assert fit.tensor.rank == 1
    np.testing.assert_allclose(to_numpy(fit.tensor.to_dense()), x, atol=1e-14)
    assert fit.error < 1e-14
    assert td.cp(fit.tensor, **target).error < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"rank": 3}, {"error": 1e-3}, {"budget": 130}], ids=str)
def test_twenty_modes(target):
    rng = np.random.default_rng(0)
    columns = [np.ones((1, 3))]
    for _ in range(20):
        f = rng.standard_normal((2, 3))
        columns.append((columns[-1][:, None, :] * (f / np.linalg.norm(f, axis=0))).reshape(-1, 3))
    x = (columns[-1] @ [1.0, 0.8, 0.6]).reshape((2,) * 20)
    fit = td.cp(x, n_iter_max=30, n_restarts=4, **target)
    assert fit.tensor.rank <= 3
    assert fit.error < 0.1


def test_spectra_are_those_that_were_looked_at():
    x = planted((12, 5, 9), decay=0.9)
    assert set(td.cp(x, rank=3).spectra) == {"m0", "m1", "m2"}
    assert set(td.cp(x, rank=6).spectra) == {"m0", "m2"}
    assert td.cp(x, rank=3, compress=False).spectra == {}
    for fit in (td.cp(x, budget=60), td.cp(x, error=0.5)):
        for k, (mode, s) in enumerate(fit.spectra.items()):
            assert mode == f"m{k}"
            unfolded = np.moveaxis(x, k, 0).reshape(x.shape[k], -1)
            np.testing.assert_allclose(s, np.linalg.svd(unfolded, compute_uv=False), atol=1e-12)
    s = np.linalg.svd(x[0], compute_uv=False)
    np.testing.assert_allclose(td.cp(x[0], rank=2).spectra["m1"], s[:2])


XS = [planted((3, 8, 6)), 1e-3 * planted((2, 5, 7), seed=1), random_cp((5, 6, 4), 2).to_dense()]


@pytest.mark.parametrize("error", [0.5, 0.1, 0.02])
def test_an_error_over_several_inputs(error):
    fits = run(CPMethod(), XS, Target(error=error))
    residual = sum(np.sum((x - f.tensor.to_dense()) ** 2) for x, f in zip(XS, fits, strict=True))
    total = sum(np.sum(x**2) for x in XS)
    assert fits.error == pytest.approx(math.sqrt(residual / total), rel=1e-6)
    assert fits.error <= error
    assert fits[1].n_params == 0  # not worth a number at this error
    assert fits[2].tensor.rank <= 2


@pytest.mark.parametrize("budget", [40, 100, 300])
def test_a_budget_over_several_inputs(budget):
    fits = run(CPMethod(), XS, Target(budget=budget))
    assert budget - sum(1 + sum(x.shape) for x in XS) < fits.n_params <= budget


def test_a_rank_over_several_inputs():
    assert [f.tensor.rank for f in run(CPMethod(n_iter_max=3), XS, Target(rank=4))] == [4, 4, 4]


def test_zero_among_several_inputs():
    xs = [np.zeros((2, 4, 4)), XS[0]]
    for target in (Target(error=0.2), Target(budget=80), Target(rank=2)):
        fits = run(CPMethod(), xs, target)
        assert fits[0].error == 0
        assert fits.error <= (target.error or 1)


def positive(shape, rank: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return tensorly.cp_to_tensor((np.ones(rank), [rng.random((n, rank)) ** 2 for n in shape]))


POSITIVE = [(6, 7, 8), (5, 6), (4, 1, 5), (3, 4, 2, 5), (7,)]


@pytest.mark.parametrize(
    ("shape", "init", "library"),
    [
        *((shape, init, "numpy") for shape in POSITIVE for init in ("hosvd", "random")),
        *(((6, 7, 8), "hosvd", library) for library in BACKENDS[1:]),
        *(((4, 1, 5), "random", library) for library in BACKENDS[1:]),
    ],
    ids=str,
)
def test_factors_without_negative_entries(shape, init, library):
    xp = importlib.import_module(library)
    rank = min(2, math.prod(shape) // max(shape))
    x = positive(shape, 2)
    fit = td.cp(xp.asarray(x), rank=rank, nonnegative=True, init=init, n_restarts=3)
    for array in fit.tensor.arrays.values():
        assert type(array) is type(xp.asarray(x))
        assert float(xp.min(array)) >= 0
    expected = np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x)
    assert fit.error == pytest.approx(expected, abs=1e-12)
    assert fit.error < 0.02


def test_nonnegative_is_as_good_as_tensorlys():
    for seed in range(4):
        x = positive((5, 6, 7), 4, seed) + 0.1 * np.random.default_rng(seed).random((5, 6, 7))
        theirs = tensorly.decomposition.non_negative_parafac_hals(
            x,
            3,
            init="svd",
            random_state=np.random.RandomState(0),
            tol=1e-7,
        )
        left = np.linalg.norm(x - tensorly.cp_to_tensor(theirs)) / np.linalg.norm(x)
        assert td.cp(x, rank=3, nonnegative=True).error <= 1.02 * left


def test_more_components_than_a_mode_has_entries():
    fit = td.cp(positive((2, 6, 7), 3), rank=4, nonnegative=True)
    assert fit.tensor.rank == 4
    assert fit.error < 0.05


@pytest.mark.parametrize("fixed", ["", "a", "c", "b c"])
def test_nonnegative_from_given_factors(fixed, xp):
    """From the planted factors, of which what is held comes back and the rest is found again."""
    rng = np.random.default_rng(0)
    factors = [rng.random((n, 2)) ** 2 for n in (6, 7, 8)]
    x = xp.asarray(tensorly.cp_to_tensor((np.ones(2), factors)))
    shaken = [f if name in fixed else f + 0.3 for name, f in zip("abc", factors, strict=True)]
    start = td.CP(tuple("abc"), xp.asarray(np.ones(2)), tuple(map(xp.asarray, shaken)))
    options = {"names": "a b c", "nonnegative": True, "init": start, "n_iter_max": 500}
    fit = td.cp(x, rank=2, fixed=fixed or None, tol=1e-9, **options)
    assert fit.error < 0.01
    for name, found, given in zip("abc", fit.tensor.factors, factors, strict=True):
        assert float(xp.min(found)) >= 0
        if name in fixed:
            units = given / np.linalg.norm(given, axis=0)
            overlaps = to_numpy(found).T @ units
            assert np.sort(np.max(overlaps, axis=0)) == pytest.approx(1, abs=1e-12)
    assert np.array_equal(to_numpy(start.factors[0]), shaken[0])
    if not fixed:
        assert td.cp(x, rank=3, **options).tensor.rank == 3
        assert td.cp(x, rank=1, **options).tensor.rank == 1


def test_nonnegative_with_a_held_mode_and_weights():
    x, start = positive((4, 5, 6), 2), td.CP.random((4, 5, 6), 2, random_state=0)
    start = td.CP(start.modes, abs(start.weights), tuple(abs(f) for f in start.factors))
    weights = np.random.default_rng(0).random(x.shape)
    fixed = start.modes[2]
    fit = td.cp(x, rank=2, nonnegative=True, init=start, fixed=fixed, weights=weights)
    overlaps = fit.tensor.factors[2].T @ (
        start.factors[2] / np.linalg.norm(start.factors[2], axis=0)
    )
    assert np.max(overlaps, axis=0) == pytest.approx(1, abs=1e-12)
    assert fit.error < 1


def test_nonnegative_targets():
    x = positive((5, 6, 7), 3)
    fit = td.cp(x, error=0.05, nonnegative=True, n_iter_max=500, tol=1e-8)
    assert fit.error <= 0.05
    assert td.cp(x, budget=40, nonnegative=True).tensor.rank == 2
    restarted = td.cp(x, rank=3, nonnegative=True, n_restarts=3)
    assert restarted.error <= td.cp(x, rank=3, nonnegative=True).error
    assert td.cp(-x, rank=1, nonnegative=True).error <= 1
    assert td.cp(1e100 * x, rank=2, nonnegative=True).error == pytest.approx(
        td.cp(x, rank=2, nonnegative=True).error, rel=1e-6
    )
    assert td.cp(0 * x, rank=2, nonnegative=True).error == 0


def test_nonnegative_where_entries_are_missing():
    x = positive((6, 7, 8), 2)
    mask = np.random.default_rng(1).random(x.shape) > 0.25
    options = {"rank": 2, "nonnegative": True, "n_iter_max": 800, "tol": 1e-9}
    fit = td.cp(np.where(mask, x, np.nan), weights=mask, **options)
    assert all(np.min(f) >= 0 for f in fit.tensor.factors)
    assert np.min(fit.tensor.weights) >= 0
    assert np.linalg.norm(fit.tensor.to_dense() - x) < 0.02 * np.linalg.norm(x)
    left = np.where(mask, fit.tensor.to_dense() - x, 0)
    assert fit.error == pytest.approx(np.linalg.norm(left) / np.linalg.norm(x * mask))
    errors = np.array(fit.trace.errors)
    assert np.all(np.diff(errors) <= 0)
    again = td.cp(np.where(mask, x, -1e6), weights=mask, **options)
    np.testing.assert_allclose(again.tensor.to_dense(), fit.tensor.to_dense(), atol=1e-12)


def test_nonnegative_of_weighted_entries():
    x = positive((5, 6, 7), 3)
    rng = np.random.default_rng(2)
    signs, weights = rng.standard_normal(x.shape), rng.random(x.shape)
    fit = td.cp(x + 0.1 * signs, rank=3, nonnegative=True, weights=weights, n_iter_max=300)
    plain = td.cp(x + 0.1 * signs, rank=3, nonnegative=True, n_iter_max=300)
    left = np.sqrt(weights) * (plain.tensor.to_dense() - x - 0.1 * signs)
    assert fit.residual.sum() <= np.sum(left**2)
    matrix = td.cp(x[0], rank=3, nonnegative=True, weights=weights[0], n_iter_max=300)
    assert matrix.error < 0.01


def test_nonnegative_needs_tensorly(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(td.ArgumentError, match="pip install tensorly"):
        td.cp(positive((3, 4, 5), 1), rank=1, nonnegative=True)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_orders_of_magnitude(scale):
    x = planted((5, 8, 6), decay=0.8)
    for options in ({"rank": 2}, {"error": 0.3}, {"rank": 9, "compress": False}):
        plain, scaled = td.cp(x, **options), td.cp(scale * x, **options)
        assert scaled.tensor.rank == plain.tensor.rank
        assert scaled.error == pytest.approx(plain.error, rel=1e-3)


def test_strided_and_read_only_arrays():
    x = planted((6, 8, 5), decay=0.8)
    strided = np.asfortranarray(np.repeat(x, 2, axis=1))[::-1, ::2]
    strided.flags.writeable = False
    fit, plain = td.cp(strided, rank=3), td.cp(x[::-1].copy(), rank=3)
    assert fit.error == pytest.approx(plain.error, rel=1e-9)


CP3 = random_cp(SHAPE, 2, modes=MODES)
X = np.abs(planted((3, 8, 6)))
REFUSED = [
    (CP3, {"names": "a b c"}, "for arrays"),
    (CP3, {"weights": np.ones(SHAPE)}, "weights is for arrays"),
    (CP3, {"nonnegative": True}, "nonnegative is for arrays"),
    (CP3, {"rounding": np.float32}, "rounding is for arrays"),
    (CP3, {"rank": 99}, "no tensor of shape"),
    (CP3, {"rank": None, "budget": 10}, "smallest possible is 22"),
    (CP3, {"init": random_cp((4, 9, 7), 1)}, "init has the shape"),
    (X, {"nonnegative": True, "init": "gevd"}, "starts from"),
    (X, {"nonnegative": True, "init": random_cp((3, 8, 6), 1)}, "init has negative"),
    (X, {"nonnegative": True, "ridge": 0.1}, "takes no ridge"),
    (X[0, 0], {"weights": X[0, 0]}, "two or more modes"),
]


@pytest.mark.parametrize(("x", "options", "text"), REFUSED, ids=[t for *_, t in REFUSED])
def test_bad_arguments_are_refused(x, options, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.cp(x, **({"rank": 1} | options))


def test_complex_formats_are_refused():
    tt = TT((("a",), ("b",)), (np.ones((1, 3, 2)) * 1j, np.ones((2, 4, 1))))
    with pytest.raises(td.DataError, match="real arrays"):
        td.cp(tt, rank=1)


def test_errors_never_rise_on_a_core():
    core, rng = planted((6, 7, 5), decay=0.9), np.random.default_rng(0)
    factors = tuple(
        rng.standard_normal((n, r)) for n, r in zip((30, 20, 25), core.shape, strict=True)
    )
    errors = td.cp(Tucker(MODES, core, factors), rank=4).trace.errors
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))
