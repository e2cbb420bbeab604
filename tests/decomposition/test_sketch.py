"""Large stacks: the two long modes from a few passes of skinny products, one slice at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import tdecomp as td
from tdecomp import linalg
from tdecomp._xp import to_numpy, tol
from tdecomp.decomposition import run as driver
from tdecomp.decomposition.methods import svd as method_of_svd
from tdecomp.passes import matrices, residual
from tdecomp.passes import stream as streams
from tdecomp.passes.tree import TreeSum, added

# Held by the passes over the first of the shapes at rank 12: slices, products and sketches 22 wide.
NUMBERS = 3 * 320 * 300 + 3 * 6 * 22 * 320 + 4 * 4 * 22 * 320
SHAPES = [(6, 320, 300), (2, 3, 300, 320), (340, 330)]


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    """Exact bases count as dear from a fraction of the usual size on."""
    for module in (streams, matrices, method_of_svd):
        monkeypatch.setattr(module, "is_cheap", lambda shape, width, **_: 4 * width > min(shape))


def stack(shape, noise: float, dtype="float32", seed: int = 0) -> np.ndarray:
    """Shared bases of rank 12 with decaying strength, and white noise of a relative size."""
    rng = np.random.default_rng(seed)
    *sites, out, in_ = shape
    left = rng.standard_normal((out, 12)) * 0.8 ** np.arange(12)
    x = left @ rng.standard_normal((*sites, 12, 12)) @ rng.standard_normal((12, in_))
    if dtype.startswith("complex"):
        x = x * (1 + 1j * rng.standard_normal((in_,)))
    e = rng.standard_normal(shape)
    return (x / np.linalg.norm(x) + noise * e / np.linalg.norm(e)).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("method", [td.tucker2, td.tucker, td.hosvd])
def test_the_error_is_that_of_exact_bases(method, shape, noise):
    x = stack(shape, noise)
    fit, exact = method(x, rank=12), method(x, rank=12, svd=linalg.svd_full)
    assert ("sketch" in fit.svd, exact.svd) == (True, "svd_full")
    assert fit.error <= (1.001 if noise < 1 else 1.002) * exact.error + 2e-6
    assert fit.tensor.rank == exact.tensor.rank
    true = np.linalg.norm(x - to_numpy(fit.tensor.to_dense())) / np.linalg.norm(x)
    assert fit.error == pytest.approx(true, rel=1e-3, abs=tol("float32", 1000))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128"])
def test_other_dtypes(dtype):
    x = stack(SHAPES[0], 0.0, dtype)
    fit = td.tucker2(x, rank=12)
    assert "sketch" in fit.svd
    assert fit.error < (1e-5 if dtype == "complex64" else 1e-12)
    assert fit.tensor.core.dtype == x.dtype


def test_sweeps_count_the_whole_tensor():
    x = stack(SHAPES[0], 0.3)
    fit = td.tucker(x, rank=(3, 12, 12), n_iter_max=20, tol=0)
    assert fit.trace.errors[-1] == pytest.approx(fit.error, rel=1e-3)


def test_a_stack_is_never_whole_in_memory():
    x = stack(SHAPES[0], 0.3)
    (lazy,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    object.__setattr__(lazy, "dense", None)
    fit, direct = td.tucker2(lazy, rank=12), td.tucker2(x[:, None], rank=12)
    assert "sketch" in fit.svd
    assert fit.error == pytest.approx(direct.error, rel=1e-3)  # passes of another width


def test_the_seed_is_the_callers():
    x = stack(SHAPES[0], 3.0)
    one, same, other = (td.tucker2(x, rank=12, random_state=s) for s in (1, 1, 2))
    assert (one.tensor.left == same.tensor.left).all()
    assert (one.tensor.left != other.tensor.left).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_the_sketch(bad):
    x = stack(SHAPES[0], 0.3)
    x[3, 100, 7] = bad
    with pytest.raises(td.DataError, match="NaN or Inf"):
        td.tucker2(x, rank=12)


def test_zero_and_extreme_scales():
    x = stack(SHAPES[0], 0.3)
    assert td.tucker2(0 * x, rank=12).error == 0
    expected = td.tucker2(x, rank=12).error
    for scale in (1e-20, 1e20):
        assert td.tucker2(x * np.float32(scale), rank=12).error == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.2), (1e-3, 0.01), (0.3, 0.4), (1.0, 0.8)])
@pytest.mark.parametrize("method", [td.tucker2, td.tucker])
def test_an_error_is_met_by_no_more_than_exact_spectra_need(method, shape, noise, error):
    x = stack(shape, noise)
    fit, exact = method(x, error=error), method(x, error=error, svd=linalg.svd_full)
    assert "sketch" in fit.svd
    assert exact.svd == "exact"
    assert fit.error <= error
    assert fit.n_params <= 1.02 * exact.n_params


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "noise", [0.3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0.0, 1e-3, 3.0))]
)
@pytest.mark.parametrize("method", [td.tucker2, td.tucker])
def test_a_budget_is_spent_as_well_as_with_exact_spectra(method, shape, noise):
    x = stack(shape, noise)
    budget = x.size // 40
    fit, exact = method(x, budget=budget), method(x, budget=budget, svd=linalg.svd_full)
    assert "sketch" in fit.svd
    assert fit.n_params <= budget
    assert fit.error <= 1.005 * exact.error + 2e-6  # many directions of mere noise


def test_a_sketch_that_is_too_narrow_is_widened(monkeypatch):
    """An error that needs more directions than the first sketch has."""
    monkeypatch.setattr(driver, "FIRST_WIDTH", 4)
    x = stack(SHAPES[0], 1e-3)
    fit, exact = td.tucker2(x, error=0.01), td.tucker2(x, error=0.01, svd=linalg.svd_full)
    assert max(fit.tensor.rank) > 4
    assert fit.error <= 0.01
    assert fit.tensor.rank == exact.tensor.rank


def test_what_needs_most_directions_is_decomposed_exactly():
    x = stack(SHAPES[0], 3.0)
    fit = td.tucker2(x, error=0.05)
    assert (fit.svd, fit.error <= 0.05) == ("exact", True)


TRAINS = [
    (0.3, {"rank": 12}),
    (1e-3, {"error": 0.01}),
    (0.3, {"budget": 30_000}),
    (0.0, {"rank": 12}),
    (1e-3, {"rank": 12}),
    (3.0, {"rank": 12}),
    (0.3, {"error": 0.4}),
    (1e-3, {"budget": 30_000}),
]


@pytest.mark.parametrize(
    ("order", "noise", "target"),
    [
        *(("layer out in", *row) for row in TRAINS),
        *((order, *row) for order in ("out layer in", "in out layer") for row in TRAINS[:3]),
    ],
    ids=str,
)
def test_trains(order, noise, target):
    x = stack(SHAPES[0], noise)
    given = {**target, "modes": order.split(), "names": "layer out in"}
    fit, exact = td.tensor_train(x, **given), td.tensor_train(x, **given, svd=linalg.svd_full)
    assert "sketch" in fit.svd
    if "error" in target:
        assert fit.error <= target["error"]
        assert fit.n_params <= 1.02 * exact.n_params
    else:
        assert fit.n_params <= 1.02 * exact.n_params
        assert fit.error <= 1.005 * exact.error + 2e-6
    true = np.linalg.norm(x - fit.tensor.to_dense()) / np.linalg.norm(x)
    assert fit.error == pytest.approx(true, rel=1e-3, abs=tol("float32", 1000))


@pytest.mark.parametrize("error", [0.4, 0.25])
def test_a_train_may_need_bonds_beyond_what_its_sketch_tells(monkeypatch, error):
    monkeypatch.setattr(driver, "FIRST_WIDTH", 4)
    fit = td.tensor_train(stack((4, 240, 250), 0.3), error=error)
    assert ("sketch" in fit.svd, fit.error <= error) == (True, True)


def test_a_train_is_whole_where_only_narrow_sketches_are_worth_it():
    fit = td.tensor_train(stack((150, 160), 0.3), budget=6000)  # sketched for 19, not for 38
    assert (fit.svd, fit.tensor.rank) == ("exact", (1, 19, 1))


@pytest.mark.parametrize("target", [{"rank": 6}, {"budget": 6 * 640}], ids=str)
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_cp(noise, target):
    """At the rank that the data have, where alternating least squares gets to the end."""
    rng = np.random.default_rng(3)
    factors = [rng.standard_normal((n, 6)) for n in SHAPES[0]]
    x = np.einsum("ar,br,cr->abc", *factors)
    e = rng.standard_normal(x.shape)
    x = (x / np.linalg.norm(x) + noise * e / np.linalg.norm(e)).astype(np.float32)
    fit, exact = td.cp(x, **target), td.cp(x, **target, compress=False)
    assert ("sketch" in fit.svd, fit.tensor.rank) == (True, exact.tensor.rank)
    assert fit.trace.converged
    assert fit.error <= 1.005 * exact.error + 2e-6


@pytest.mark.parametrize("mode", ["out", "in"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("target", [{"rank": 12}, {"budget": 60_000}], ids=str)
def test_one_side_alone(mode, noise, target):
    x = stack(SHAPES[1], noise)
    given = {**target, "modes": (mode,), "names": "layer proj out in"}
    fit, exact = td.tucker(x, **given), td.tucker(x, **given, svd=linalg.svd_full)
    assert "sketch" in fit.svd
    assert fit.error <= (1.001 if "rank" in target else 1.01) * exact.error + 2e-6
    assert fit.tensor.rank == exact.tensor.rank


def test_passes_are_counted(monkeypatch):
    x = stack(SHAPES[0], 1e-3)
    seen = [0] * len(x)

    def read(site):
        layer = dict(site.labels)["layer"]
        seen[layer] += 1
        return x[layer]

    (lazy,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    counted = td.Stack(lazy.group, read)
    monkeypatch.setattr(driver, "FIRST_WIDTH", 4)
    wide = {"budget": 30_000}  # more than the first sketches can tell of
    cases = [(m, t) for m in (td.tucker2, td.tensor_train) for t in ({"rank": 12}, wide)]
    cases += [(td.tucker2, {"error": 0.01}), (td.tucker2, {"budget": 20_000}), (td.svd, wide)]
    for method, target in cases:
        seen[:] = [0] * len(x)
        fit = method(counted, **target)
        assert fit.svd != "exact"
        assert set(seen[1:]) == {fit.passes}  # the first may be asked for its library


# ------------------------------------------------------------ slices anywhere, in any order


def run(x, ranks, parts, order, *, thrifty=False):
    """All passes with the slices split among `parts` places, each in its own order."""
    stream = streams.Stream(x.shape, ranks, thrifty=thrifty)
    matrices = x.reshape(-1, *x.shape[-2:])
    while not stream.done:
        places = [order[i::parts] for i in range(parts)]
        states = [stream.visit((i, matrices[i]) for i in place) for place in places]
        stream = stream.after(sum(states[1:], start=states[0]))
    return stream


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(6)),
    parts=st.integers(1, 6),
    ranks=st.sampled_from([(4, 5), (None, 5), (4, None)]),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
    thrifty=st.booleans(),
)
def test_order_and_split_of_the_slices_do_not_matter(order, parts, ranks, noise, thrifty):
    x = stack((6, 60, 50), noise)
    one = run(x, ranks, 1, list(range(6)), thrifty=thrifty)
    other = run(x, ranks, parts, order, thrifty=thrifty)
    assert one.passes == other.passes
    assert (one.core == other.core).all()
    for k, lift in one.frame.lift.items():
        assert (lift == other.frame.lift[k]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize("ranks", [(8, 8), (None, 8), (8, None)])
def test_data_of_a_lower_rank_take_three_passes_at_most_and_the_one_for_the_error(
    ranks, thrifty, dtype
):
    """What the sketch keeps beyond the rank is rounding, and decides nothing."""
    for rank, sign in ((1, False), (3, False), (5, False), (1, True)):
        rng = np.random.default_rng(rank)
        factors = [
            rng.standard_normal(shape) for shape in ((60, rank), (6, rank, rank), (rank, 50))
        ]
        left, core, right = (np.abs(f) if sign else f for f in factors)
        x = (left @ core @ right).astype(dtype)
        stream = run(x, ranks, 1, list(range(6)), thrifty=thrifty)
        assert stream.passes <= 3
        assert stream.outside <= tol(dtype, 1) * stream.energy


@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize("ranks", [(8, 8), (None, 8), (8, None)])
def test_directions_that_meet_in_the_sketch_are_not_lost(ranks, thrifty):
    """Eight rows of one slice that all go to one row of the sketch; the rest is zero."""
    x = np.zeros((3, 1000, 90), np.float32)
    width = streams.Stream(x.shape, ranks, thrifty=thrifty)._sketch_width
    x[1, np.arange(8) * width] = np.random.default_rng(2).standard_normal((8, 90))
    x = x if ranks[1] is not None else x.transpose(0, 2, 1).copy()
    stream = run(x, ranks, 1, list(range(3)), thrifty=thrifty)
    assert stream.outside <= tol("float32", x.size) * stream.energy


@pytest.mark.parametrize("sites", [1, 3, 8])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_a_thrifty_stream_passes_less_often_and_is_as_good(sites, noise):
    """Next to nothing of the slices is shared beyond the first twelve directions."""
    rng = np.random.default_rng(sites)
    own = 0.9 ** np.arange(30) * rng.standard_normal((sites, 200, 30))
    x = stack((sites, 200, 180), noise) + own @ rng.standard_normal((sites, 30, 180)) / 2e3
    x = x.astype(np.float32)
    plain, thrifty = (run(x, (12, 12), 1, list(range(sites)), thrifty=t) for t in (False, True))
    exact = td.tucker2(x, rank=12, svd=linalg.svd_full).tensor.core
    assert thrifty.passes < plain.passes or noise > 1
    for stream in (plain, thrifty):
        core = td.tucker2(stream.tensor, rank=12).tensor.core
        left_out, least = (stream.energy - np.sum(c.astype(float) ** 2) for c in (core, exact))
        assert left_out <= (1.01 if noise <= 1 else 1.02) * least  # of noise, flat spectra


def test_a_stack_is_passed_over_thriftily_where_memory_allows(monkeypatch):
    x, seen = stack(SHAPES[0], 0.3), []
    (lazy,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    done = streams.Stream.after
    monkeypatch.setattr(
        streams.Stream, "after", lambda s, *a: seen.append(s.thrifty) or done(s, *a)
    )
    needed = 4 * NUMBERS
    td.tucker2(replace(lazy, max_memory=needed), rank=12)
    td.tucker2(lazy, rank=12)
    assert (seen[0], seen[-1]) == (False, True)
    with pytest.raises(td.ArgumentError, match="a sketch 22 columns wide"):
        td.tucker2(replace(lazy, max_memory=needed - 1), rank=12)


@pytest.mark.parametrize("ranks", [(4, 5), (None, 5), (4, None)])
def test_what_a_stream_leaves_outside_is_what_it_says(ranks):
    x = stack((2, 3, 60, 50), 0.3).astype(np.float64)
    stream = run(x, ranks, 2, list(range(6)))
    inside = stream.tensor.to_dense()
    assert np.linalg.norm(x - inside) ** 2 == pytest.approx(stream.outside, rel=1e-9)
    assert stream.energy == pytest.approx(np.linalg.norm(x) ** 2, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(11)), cuts=st.sets(st.integers(1, 10)))
def test_sums_are_the_same_to_the_bit_in_any_order(order, cuts):
    terms = np.random.default_rng(4).standard_normal(11).astype(np.float32)
    edges = [0, *sorted(cuts), 11]
    parts = [
        sum((TreeSum.of(i, terms[i]) for i in order[a:b]), TreeSum()) for a, b in pairwise(edges)
    ]
    whole = sum((TreeSum.of(i, terms[i]) for i in range(11)), TreeSum())
    assert sum(parts, TreeSum()).value == whole.value
    assert whole.value == pytest.approx(terms.astype(float).sum(), rel=1e-5)
    assert len(whole.nodes) == bin(11).count("1")


def test_many_terms_are_added_in_their_order():
    assert added([n] for n in range(200)) == list(range(200))


def test_a_slice_left_out_or_visited_twice_is_refused():
    x = stack((3, 60, 50), 0.3)
    stream = streams.Stream(x.shape, (4, 5))
    some = stream.visit([(0, x[0]), (2, x[2])])
    with pytest.raises(td.ArgumentError, match="slice 1 was not visited"):
        stream.after(some)
    with pytest.raises(td.ArgumentError, match="slice 2 was visited twice"):
        some + stream.visit([(2, x[2])])


def test_a_sketch_beyond_the_memory_of_a_stack_is_refused():
    x = stack(SHAPES[0], 0.3)
    (lazy,) = td.Stack.from_arrays({f"h.{i}.w.weight": m for i, m in enumerate(x)})
    assert td.tucker2(replace(lazy, max_memory=4 * NUMBERS), rank=12).error < 0.31
    with pytest.raises(td.ArgumentError, match="a sketch 22 columns wide takes about 2.11 MB"):
        td.tucker2(replace(lazy, max_memory=4 * NUMBERS - 1), rank=12)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.sampled_from([1 << 10, 1 << 14, 1 << 22]),
    threads=st.integers(1, 2),
    case=st.sampled_from(
        [
            (td.tucker2, {"rank": 12}, 1),
            # cut inside the signal: every power step turns the directions of mere noise in the
            # sketch, and those that are kept by up to noise / (signal - noise) of that
            (td.tucker, {"error": 0.4}, 20),
            (td.tensor_train, {"rank": 12}, 1),
            (td.svd, {"budget": 30_000}, 1),
        ]
    ),
)
def test_tiles_and_threads_change_rounding_only(rows, threads, case):
    method, target, amplified = case
    x = stack(SHAPES[0], 0.3)
    plain = method(x, **target)
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(threads):
        patch.setattr(residual, "_ROWS", rows)
        fit = method(x, **target)
    assert [a.shape for a in fit.tensor.arrays.values()] == [
        a.shape for a in plain.tensor.arrays.values()
    ]
    away = np.linalg.norm(fit.tensor.to_dense() - plain.tensor.to_dense())
    assert away <= amplified * tol("float32", x.size) * np.linalg.norm(x)
    assert fit.error == pytest.approx(plain.error, rel=tol("float32", x.size))


@pytest.mark.parametrize(
    ("shape", "ranks", "text"),
    [
        ((3, 60, 50), (None, None), "needs"),
        ((60,), (4, 5), "needs"),
        ((3, 60, 50), (0, 5), "rank 0 of 'out' must be 1 to its size 60"),
        ((3, 60, 50), 4, "ranks must be a tuple, not a int"),
        (np.ones((3, 60, 50)), (4, 5), "shape must be a tuple, not a ndarray"),
        ((3, 60, 50), (4.5, 5), "rank 4.5 of 'out'"),
        ((3, 60, 50), (4, 51), "rank 51 of 'in' must be 1 to its size 50"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(shape, ranks, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.Stream(shape, ranks)


@pytest.mark.parametrize(("site", "matrix"), [(3, (60, 50)), (-1, (60, 50)), (0, (50, 60))])
def test_a_slice_of_another_stack_is_refused(site, matrix):
    with pytest.raises(td.ArgumentError, match=f"slice {site} of shape"):
        td.Stream((3, 60, 50), (4, 5)).visit([(site, np.zeros(matrix))])


def test_what_is_no_slice_and_no_pass_is_refused():
    stream = td.Stream((3, 60, 50), (4, 5))
    with pytest.raises(td.ArgumentError, match="enumerate"):
        stream.visit(np.zeros((3, 60, 50)))
    with pytest.raises(td.ArgumentError, match="what visit gave"):
        stream.after(None)


def test_the_tensor_of_a_stream_that_is_not_done_is_refused():
    with pytest.raises(td.ArgumentError, match="not done"):
        _ = td.Stream((3, 60, 50), (4, 5)).tensor
