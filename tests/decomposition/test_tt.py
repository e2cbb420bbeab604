"""Tensor trains and MPOs: TT-SVD against TensorLy, bonds, budgets, rounding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorly

import tdecomp as td
from tdecomp import linalg
from tdecomp._xp import to_numpy, tol
from tdecomp.decomposition.methods.train.bonds import grow_bonds, raise_bond, usable_bonds
from tests.laws.cases import SHAPES, planted

ORDER3 = [shape for shape in SHAPES if len(shape) > 2]


def unfoldings(x: np.ndarray) -> list[np.ndarray]:
    return [x.reshape(math.prod(x.shape[:k]), -1) for k in range(1, x.ndim)]


def tails(x: np.ndarray, bonds) -> list[float]:
    """Squared tails of the unfoldings at all bonds."""
    return [
        float(np.sum(np.linalg.svd(m, compute_uv=False)[r:] ** 2))
        for m, r in zip(unfoldings(x), bonds, strict=True)
    ]


def noisy_train(shape, bonds, noise: float, seed: int = 0) -> np.ndarray:
    """A train of the given bonds plus white noise of a relative size."""
    rng = np.random.default_rng(seed)
    full = (1, *bonds, 1)
    cores = [rng.standard_normal((a, n, b)) for a, n, b in zip(full, shape, full[1:], strict=False)]
    x = tensorly.tt_to_tensor(cores)
    x /= np.linalg.norm(x)
    e = rng.standard_normal(shape)
    return x + noise * e / np.linalg.norm(e)


def random_train(shape, bonds, axes=None, dtype="float64", seed: int = 0) -> td.TT:
    rng = np.random.default_rng(seed)
    full = (1, *bonds, 1)
    axes = axes or tuple((f"m{k}",) for k in range(len(shape)))
    cores = tuple(
        rng.standard_normal((a, *np.atleast_1d(n), b)).astype(dtype)
        for a, n, b in zip(full, shape, full[1:], strict=False)
    )
    return td.TT(axes, cores)


def orthonormal_but_one(tt: td.TT) -> bool:
    """All cores but one end are orthonormal towards that end."""

    def unit(matrix):
        return np.allclose(matrix @ matrix.T, np.eye(len(matrix)))

    left = all(unit(c.reshape(-1, c.shape[-1]).T) for c in tt.cores[:-1])
    return left or all(unit(c.reshape(c.shape[0], -1)) for c in tt.cores[1:])


@pytest.mark.parametrize("shape", ORDER3, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_error_keeps_the_bound_of_tt_svd(shape, rank):
    x = planted(shape, decay=0.8)
    fit = td.tensor_train(x, rank=rank)
    worst = tails(x, fit.tensor.rank[1:-1])
    slack = tol("float64", x.size) * np.sum(x**2)
    assert max(worst) - slack <= fit.error**2 * np.sum(x**2) <= sum(worst) + slack
    assert orthonormal_but_one(fit.tensor)


@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 5), (5, 3, 4, 5)], ids=str)
def test_from_the_left_it_is_tensorlys_tt_svd(shape):
    x = planted(shape, decay=0.8)
    theirs = tensorly.decomposition.tensor_train(x, rank=[1, *[3] * (x.ndim - 1), 1])
    ours = td.tensor_train(x, rank=3, n_iter_max=0).tensor
    np.testing.assert_allclose(
        ours.to_dense(), tensorly.tt_to_tensor(theirs), atol=tol("float64", x.size)
    )


def test_mpo_is_tensorlys_tensor_train_matrix(rng):
    w = rng.standard_normal((12, 10))
    ours = td.mpo(w, out=(4, 3), inp=(5, 2), rank=4)
    # TensorLy takes (o1, o2, i1, i2) and has matrix cores (r, o, i, s)
    theirs = tensorly.decomposition.tensor_train_matrix(
        w.reshape(4, 3, 5, 2), rank=[1, 4, 1]
    ).to_tensor()
    np.testing.assert_allclose(
        ours.tensor.to_dense(), theirs.reshape(12, 10), atol=tol("float64", w.size)
    )
    assert [c.shape for c in ours.tensor.cores] == [(1, 4, 5, 4), (4, 3, 2, 1)]


def test_the_best_rank_one_bond_of_a_matrix_is_eckart_and_youngs(rng):
    x = rng.standard_normal((6, 9))
    s = np.linalg.svd(x, compute_uv=False)
    expected = np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2))
    assert td.tensor_train(x, rank=2).error == pytest.approx(expected, rel=1e-12)


def test_noise_is_not_counted_once_per_bond():
    """All bonds see the same noise: cutting it everywhere costs its norm only once."""
    x = noisy_train((6, 7, 8, 9), (2, 3, 2), noise=0.05)
    fit = td.tensor_train(x, error=0.055)
    assert fit.tensor.rank == (1, 2, 3, 2, 1)
    assert math.sqrt(sum(tails(x, (2, 3, 2)))) > 0.055 * np.linalg.norm(x)


@pytest.mark.parametrize("error", [0.4, 0.1, 1e-2])
def test_unused_error_is_spent(error):
    """Never more numbers than cutting every bond at error · ‖X‖ / √(d - 1)."""
    x = planted((5, 6, 7, 6), decay=0.7)
    fit = td.tensor_train(x, error=error)
    delta = error**2 * np.sum(x**2) / (x.ndim - 1)
    paper = [
        int(np.argmax(np.append(np.cumsum((s**2)[::-1])[::-1], 0) <= delta))
        for s in (np.linalg.svd(m, compute_uv=False) for m in unfoldings(x))
    ]
    full = (1, *paper, 1)
    stored = sum(a * n * b for a, n, b in zip(full, x.shape, full[1:], strict=False))
    assert fit.error <= error
    assert fit.n_params <= stored


def test_a_budget_is_nearly_the_best_for_it():
    """Against brute force over all bonds."""
    x = planted((4, 5, 6), decay=0.7)
    for budget in (30, 60, 90):
        fit = td.tensor_train(x, budget=budget, n_iter_max=0)
        best = min(
            td.tensor_train(x, rank=(a, b), n_iter_max=0).error
            for a, b in itertools.product(range(1, 5), range(1, 7))
            if 4 * a + 5 * a * b + 6 * b <= budget
        )
        assert fit.n_params <= budget
        assert fit.error <= 1.1 * best


def test_a_budget_is_never_worse_than_one_rank_for_it(rng):
    """Bonds that are cheap while their neighbours are 1 are paid for later."""
    u, v = rng.standard_normal((30, 8)), rng.standard_normal((8, 30))
    x = u @ (rng.standard_normal((4, 3, 8, 8)) * 0.8 ** np.arange(8)[:, None]) @ v
    for rank in (2, 4, 6):
        even = td.tensor_train(x, rank=rank, n_iter_max=0)
        fit = td.tensor_train(x, budget=even.n_params, n_iter_max=0)
        assert fit.n_params <= even.n_params
        assert fit.error <= even.error * (1 + 1e-9)


def test_a_budget_of_three_modes_is_nearly_the_best_for_it(rng):
    """Against brute force where the greedy path alone lost up to 17 %."""
    for shape, budget in (((5, 4, 4), 41), ((6, 2, 7), 63), ((5, 6, 5), 80)):
        x = rng.standard_normal(shape)
        a, n, b = shape
        best = min(
            td.tensor_train(x, rank=(r, s), n_iter_max=0).error
            for r, s in itertools.product(range(1, min(a, n * b) + 1), range(1, min(a * n, b) + 1))
            if a * r + r * n * s + s * b <= budget
        )
        assert td.tensor_train(x, budget=budget, n_iter_max=0).error <= 1.05 * best


def test_a_budget_is_used_up():
    """No bond could be raised within what is left."""
    x = planted((5, 6, 7, 6), decay=0.9)
    for budget in range(60, 600, 37):
        fit = td.tensor_train(x, budget=budget)
        bonds = fit.tensor.rank[1:-1]
        assert fit.n_params <= budget
        for k, _ in enumerate(bonds):
            full = (1, *raise_bond(x.shape, bonds, k), 1)
            more = sum(a * n * b for a, n, b in zip(full, x.shape, full[1:], strict=False))
            assert more > budget or full[k + 1] > min(unfoldings(x)[k].shape)


@pytest.mark.parametrize("shape", ORDER3, ids=str)
def test_the_path_is_feasible_grows_and_ends_full(shape):
    x = planted(shape)
    spectra = [np.linalg.svd(m, compute_uv=False) ** 2 for m in unfoldings(x)]
    path = grow_bonds(shape, spectra)
    assert path[0] == (1,) * (len(shape) - 1)
    assert path[-1] == tuple(min(m.shape) for m in unfoldings(x))
    for before, after in itertools.pairwise(path):
        assert all(a <= b for a, b in zip(before, after, strict=True))
        assert usable_bonds(after, shape) == after


@pytest.mark.parametrize("modes", [None, ("in", "out", "layer"), (1, 0, 2)], ids=str)
def test_modes_may_be_chained_in_any_order(modes):
    x = planted((3, 8, 6))
    fit = td.tensor_train(x, rank=8, modes=modes, names="layer out in")
    assert fit.tensor.modes == ("layer", "out", "in")
    np.testing.assert_allclose(fit.tensor.to_dense(), x, atol=tol("float64", x.size))
    order = [0, 1, 2] if modes is None else [2, 1, 0] if modes[0] == "in" else [1, 0, 2]
    assert [c.shape[1] for c in fit.tensor.cores] == [x.shape[k] for k in order]
    left = " ".join(("layer", "out", "in")[k] for k in order[:1])
    assert list(fit.spectra)[0].startswith(f"{left} | ")


def test_ranks_with_and_without_the_ends_are_the_same():
    x = planted((3, 8, 6))
    inner, outer = td.tensor_train(x, rank=(2, 4)), td.tensor_train(x, rank=(1, 2, 4, 1))
    assert inner.tensor.rank == outer.tensor.rank == (1, 2, 4, 1)
    assert inner.error == outer.error


def test_bonds_that_neighbours_cannot_use_are_kept_and_cost_nothing():
    x = planted((4, 3, 5))
    literal, same = td.tensor_train(x, rank=(4, 1)), td.tensor_train(x, rank=(3, 1))
    assert literal.tensor.rank == (1, 4, 1, 1)
    assert literal.error == same.error


def test_stacks_are_read():
    arrays = {f"h.{i}.att.{p}.weight": planted((6, 4), seed=i) for i in range(3) for p in "qk"}
    (stack,) = td.Stack.from_arrays(arrays)
    fit = td.tensor_train(stack, error=0.2)
    assert fit.tensor.modes == ("layer", "proj", "out", "in")
    difference = stack.dense() - fit.tensor.to_dense()
    expected = np.linalg.norm(difference) / np.linalg.norm(stack.dense())
    assert fit.error == pytest.approx(expected, rel=1e-9)
    assert expected <= 0.2
    matrix = td.mpo(stack, out=(2, 3), inp=(2, 2), error=0.2)
    assert matrix.tensor.shape == stack.shape
    assert matrix.error <= 0.2


@pytest.mark.parametrize("target", [{"rank": 3}, {"error": 0.3}, {"budget": 150}], ids=str)
@pytest.mark.parametrize(("shape", "out", "inp"), [
    ((12, 10), (4, 3), (5, 2)),
    ((8, 8), (2, 2, 2), (2, 2, 2)),
    ((3, 6, 4), (3, 2), (1, 4)),
    ((2, 3, 6, 4), (6,), (4,)),
], ids=str)  # fmt: skip
def test_mpos_of_stacks(target, shape, out, inp, xp):
    x = planted(shape, decay=0.9)
    fit = td.mpo(xp.asarray(x), out=out, inp=inp, **target)
    dense = to_numpy(fit.tensor.to_dense())
    assert dense.shape == shape
    expected = np.linalg.norm(x - dense) / np.linalg.norm(x)
    assert fit.error == pytest.approx(expected, abs=tol("float64", x.size))
    assert fit.error <= target.get("error", 1)
    assert fit.n_params <= target.get("budget", math.inf)
    assert [c.shape[1:-1] for c in fit.tensor.cores[-len(out) :]] == list(
        zip(out, inp, strict=True)
    )
    left, right = fit.tensor.pair(fit.tensor.n_sites - 1)
    np.testing.assert_allclose(
        to_numpy(left @ right), dense.reshape(-1, *shape[-2:])[-1], atol=tol("float64", x.size)
    )


@pytest.mark.parametrize("svd", [linalg.svd_full, linalg.svd_gram, linalg.svd_qr, linalg.svd_auto,
                                 linalg.svd_randomized], ids=lambda f: f.__name__)  # fmt: skip
def test_any_svd_can_be_passed(svd, xp):
    x = noisy_train((5, 6, 7), (3, 4), noise=0.01)
    exact = td.tensor_train(x, rank=(3, 4))
    fit = td.tensor_train(xp.asarray(x), rank=(3, 4), svd=svd)
    assert fit.tensor.rank == exact.tensor.rank
    assert fit.error == pytest.approx(exact.error, rel=1e-6)
    assert td.mpo(x, out=(2, 3), inp=(7, 1), budget=90, svd=svd).n_params <= 90
    assert td.tensor_train(x, rank=5, svd=svd).error <= exact.error


def test_kronecker_products_have_rank_one():
    w = np.kron(planted((4, 6)), planted((3, 5), seed=1))
    fit = td.mpo(w, out=(4, 3), inp=(6, 5), error=1e-10)
    assert fit.tensor.rank == (1, 1, 1)


def test_models_of_mpos():
    ws = [planted((12, 10)), 0.1 * planted((3, 12, 10), seed=1)]
    fits = td.decompose(ws, td.mpo, error=0.1, out=(4, 3), inp=(5, 2))
    residual = sum(np.sum((w - f.tensor.to_dense()) ** 2) for w, f in zip(ws, fits, strict=True))
    total = math.sqrt(residual / sum(np.sum(w**2) for w in ws))
    assert fits.error == pytest.approx(total, rel=1e-9)
    assert total <= 0.1


def test_rounding_of_the_cores_is_part_of_the_error():
    x = planted((4, 6, 5))
    half = lambda a: a.astype(np.float16).astype(np.float64)
    exact = td.tensor_train(x, error=0.01)
    rounded = td.tensor_train(x, error=0.01, rounding=half)
    assert rounded.error <= 0.01
    assert rounded.n_params >= exact.n_params
    with pytest.raises(td.ArgumentError, match="wider dtype"):
        td.tensor_train(x, error=1e-6, rounding=half)


TRAINS = [
    ((4, 5, 6), (3, 5), None),
    ((7, 5), (4,), None),
    ((1, 4, 1, 3), (2, 3, 3), None),
    (((2, 3), (3, 2), (2, 2)), (4, 3), (("o1", "i1"), ("o2", "i2"), ("o3", "i3"))),
]


@pytest.mark.parametrize(("shape", "bonds", "axes"), TRAINS, ids=str)
@pytest.mark.parametrize("error", [0.7, 0.3, 0.05, 1e-6])
def test_rounding_meets_its_error(shape, bonds, axes, error, xp):
    tt = random_train(shape, bonds, axes)
    dense = tt.to_dense()
    given = td.TT(tt.axes, tuple(xp.asarray(c) for c in tt.cores))
    small = td.tt_round(given, error=error)
    difference = np.linalg.norm(dense - to_numpy(small.to_dense()))
    assert difference <= (error + tol("float64", dense.size)) * np.linalg.norm(dense)
    assert all(a <= b for a, b in zip(small.rank, tt.rank, strict=True))
    assert small.axes == tt.axes
    assert all(type(a) is type(b) for a, b in zip(small.cores, given.cores, strict=True))


@pytest.mark.parametrize(("shape", "bonds", "axes"), TRAINS, ids=str)
def test_rounding_keeps_the_bound_of_the_tails(shape, bonds, axes):
    tt = random_train(shape, bonds, axes)
    small = td.tt_round(tt, rank=2)
    chain = tt.to_dense().reshape([math.prod(c.shape[1:-1]) for c in tt.cores])
    lost = np.sum((tt.to_dense() - small.to_dense()) ** 2)
    worst = tails(chain, small.rank[1:-1])
    slack = tol("float64", chain.size) * np.sum(chain**2)
    assert max(worst) - slack <= lost <= sum(worst) + slack


def test_rounding_finds_the_bonds_of_a_padded_train(rng):
    tt = random_train((4, 5, 6), (2, 3))
    a, b, c = tt.cores
    mix, other = rng.standard_normal((2, 7)), rng.standard_normal((3, 9))
    padded = td.TT(
        tt.axes,
        (
            a @ mix,
            np.einsum("ra,anb,bs->rns", np.linalg.pinv(mix), b, other),
            np.tensordot(np.linalg.pinv(other), c, axes=1),
        ),
        ("m2", "m0", "m1"),
    )
    small = td.tt_round(padded, error=1e-10)
    assert small.rank == (1, 2, 3, 1)
    assert small.modes == ("m2", "m0", "m1")
    np.testing.assert_allclose(small.to_dense(), padded.to_dense(), atol=1e-10)


def test_rounding_never_forms_the_tensor():
    """10^24 entries."""
    tt = random_train((10,) * 24, (6,) * 23, dtype="float32")
    small = td.tt_round(tt, rank=3)
    assert max(small.rank) == 3


def test_rounding_leaves_its_argument_alone_and_keeps_zero():
    tt = random_train((4, 5, 6), (3, 5))
    for c in tt.cores:
        c.flags.writeable = False
    td.tt_round(tt, rank=2)
    zero = td.tensor_train(np.zeros((3, 4, 5)), error=0.1).tensor
    assert td.tt_round(zero, error=0.1).n_params == 0
    nothing = td.TT(tt.axes, tuple(0 * c for c in tt.cores))
    assert np.all(td.tt_round(nothing, error=0.1).to_dense() == 0)


REFUSED = [
    (lambda x: td.tensor_train(x, rank=(4, 2)), r"rank 4 is above 3, the most the bond 'm0 \| m1"),
    (lambda x: td.tensor_train(x, rank=(2, 2, 2)), "2 bonds"),
    (lambda x: td.tensor_train(x, rank=(2, 2, 2, 1)), "outer bonds"),
    (lambda x: td.tensor_train(x, rank={"m0": 2}), r"rank names 'm0'; the bonds are m0 \| m1 m2"),
    (lambda x: td.tensor_train(x, rank=2, modes=(0, 1)), "all modes in chain order"),
    (lambda x: td.tensor_train(x, rank=2, modes=("a", 1, 2)), "no mode 'a'"),
    (lambda x: td.mpo(x, rank=2), "multiply to 768 x 768, the matrices are 8 x 6"),
    (lambda x: td.mpo(x, out=(8,), inp=(2, 3), rank=2), "equally many"),
    (lambda x: td.mpo(x[0], out=(8,), inp=(6,), rank=2), "one core"),
    (lambda x: td.tt_round(random_train((3, 4), (2,)), rank=(3,)), "rank 3 is above 2"),
    (lambda x: td.tt_round(random_train((3, 4), (2,)), error=1e-15), "below 1e-14"),
    (lambda x: td.tt_round(random_train((3, 4), (2,))), "exactly one"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[t for _, t in REFUSED])
def test_bad_arguments_are_refused(call, text):
    with pytest.raises(td.ArgumentError, match=text):
        call(planted((3, 8, 6)))
