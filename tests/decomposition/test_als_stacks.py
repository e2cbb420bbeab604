"""`als` over several stacks: one rank, one error or one budget for all, whatever the equation."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tdecomp as td
from tdecomp.decomposition.methods.network.als import NetworkMethod
from tdecomp.decomposition.methods.network.frontier import network_frontier
from tdecomp.decomposition.methods.network.parse import parse
from tdecomp.decomposition.methods.network.skeleton import Skeleton
from tdecomp.decomposition.run import run_one
from tdecomp.progress import silent
from tdecomp.ranking.target import Target
from tests.bench.als_success import HARD
from tests.bench.als_success import planted as planted_network
from tests.laws.cases import planted

LORA = "layer out r, layer r in -> layer out in"
LOTR = "out r, layer r s, s in -> layer out in"
CP = "layer r, out r, in r -> layer out in"
SUM = "out r, r in + layer out a, layer a in -> layer out in"
GATED = "layer out, out r, layer r, r in -> layer out in"
OPTIONS = {
    "LoRA": {"equation": LORA},
    "LoTR": {"equation": LOTR, "free": "r", "sizes": {"s": 4}},
    "CP": {"equation": CP, "n_iter_max": 30},
    "sum": {"equation": SUM, "free": "a", "sizes": {"r": 1}, "n_iter_max": 20},
}
GATE = {"equation": GATED, "n_iter_max": 4}

STRONG, WEAK = 10 * planted((3, 8, 6), decay=0.7), planted((4, 7, 9), seed=1, decay=0.7)
NEGLIGIBLE = 1e-4 * WEAK


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request) -> dict:
    return request.param


def total_error(xs, fits) -> float:
    left = sum(np.sum((x - f.tensor.to_dense()) ** 2) for x, f in zip(xs, fits, strict=True))
    return math.sqrt(left / sum(np.sum(x**2) for x in xs))


def test_a_rank_is_that_of_every_stack(options):
    free = {n: s for n, s in options.items() if n != "free"}
    fits = td.decompose([STRONG, WEAK], td.als, rank=2, **free)
    for x, fit in zip((STRONG, WEAK), fits, strict=True):
        alone = td.als(x, rank=2, **free)
        assert (fit.error, fit.tensor.rank) == (alone.error, alone.tensor.rank)
    assert fits.error == pytest.approx(total_error([STRONG, WEAK], fits))


def test_ranks_by_letter():
    fits = td.decompose([STRONG, WEAK], td.als, equation=LOTR, rank={"r": 3, "s": 2})
    assert [f.tensor.rank for f in fits] == [(3, 2), (3, 2)]


@pytest.mark.parametrize("error", [0.5, pytest.param(0.25, marks=pytest.mark.slow)])
def test_an_error_is_met_by_all_together(options, error):
    xs = [STRONG, WEAK]
    fits = td.decompose(xs, td.als, error=error, **options)
    assert fits.error <= error
    assert fits.error == pytest.approx(total_error(xs, fits), rel=1e-9)
    apart = [td.als(x, error=error, **options) for x in xs]
    assert fits[1].n_params <= apart[1].n_params  # 1 % of the energy


@pytest.mark.parametrize("budget", [190, pytest.param(270, marks=pytest.mark.slow)])
def test_a_budget_is_kept_and_goes_where_the_energy_is(options, budget):
    fits = td.decompose([STRONG, WEAK], td.als, budget=budget, **options)
    assert budget / 2 < fits.n_params <= budget
    turned = td.decompose([STRONG, 100 * WEAK], td.als, budget=budget, **options)
    assert turned.n_params <= budget
    assert turned[1].n_params >= fits[1].n_params
    if options["equation"] in (LORA, LOTR, CP):
        assert turned[1].n_params > fits[1].n_params


@pytest.mark.parametrize(
    "target", [{"error": 0.3}, {"error": 0.1}, {"budget": 150}, {"budget": 301}], ids=str
)
@pytest.mark.slow
def test_a_single_stack_is_fitted_as_by_itself(options, target):
    (fit,) = td.decompose([STRONG], td.als, **options, **target)
    alone = td.als(STRONG, **options, **target)
    assert fit.trace.reason == alone.trace.reason
    for name, array in alone.tensor.arrays.items():
        np.testing.assert_array_equal(fit.tensor.arrays[name], array)


@pytest.mark.parametrize("budget", range(60, 400, 17))
def test_the_largest_size_within_a_budget_is_used(budget):
    size = min(budget // (3 * (8 + 6)), 6)
    assert td.als(STRONG, LORA, budget=budget).tensor.rank == (size,)
    core = 8 + 3 * 4, 4 * 6  # per size of r, and the factor of s
    size = min((budget - core[1]) // core[0], 8)
    assert td.als(STRONG, LOTR, budget=budget, sizes={"s": 4}).tensor.rank == (size, 4)


@pytest.mark.parametrize("equation", [LORA, CP])
@pytest.mark.parametrize("target", [{"error": 0.3}, {"budget": 100}], ids=str)
def test_what_is_not_worth_a_number_gets_none(equation, target):
    fits = td.decompose(
        [STRONG, NEGLIGIBLE, np.zeros((2, 4, 4))], td.als, equation=equation, **target
    )
    assert fits[1].n_params == fits[2].n_params == 0
    assert fits[1].tensor.rank == (0,)
    assert (fits[1].error, fits[2].error) == (1, 0)
    assert fits.error <= target.get("error", 1)
    np.testing.assert_array_equal(fits[1].tensor.to_dense(), np.zeros(NEGLIGIBLE.shape))


@pytest.mark.parametrize("scale", [1e-100, 1e100])
@pytest.mark.parametrize("target", [{"error": 0.3}, {"budget": 200}], ids=str)
def test_orders_of_magnitude(scale, target):
    plain, scaled = (
        td.decompose([s * STRONG, s * WEAK], td.als, **OPTIONS["LoTR"], **target)
        for s in (1, scale)
    )
    assert [f.tensor.rank for f in scaled] == [f.tensor.rank for f in plain]
    assert scaled.error == pytest.approx(plain.error, rel=1e-6)


def test_letters_with_a_size_are_left_out_too():
    fits = td.decompose([STRONG, NEGLIGIBLE], td.als, error=0.3, **OPTIONS["LoTR"])
    assert fits[1].tensor.rank == (0, 0)
    assert fits[1].n_params == 0


def test_a_network_that_cannot_be_nothing_gets_size_one():
    smallest = 3 * 8 + 8 + 3 + 6 + 4 * 7 + 7 + 4 + 9
    fits = td.decompose([STRONG, NEGLIGIBLE], td.als, budget=smallest + 40, **GATE)
    assert [f.tensor.rank for f in fits] == [(3,), (1,)]
    assert fits.n_params <= smallest + 40
    text = f"budget {smallest - 1} is below rank 1: the smallest possible is {smallest} "
    with pytest.raises(td.ArgumentError, match=text):
        td.decompose([STRONG, NEGLIGIBLE], td.als, budget=smallest - 1, **GATE)
    fits = td.decompose([STRONG, NEGLIGIBLE], td.als, budget=smallest, **GATE)
    assert fits.n_params == smallest
    fits = td.decompose([STRONG, NEGLIGIBLE], td.als, error=0.5, **GATE)
    assert fits.error <= 0.5
    assert fits[1].n_params == 4 * 7 + 7 + 4 + 9


def test_one_frozen_array_is_common_to_all():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    xs = [STRONG, planted((5, 8, 6), seed=2)]
    equation = "out r, layer r s, s in -> layer out in"
    fits = td.decompose(xs, td.als, equation=equation, frozen={0: basis}, error=0.3)
    assert fits.error <= 0.3
    for fit in fits:
        np.testing.assert_array_equal(fit.tensor.tensors[0], basis)


def test_lazy_stacks_of_torch():
    torch = pytest.importorskip("torch")
    stacks = [
        td.Stack.from_arrays({f"h.{i}.w.weight": torch.asarray(m) for i, m in enumerate(x)})[0]
        for x in (STRONG, WEAK)
    ]
    assert stacks[0].shape == (3, 1, 8, 6)
    given = OPTIONS["LoTR"] | {"equation": "out r, layer proj r s, s in -> layer proj out in"}
    fits = td.decompose(stacks, td.als, **given, error=0.4)
    plain = td.decompose([STRONG, WEAK], td.als, **OPTIONS["LoTR"], error=0.4)
    assert [f.tensor.rank for f in fits] == [f.tensor.rank for f in plain]
    assert all(isinstance(a, torch.Tensor) for f in fits for a in f.tensor.arrays.values())


def test_formats_among_the_inputs():
    given = td.svd(WEAK, rank=4, names="layer out in").tensor
    fits = td.decompose([STRONG, given], td.als, equation=CP, error=0.6)
    assert fits.error <= 0.6
    fits = td.decompose([STRONG, 1e-6 * given], td.als, equation=CP, error=0.6)
    assert fits[1].n_params == 0
    assert fits[1].tensor.shape == given.shape


def test_a_seed_and_tied_groups_are_read_once():
    x = np.random.default_rng(0).standard_normal((6, 6))
    given = {"equation": "a r, b r -> a b", "init": "random", "n_iter_max": 5}
    fits = td.decompose(
        [x, x],
        td.als,
        rank=2,
        tied=(g for g in [(0, 1)]),
        random_state=np.random.default_rng(3),
        **given,
    )
    np.testing.assert_array_equal(*(f.tensor.to_dense() for f in fits))
    for fit in fits:
        np.testing.assert_array_equal(*fit.tensor.tensors)


BAD = {
    "no free letter": (
        {"equation": LOTR, "error": 0.1},
        "error and budget choose the size of one rank letter, free=None; without a size in"
        " 'out r, layer r s, s in -> layer out in': r s. Give the others in sizes",
    ),
    "no letter at all": ({"equation": LORA, "sizes": {"r": 2}, "budget": 900}, "in '.*': none"),
    "another letter": ({"equation": LORA, "free": "q", "error": 0.1}, "free='q'"),
    "names": ({"equation": LORA, "names": "a b c", "rank": 1}, "output of the equation names"),
    "equation": ({"equation": "out r, r in", "rank": 1}, "no '->'"),
    "order": ({"equation": "out r, r in -> out in", "rank": 1}, "3 modes, the output of"),
    "frozen": ({"equation": LORA, "frozen": {5: WEAK}, "rank": 1}, "terms 0 to 1"),
    "frozen shape": ({"equation": LORA, "frozen": {0: STRONG[:, :, :2]}, "rank": {}}, "'layer'"),
    "tied": ({"equation": LORA, "tied": [(0, 9)], "rank": 1}, "terms 0 to 1"),
    "init": ({"equation": LORA, "init": "hosvd", "rank": 1}, "'auto', 'random' or a Network"),
    "budget": ({"equation": LORA, "budget": 41}, "smallest possible is 42 numbers"),
    "precision": ({"equation": LORA, "error": 1e-15}, "what this precision can reach"),
    "sweeps": ({"equation": LORA, "n_iter_max": 0, "rank": 1}, "n_iter_max"),
    "two targets": ({"equation": LORA, "rank": 1, "budget": 90}, "exactly one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    given, text = BAD[name]
    with pytest.raises((td.ArgumentError, td.DataError), match=text):
        td.decompose([STRONG, WEAK], td.als, **given)


def test_an_error_not_reached_carries_the_best_of_its_stack():
    with pytest.raises(td.NotReached, match="raise rank_max=1") as caught:
        td.decompose([STRONG, WEAK], td.als, equation=CP, error=0.05, rank_max=1)
    assert caught.value.best.tensor.shape == STRONG.shape
    assert caught.value.best.tensor.rank == (1,)


def frontier_of(equation: str, x: np.ndarray, letter: str, sizes: dict[str, int]):
    skeleton = Skeleton.of(parse(equation), x.shape, x.shape, sizes=sizes, frozen={}, tied=[])
    return skeleton, network_frontier(skeleton, letter, x, silent)


def test_two_free_terms_promise_what_they_keep():
    _, frontier = frontier_of(LORA, STRONG, "r", {})
    for params, lost, (rank,) in zip(*vars(frontier).values(), strict=True):
        fit = td.als(STRONG, LORA, rank=int(rank)) if rank else None
        assert params == (fit.n_params if fit else 0)
        left = float(fit.residual.sum()) if fit else np.sum(STRONG**2)
        assert lost == pytest.approx(left, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", [n for n in HARD if not HARD[n].frozen and not HARD[n].tied])
def test_what_is_promised_is_a_bound(name):
    """Planted networks lose nothing at their sizes: no cut may see anything beyond them."""
    case = HARD[name]
    x, _ = planted_network(case)
    letter = parse(case.equation).letters[-1]
    others = {n: s for n, s in case.rank.items() if n != letter}
    skeleton, frontier = frontier_of(case.equation, x, letter, others | case.splits)
    beyond = frontier.ranks[:, 0] >= case.rank[letter]
    doubt = 0.0101 * np.sum(x**2)
    assert (frontier.lost[beyond] <= doubt).all()
    assert (np.diff(frontier.lost) < 0).all()
    assert (np.diff(frontier.params) > 0).all()
    assert frontier.lost[0] == pytest.approx(np.sum(x**2))
    for params, (size,) in zip(frontier.params[1:], frontier.ranks[1:], strict=True):
        assert params == skeleton.count({letter: size})


def test_an_option_of_the_function_is_a_field_of_the_method():
    fit = run_one(NetworkMethod(equation=LORA), STRONG, Target(error=0.2))
    assert fit.error == td.als(STRONG, LORA, error=0.2).error
