"""Rank rules against known spectra and random matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize

import tdecomp as td
from tdecomp.decomposition.spectra import (
    _median,
    denoising_threshold,
    entropy_rank,
    noise_edge,
    noise_level,
    stable_rank,
)
from tests.laws.cases import SHAPES, planted
from tests.tables import each, in_every_library

SIDES = [(100, 100), (100, 400), (60, 3000)]


@each("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@in_every_library
def test_spectra_are_those_of_the_unfoldings(shape, dtype, xp):
    x = planted(shape).astype(dtype)
    found = td.ranks(xp.asarray(x))
    assert list(found.values) == [f"m{k}" for k in range(len(shape))]
    for k, s in enumerate(found.values.values()):
        expected = np.linalg.svd(np.moveaxis(x, k, 0).reshape(shape[k], -1), compute_uv=False)
        assert s.dtype == np.float64
        np.testing.assert_allclose(s, expected, atol=3e-7 * expected[0])


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_ranks_of_a_flat_spectrum_are_its_rank(rank):
    s = np.append(np.full(rank, 7.0), np.zeros(10 - rank))
    assert stable_rank(s) == pytest.approx(rank)
    assert entropy_rank(s) == pytest.approx(rank)


def test_effective_ranks_are_ordered(rng):
    for s in np.sort(rng.random((20, 9)))[:, ::-1]:
        assert 1 <= stable_rank(s) <= entropy_rank(s) <= 9


@pytest.mark.parametrize("beta", [1.0, 0.7, 0.25, 0.01])
def test_the_median_of_the_noise_law(beta):
    low, high = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2

    def missing(t: float) -> float:
        # λ = low + t² takes away the root at the lower end, a pole where beta = 1
        density = lambda u: (
            u**2 * np.sqrt(max(0.0, high - low - u**2)) / (np.pi * beta * (low + u**2))
        )
        return integrate.quad(density, 0, t, limit=200)[0] - 0.5

    root = optimize.brentq(missing, 1e-9, np.sqrt(high - low) * (1 - 1e-9))
    assert _median(beta) == pytest.approx(low + root**2, rel=1e-5)


def test_the_denoising_threshold_of_square_noise_is_the_published_one():
    """2.858 times the median singular value."""
    s = np.linspace(9, 1, 101)
    assert denoising_threshold(s, 101) == pytest.approx(2.858 * np.median(s), rel=1e-3)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("level", [1e-3, 1.0, 50.0])
def test_white_noise_is_recognised(sides, level, rng):
    short, long = sides
    s = np.linalg.svd(level * rng.standard_normal(sides), compute_uv=False)
    assert noise_level(s, long) == pytest.approx(level, rel=0.02)
    assert s[0] == pytest.approx(noise_edge(s, long), rel=2 * short ** (-2 / 3))
    assert denoising_threshold(s, long) > s[0]


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_signal_above_the_bulk_is_counted(sides, rng):
    short, long = sides
    u, v = (np.linalg.qr(rng.standard_normal((n, 5)))[0] for n in sides)
    strengths = np.array([10, 8, 6, 4, 3]) * (np.sqrt(short) + np.sqrt(long))
    found = td.ranks((u * strengths) @ v.T + rng.standard_normal(sides), names="out in")
    assert found.denoised == {"out": 5, "in": 5}
    assert found.choices["denoised"] == found.denoised
    assert 5 <= found.noise["out"] <= 6  # one of the bulk may reach past its edge


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_rank_is_found_without_noise(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 40))
    found = td.ranks(x.astype(dtype))
    assert found.above(1e-3) == {"m0": 3, "m1": 3}
    assert found.energy(0.9999999) == {"m0": 3, "m1": 3}
    if dtype == "float64":
        assert found.noise == {"m0": 3, "m1": 3}


def test_energy_ranks_are_the_smallest():
    x = planted((5, 6, 7))
    found = td.ranks(x)
    for mode, r in found.energy(0.95).items():
        kept = np.cumsum(found.values[mode] ** 2) / np.sum(x**2)
        assert kept[r - 1] >= 0.95
        assert r == 1 or kept[r - 2] < 0.95


def test_choices_are_ranks_that_tucker_takes():
    x = planted((5, 6, 7))
    for rule, rank in td.ranks(x, names="layer out in").choices.items():
        fit = td.tucker(x, rank=rank, names="layer out in")
        assert fit.tensor.rank == tuple(rank.values()), rule


def test_energy_bounds_the_error_of_tucker():
    x = planted((5, 6, 7), decay=0.8)
    found = td.ranks(x)
    assert td.hosvd(x, rank=found.energy(0.9)).error ** 2 <= 3 * 0.1


def test_zero_and_subsets_of_modes():
    found = td.ranks(np.zeros((3, 4, 5)), modes=["in", 0], names="layer out in")
    assert list(found.values) == ["in", "layer"]
    assert found.stable == found.entropy == found.noise == found.energy(0.9)
    assert found.choices["noise"] == {"in": 1, "layer": 1}


def test_stacks_and_scales():
    arrays = {f"h.{i}.att.q.weight": planted((6, 4), seed=i) for i in range(3)}
    (stack,) = td.Stack.from_arrays(arrays)
    plain = td.ranks(stack)
    assert list(plain.values) == list(stack.modes)
    scaled = td.ranks(stack.dense().astype(np.float32) * np.float32(1e-20))
    assert [*plain.stable.values()] == pytest.approx([*scaled.stable.values()], rel=1e-4)


@pytest.mark.parametrize("make", [
    lambda x: td.tucker(x, rank=3).tensor,
    lambda x: td.tensor_train(x, rank=3).tensor,
    lambda x: td.svd(x, rank=1).tensor,
    lambda x: td.cp(x, rank=2).tensor,
    lambda x: td.mpo(x, out=(2, 3), inp=(7, 1), rank=2).tensor,
], ids=["tucker", "train", "lowrank", "cp", "mpo"])  # fmt: skip
def test_spectra_of_a_format_are_those_of_its_tensor(make):
    fmt = make(planted((5, 6, 7), decay=0.8))
    found, expected = td.ranks(fmt), td.ranks(fmt.to_dense())
    assert list(found.values) == list(fmt.modes)
    for s, t in zip(found.values.values(), expected.values.values(), strict=True):
        np.testing.assert_allclose(s, t, atol=1e-12)
    for rule, rank in found.choices.items():
        assert list(rank.values()) == list(expected.choices[rule].values()), rule
    with pytest.raises(td.ArgumentError, match="for arrays"):
        td.ranks(fmt, names="a b c")


def test_a_vector_has_rank_one():
    for x in (np.arange(5.0), td.tensor_train(np.arange(5.0), rank=1).tensor):
        assert all(rank == {"m0": 1} for rank in td.ranks(x).choices.values())


def test_a_format_of_any_size():
    rng = np.random.default_rng(0)
    factors = tuple(rng.standard_normal((10**4, 3)) for _ in range(4))
    assert td.ranks(td.CP(("a", "b", "c", "d"), np.ones(3), factors)).choices["noise"] == {
        m: 3 for m in "abcd"
    }


def test_bad_arguments_are_refused():
    with pytest.raises(td.ArgumentError, match="no mode 'head'"):
        td.ranks(np.ones((3, 4)), modes=["head"])
    with pytest.raises(td.DataError, match="NaN"):
        td.ranks(np.full((3, 4), np.nan))
    with pytest.raises(td.ArgumentError, match="cannot belong"):
        noise_level(np.ones(5), 4)
