"""Trains: how many decompositions an error takes, growth of bonds, sweeps by halves."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tdecomp as td
from tdecomp._xp import adjoint, tol
from tdecomp.decomposition.methods.train import method as chains
from tdecomp.decomposition.methods.train import sweeps
from tdecomp.decomposition.methods.train.als import tt_als
from tdecomp.decomposition.methods.train.bonds import count_numbers, fill_budget, grow_bonds
from tdecomp.decomposition.methods.train.sweeps import reshape, right_orthonormal
from tdecomp.linalg import orthonormal
from tdecomp.ranking.rounding import SAME
from tests.laws.cases import planted


def train(d: int, bond: int, decay: float = 1.0, seed: int = 0) -> td.TT:
    rng, fall = np.random.default_rng(seed), decay ** np.arange(bond)
    cores = [rng.standard_normal((bond, 4, bond)) * fall / math.sqrt(bond) for _ in range(d)]
    cores[0], cores[-1] = cores[0][:1], cores[-1][..., :1]
    return td.TT(tuple((f"m{k}",) for k in range(d)), tuple(cores))


@pytest.fixture
def decompositions(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices that sweeps take singular vectors of."""
    seen, basis = [], sweeps.left_basis
    monkeypatch.setattr(sweeps, "left_basis", lambda x, k: seen.append(x.shape) or basis(x, k))
    return seen


@pytest.mark.parametrize("d", [3, 10, 50, 200, 400])
def test_a_train_of_lower_bonds_is_found_in_one_sweep(d, decompositions):
    both = train(d, 3) + train(d, 3)
    small = td.tt_round(both, error=1e-8)
    assert len(decompositions) == d - 1
    assert small.rank == td.tt_round(both, rank=3).rank


@pytest.mark.parametrize("error", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("d", [10, 40, 160])
def test_an_error_takes_a_few_sweeps_whatever_the_number_of_modes(d, error, decompositions):
    tt = train(d, 6, decay=0.5)
    small = td.tt_round(tt, error=error)
    assert len(decompositions) <= 12 * d
    assert float((tt - small).norm()) <= error * float(tt.norm()) * (1 + 1e-6)


def test_a_dense_tensor_of_many_modes_takes_what_its_rank_takes(decompositions):
    x = np.cos(np.arange(2.0**14)).reshape((2,) * 14)
    assert td.tensor_train(x, error=1e-10).tensor.rank == (1, *(2,) * 13, 1)
    met = [*decompositions]
    decompositions.clear()
    td.tensor_train(x, rank=2)
    assert [math.prod(shape) for shape in met] == [math.prod(shape) for shape in decompositions]


def naive_growth(sizes, energies, bonds, budget):
    """Every raise of every bond looked at for every step."""
    while True:
        offers = []
        for k in range(len(bonds)):
            if bonds[k] < len(energies[k]):
                raised = sweeps_raise(sizes, bonds, k)
                cost = count_numbers(sizes, raised) - count_numbers(sizes, bonds)
                steps = zip(energies, bonds, raised, strict=True)
                offers.append((sum(e[a:b].sum() for e, a, b in steps) / cost, cost, raised))
        offers = [o for o in offers if o[1] <= budget - count_numbers(sizes, bonds) and o[0] > 0]
        if not offers:
            return bonds
        most = max(price for price, _, _ in offers)
        bonds = next(raised for price, _, raised in offers if price * (1 + SAME) >= most)


def sweeps_raise(sizes, bonds, k):
    new = [*bonds]
    new[k] += 1
    for j in range(k + 1, len(new)):
        new[j] = max(new[j], -(-new[j - 1] // sizes[j]))
    for j in range(k - 1, -1, -1):
        new[j] = max(new[j], -(-new[j + 1] // sizes[j + 1]))
    return tuple(new)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2,) * 7, (5, 2, 2, 2, 6), (2, 3, 2, 4, 3), (4, 7)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_bonds_grow_as_if_every_raise_was_looked_at(shape, seed):
    x = planted(shape, seed=seed, decay=0.7)
    sides = [math.prod(shape[:k]) for k in range(1, len(shape))]
    energies = [np.linalg.svd(x.reshape(n, -1), compute_uv=False) ** 2 for n in sides]
    ones = (1,) * (len(shape) - 1)
    assert grow_bonds(shape, energies)[-1] == naive_growth(shape, energies, ones, math.inf)
    for budget in (20, 45, 80, 150):
        if count_numbers(shape, ones) <= budget:
            found = fill_budget(shape, energies, ones, budget)
            assert found == naive_growth(shape, energies, ones, budget)


def naive_sweep(x, cores):
    """One core after the other, each from the tensor projected on all others."""
    cores, done = right_orthonormal(cores), []
    rest = reshape(x, (1, -1))
    for k, core in enumerate(cores):
        best = rest
        for after in reversed(cores[k + 1 :]):
            t, m, u = after.shape
            best = reshape(best, (-1, m * u)) @ adjoint(reshape(after, (t, m * u)))
        best = reshape(best, (core.shape[0] * core.shape[1], core.shape[2]))
        if k < len(cores) - 1:
            q = orthonormal(best)
            done.append(reshape(q, (core.shape[0], core.shape[1], q.shape[1])))
            rest = adjoint(q) @ reshape(rest, (core.shape[0] * core.shape[1], -1))
            if q.shape[1] != core.shape[2]:
                return None
    return [*done, reshape(best, core.shape)]


@pytest.mark.parametrize("shape", [(4, 5, 6), (2,) * 8, (9, 2, 2, 2), (3, 1, 4, 5, 2)], ids=str)
@pytest.mark.parametrize("complex_", [False, True])
def test_a_sweep_by_halves_is_a_sweep(shape, complex_):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if complex_ else 0)
    cores = list(td.tensor_train(x, rank=2, n_iter_max=0).tensor.cores)
    (halves, _), plain = tt_als(x, cores, 1, 0.0), naive_sweep(x, cores)
    assert plain is not None
    axes = tuple((f"m{k}",) for k in range(len(shape)))
    np.testing.assert_allclose(
        td.TT(axes, tuple(halves)).to_dense(),
        td.TT(axes, tuple(plain)).to_dense(),
        atol=tol("float64", x.size),
    )


def test_sweeps_run_only_where_they_can_win(monkeypatch):
    """Not where what is lost is rounding."""
    begun = []
    monkeypatch.setattr(
        chains, "tt_als", lambda x, cores, *a, **k: begun.append(1) or _still(cores)
    )
    x = planted((6, 7, 8), decay=0.9)
    exact = td.tensor_train(x, rank=3, n_iter_max=0).tensor.to_dense()
    begun.clear()
    assert td.tensor_train(exact, rank=3).error < 1e-12
    assert not begun
    td.tensor_train(x, rank=2)
    assert begun


def _still(cores):
    return cores, td.decomposition.Trace()
