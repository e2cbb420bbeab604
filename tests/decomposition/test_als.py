"""Any network: planted ones come back, the error falls, and what is asked for is kept."""

from __future__ import annotations

import numpy as np
import pytest
from tensorly.random import random_tr

import tdecomp as td
from tdecomp._xp import to_numpy
from tdecomp.decomposition.methods.network.als import als
from tdecomp.decomposition.methods.network.parse import parse
from tdecomp.decomposition.methods.network.segre import rank_one_basis
from tdecomp.decomposition.rank_search import search_rank
from tdecomp.errors import ArgumentError, DataError, NotReached
from tdecomp.formats import Network, Sum
from tdecomp.modes import Equation
from tests.bench.als_success import HARD, Case, planted

SIZES = {"layer": 4, "proj": 3, "out": 7, "in": 8, "head": 2, "hd": 3, "one": 1}
SIZES |= {"o1": 3, "i1": 4, "o2": 5, "i2": 2, "r": 3, "s": 2, "t": 2, "u": 2, "a": 2, "b": 2}

TREES = {
    "LoRA": "layer out r, layer r in -> layer out in",
    "LoRA, one matrix": "out r, r in -> out in",
    "two ranks between two terms": "out r s, r s in -> out in",
    "LoTR": "out r, layer r s, s in -> layer out in",
    "permuted": "in s, layer s r, out r -> in layer out",
    "size 1": "out r, one r s, s in -> one out in",
    "TensLoRA": "out r, in s, proj t, layer u, r s t u -> layer proj out in",
    "TensLoRA, split": "hd r, head v, in s, layer u, r v s u -> layer (head hd) in",
    "TT-LoRA": "layer o1 a, layer a o2 r, layer r i1 s, layer s i2 -> layer (o1 o2) (i1 i2)",
    "MPO": "o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)",
    "LoKr": "o1 i1, o2 i2 -> (o1 o2) (i1 i2)",
    "LoKr, low rank": "o1 i1, o2 r, r i2 -> (o1 o2) (i1 i2)",
    "one term": "in out -> out in",
}
TREES = {name: Case(e, SIZES | {"v": 2}) for name, e in TREES.items()}
NEAR = {k: v for k, v in HARD.items() if k != "VeRA, all free" and "LoHa, rank 3" not in k}


def fit(case: Case, x, **options) -> td.Fit:
    target = {} if {"error", "budget"} & set(options) else {"rank": case.rank}
    return als(x, case.equation, sizes=case.splits, tied=case.tied, **(target | options))


def network(case: Case, arrays) -> td.Network | Sum:
    ansatz = parse(case.equation)
    filled = dict(zip(ansatz.written, arrays, strict=True))
    parts = tuple(
        Network(
            equation,
            tuple(
                filled[k] if k in filled else np.ones(case.sizes[ansatz.terms[k][0]]) for k in block
            ),
        )
        for equation, block in zip(ansatz.addends, ansatz.blocks, strict=True)
    )
    return parts[0] if len(parts) == 1 else Sum(parts)


def moved(case: Case, arrays, amount: float) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    new = [a * (1 + amount * rng.standard_normal(a.shape)) for a in arrays]
    for k in case.frozen:
        new[k] = arrays[k]
    for group in case.tied:
        for k in group:
            new[k] = new[group[0]]
    return new


def dense_error(x: np.ndarray, tensor) -> float:
    return float(np.linalg.norm(x - to_numpy(tensor.to_dense())) / np.linalg.norm(x))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("seed", range(2))
def test_planted_trees_come_back_in_closed_form(name, seed):
    x, _ = planted(TREES[name], seed)
    found = fit(TREES[name], x)
    assert found.error < 1e-13
    assert found.trace.reason == "closed form (tree of SVDs)"
    assert dense_error(x, found.tensor) < 1e-13


@pytest.mark.parametrize("name", ["LoRA", "LoKr", "MPO"])
def test_two_terms_are_optimal(name, rng):
    case = TREES[name]
    x = rng.standard_normal(planted(case)[0].shape)
    best = fit(case, x)
    tried = fit(case, x, init="random", n_restarts=2, n_iter_max=30)
    assert best.error <= tried.error * (1 + 1e-9)


@pytest.mark.parametrize("name", ["LoTR", "TensLoRA", "TT-LoRA"])
def test_sweeps_improve_a_tree(name, rng):
    case = TREES[name]
    x = rng.standard_normal(planted(case)[0].shape)
    found = fit(case, x)
    assert found.trace.errors[-1] < found.trace.errors[0]
    assert found.error == pytest.approx(found.trace.errors[-1], rel=1e-9)


@pytest.mark.parametrize("name", NEAR)
def test_planted_networks_come_back_from_one_percent_away(name):
    case = NEAR[name]
    x, arrays = planted(case)
    found = fit(
        case,
        x,
        init=network(case, moved(case, arrays, 0.01)),
        frozen={k: arrays[k] for k in case.frozen},
    )
    assert found.error < 1e-12
    assert dense_error(x, found.tensor) < 1e-12


@pytest.mark.parametrize("name", ["CP", "LoRTA", "VeRA", "sum", "SingLoRA", "ring"])
def test_planted_networks_come_back_by_themselves(name):
    case = HARD[name]
    x, arrays = planted(case)
    found = fit(case, x, frozen={k: arrays[k] for k in case.frozen}, n_restarts=3)
    assert found.error < 1e-12


@pytest.mark.parametrize(
    "equation",
    [
        "out r, r in, out s, s in -> out in",
        "s in, in r, r out, out s -> out in",
        "layer out r s, r s in, layer out a, a in -> layer out in",
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_product_of_low_ranks_comes_back_from_its_column_space(equation, seed):
    sizes = {"layer": 3, "out": 16, "in": 18, "r": 2, "s": 2 if "layer" not in equation else 1}
    case = Case(equation, sizes | {"a": 2})
    x, _ = planted(case, seed)
    found = fit(case, x)
    assert found.error < 1e-12
    assert "column space of the product" in found.trace.reason


@pytest.mark.parametrize("name", ["mixed", "VeRA, all free"])
def test_scales_near_one_come_back(name):
    case = HARD[name]
    ansatz = parse(case.equation)
    _, arrays = planted(case)
    gate = ansatz.terms.index(("layer", "out"))
    arrays[gate] = 1 + 0.1 * arrays[gate]
    found = fit(case, to_numpy(network(case, arrays).to_dense()))
    assert found.error < 1e-12
    assert "scales" in found.trace.reason


@pytest.mark.parametrize("name", ["mixed", "VeRA, all free"])
@pytest.mark.parametrize("seed", range(3))
def test_scales_of_any_sign_come_back_from_eigenvectors(name, seed):
    x, _ = planted(HARD[name], seed)
    found = fit(HARD[name], x)
    assert found.error < 1e-12
    assert "scales from eigenvectors" in found.trace.reason


@pytest.mark.parametrize(
    "equation",
    [
        "layer out r, layer r in, out s, s in -> layer out in",
        "s in, proj in r, proj r layer out, out s -> proj layer out in",
    ],
)
@pytest.mark.parametrize("ranks", [{"r": 2, "s": 2}, {"r": 2, "s": 3}])
def test_common_side_of_a_product_is_found_in_one_slice(equation, ranks):
    case = Case(equation, {"layer": 3, "proj": 2, "out": 20, "in": 18} | ranks)
    x, _ = planted(case)
    found = fit(case, x)
    assert found.error < 1e-12
    assert "one slice" in found.trace.reason


@pytest.mark.parametrize(("r", "s"), [(2, 2), (2, 3), (3, 2), (3, 3), (4, 4)])
def test_basis_in_which_rows_have_rank_one(r, s, rng):
    n = r * (r + 1) * s * (s + 1) // 4
    a, c = rng.standard_normal((n, r)), rng.standard_normal((n, s))
    u = np.einsum("nr,ns->nrs", a, c).reshape(n, -1) @ rng.standard_normal((r * s, r * s))
    basis = rank_one_basis(u, r, s, rng)
    assert basis is not None
    values = np.linalg.svd(np.linalg.solve(basis, u.T).T.reshape(n, r, s), compute_uv=False)
    assert np.max(values[:, 1] / values[:, 0]) < 1e-9
    assert rank_one_basis(u[1:], r, s, rng) is None


def test_no_basis_in_which_random_rows_have_rank_one(rng):
    basis = rank_one_basis(rng.standard_normal((40, 9)), 3, 3, rng)
    assert basis is None or np.all(np.isfinite(basis))


@pytest.mark.parametrize("name", ["CP", "ring", "sum", "SingLoRA", "LoTR"])
def test_a_larger_rank_is_never_worse(name, rng):
    """The smaller network, padded, is one start."""
    case = (TREES | HARD)[name]
    x, _ = planted(case)
    x = x + rng.standard_normal(x.shape)
    letter = parse(case.equation).letters[-1]
    others = {n: s for n, s in case.rank.items() if n != letter}
    options = {"sizes": others | case.splits, "tied": case.tied, "free": letter, "n_iter_max": 2}
    errors = []
    for most in (1, 2):
        with pytest.raises(NotReached) as caught:
            als(x, case.equation, error=1e-6, rank_max=most, **options)
        errors.append(caught.value.best.error)
    assert errors[0] >= errors[1]


def test_further_starts_are_random_and_the_best_wins(rng):
    x = rng.standard_normal((6, 7, 8))
    one, more = (
        als(x, "a r s, b s t, c t r -> a b c", rank=2, n_restarts=n, n_iter_max=5) for n in (1, 3)
    )
    assert more.error <= one.error
    assert "of 3: random" in more.trace.reason


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("CP", 18), ("LoRTA", 18), ("LoHa", 12), ("ring", 18)])
def test_success_from_random_starts(name, least):
    from tests.bench.als_success import success

    assert success(HARD[name], init="random")[0] >= least


@pytest.mark.parametrize("name", ["LoTR", "TensLoRA", "TT-LoRA"])
@pytest.mark.parametrize("init", ["auto", "random"])
def test_errors_never_rise_on_trees(name, init, rng):
    x = rng.standard_normal(planted(TREES[name])[0].shape)
    errors = fit(TREES[name], x, init=init, n_iter_max=12).trace.errors
    assert np.all(np.diff(errors) <= 0)


@pytest.mark.parametrize("name", [name for name in HARD if "LoHa, rank 3" not in name])
def test_errors_never_rise(name, rng):
    case = HARD[name]
    x, arrays = planted(case)
    x = x + 0.1 * rng.standard_normal(x.shape)
    frozen = {k: arrays[k] for k in case.frozen}
    errors = fit(case, x, frozen=frozen, n_iter_max=10).trace.errors
    assert len(errors) > 0
    assert np.all(np.diff(errors) <= 0)


def test_vector_of_ones_for_a_missing_mode():
    equation = "out r, r in + layer s, out s -> layer out in"
    sizes = SIZES | {"r": 1, "s": 1}
    x, _ = planted(Case(equation, sizes))
    found = als(x, equation, rank=1)
    assert found.error < 1e-12
    first, second = found.tensor.parts
    assert str(first.equation) == "out r, r in, layer -> layer out in"
    np.testing.assert_array_equal(first.tensors[2], np.ones(4))
    np.testing.assert_array_equal(second.tensors[2], np.ones(8))


def test_frozen_arrays_stay_and_nothing_is_modified():
    case = HARD["VeRA"]
    x, arrays = planted(case)
    frozen = {k: arrays[k] for k in case.frozen}
    copies = [a.copy() for a in (x, *arrays)]
    found = fit(case, 3 * x, frozen=frozen)
    for k, array in frozen.items():
        np.testing.assert_array_equal(found.tensor.tensors[k], array)
    for before, after in zip(copies, (x, *arrays), strict=True):
        np.testing.assert_array_equal(before, after)
    assert found.error < 1e-12


def test_frozen_addend_is_subtracted(rng):
    equation = "out in + out r, r in -> out in"
    base = 1e3 * rng.standard_normal((7, 8))
    x = base + rng.standard_normal((7, 2)) @ rng.standard_normal((2, 8))
    found = als(x, equation, rank=2, frozen={0: base})
    assert found.error < 1e-12
    np.testing.assert_array_equal(found.tensor.parts[0].tensors[0], base)


def test_one_free_term_is_least_squares(rng):
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((8, 2))
    x = rng.standard_normal((4, 7, 8))
    found = als(
        x, "out r, layer r s, in s -> layer out in", rank={}, frozen={0: a, 2: b}, tol=1e-12
    )
    core = np.einsum("ro,loi,si->lrs", np.linalg.pinv(a), x, np.linalg.pinv(b))
    np.testing.assert_allclose(found.tensor.tensors[1], core, rtol=1e-8, atol=1e-8)


def test_tied_arrays_are_equal():
    x, _ = planted(HARD["SingLoRA"])
    found = fit(HARD["SingLoRA"], x)
    a, b = found.tensor.tensors
    np.testing.assert_array_equal(a, b)
    assert found.n_params == 2 * a.size


@pytest.mark.parametrize("name", ["CP", "LoHa", "sum"])
def test_same_seed_same_result(name):
    x, _ = planted(HARD[name])
    one, two, other = (
        fit(HARD[name], x, init="random", n_iter_max=3, random_state=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.tensor.to_dense(), two.tensor.to_dense())
    assert one.error != other.error


def test_error_is_met_by_a_small_rank(rng):
    x = rng.standard_normal((7, 3)) @ rng.standard_normal((3, 8))
    assert als(x, "out r, r in -> out in", error=1e-10).tensor.rank == (3,)
    x = x + 0.05 * rng.standard_normal(x.shape)
    found = als(x, "out r, r in -> out in", error=0.1)
    assert found.error <= 0.1
    values = np.linalg.svd(x, compute_uv=False)
    assert found.tensor.rank[0] == int(
        np.argmax(np.cumsum(values[::-1] ** 2)[::-1] <= 0.01 * np.sum(values**2))
    )


def test_error_of_a_cp_and_of_one_letter_of_several():
    x, _ = planted(HARD["CP"])
    assert als(x, HARD["CP"].equation, error=1e-8).tensor.rank == (4,)
    x, _ = planted(TREES["LoTR"])
    found = als(x, TREES["LoTR"].equation, error=1e-8, free="r", sizes={"s": 2})
    assert found.tensor.rank == (3, 2)


def test_error_not_reached_carries_the_best(rng):
    x = rng.standard_normal((6, 7, 8))
    with pytest.raises(NotReached, match="rank_max=3") as caught:
        als(x, "a r, b r, c r -> a b c", error=0.01, rank_max=3, n_iter_max=5)
    assert caught.value.best.tensor.rank == (3,)
    assert 0.01 < caught.value.best.error < 1


def test_budget_is_kept_and_used(rng):
    x = rng.standard_normal((7, 8))
    for budget in (15, 44, 45, 46, 10_000):
        found = als(x, "out r, r in -> out in", budget=budget)
        assert found.n_params <= budget
        assert found.tensor.rank[0] == min(budget // 15, 7)
    cp = als(rng.standard_normal((2, 3, 4)), HARD["CP"].equation, budget=1000, n_iter_max=5)
    assert cp.tensor.rank == (6,)


def test_search_brackets_the_rank():
    class Found:
        def __init__(self, rank):
            self.rank, self.error = rank, 1 / rank

    tried = []
    best = search_rank(
        lambda rank, smaller: tried.append((rank, smaller and smaller.rank)) or Found(rank),
        error=1 / 11,
        most=100,
    )
    assert best.rank == 11
    assert tried == [(1, None), (2, 1), (4, 2), (8, 4), (16, 8), (12, 8), (10, 8), (11, 10)]


@pytest.mark.parametrize(
    ("equation", "rank", "expected"),
    [
        ("out r, r in -> out in", 100, (7,)),
        ("out r, r in -> out in", {"r": 9}, (9,)),
        ("out r, layer r s, s in -> layer out in", 100, (7, 8)),
        ("out r, in r, layer r -> layer out in", 9, (9,)),
    ],
)
def test_rank_as_a_number_is_cut_to_what_is_of_use(equation, rank, expected, rng):
    x = rng.standard_normal((7, 8) if "layer" not in equation else (4, 7, 8))
    found = als(x, equation, rank=rank, n_iter_max=20)
    assert found.tensor.rank == expected
    if "layer r," not in equation and "layer r ->" not in equation:
        assert found.error < 1e-12


@pytest.mark.parametrize("name", ["LoTR", "CP", "sum", "LoHa", "VeRA"])
def test_zero_array_has_no_error(name):
    case = (TREES | HARD)[name]
    x, arrays = planted(case)
    found = fit(case, 0 * x, frozen={k: arrays[k] for k in case.frozen})
    assert found.error == 0
    assert np.all(to_numpy(found.tensor.to_dense()) == 0)


@pytest.mark.parametrize(
    "name",
    ["LoTR", "TT-LoRA", "CP", "VeRA", "sum", "SingLoRA", "ring", "mixed", "LoHa", "LoHa, layers"],
)
def test_array_libraries(name, xp):
    case = (TREES | HARD)[name]
    x, arrays = planted(case)
    options = {"n_iter_max": 15}
    frozen = {k: arrays[k] for k in case.frozen}
    here = fit(case, x, frozen=frozen, **options)
    there = fit(
        case, xp.asarray(x), frozen={k: xp.asarray(a) for k, a in frozen.items()}, **options
    )
    assert all(type(a) is type(xp.asarray(x)) for a in there.tensor.arrays.values())
    assert abs(there.error - here.error) < 1e-6


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("name", ["LoRA", "TensLoRA", "LoRTA", "sum"])
def test_float32_of_any_scale(name, scale):
    case = (TREES | HARD)[name]
    x = (planted(case)[0] / 10 * scale).astype(np.float32)
    found = fit(case, x)
    assert all(a.dtype == np.float32 for a in found.tensor.arrays.values())
    assert found.error < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LoRA, one matrix", "CP"])
def test_jax_arrays(name, monkeypatch):
    """Equal sizes, one sweep, no Newton steps: jax compiles every operation for every shape."""
    from tdecomp.decomposition.methods.network import solve

    jax = pytest.importorskip("jax")
    monkeypatch.setattr(solve, "is_affordable", lambda problem: False)
    case = (TREES | HARD)[name]
    case = Case(case.equation, dict.fromkeys(case.sizes, 3))
    data, arrays = planted(case)
    near = network(case, [jax.numpy.asarray(a) for a in moved(case, arrays, 0.01)])
    x = jax.numpy.asarray(data, dtype="float32")
    found = fit(case, x, init="auto" if name != "CP" else near, n_iter_max=1)
    assert all(isinstance(a, jax.Array) for a in found.tensor.arrays.values())
    assert found.error < (1e-6 if name != "CP" else 1e-2)


def test_stack_is_loaded_whole():
    case = TREES["TensLoRA"]
    x, _ = planted(case)
    slices = {f"h.{i}.att.{p}.weight": x[i, k] for i in range(4) for k, p in enumerate("kqv")}
    (stack,) = td.Stack.from_arrays(slices)
    assert stack.shape == x.shape
    assert fit(case, stack).error < 1e-13


def test_conjugate_gradients_replace_large_systems(monkeypatch):
    from tdecomp.decomposition.methods.network import newton, problem

    monkeypatch.setattr(problem, "_SMALL", 0)
    monkeypatch.setattr(problem, "_DENSE", 1)
    monkeypatch.setattr(newton, "_UNKNOWNS", 1)
    for case in (HARD["CP"], HARD["ring"], HARD["SingLoRA"]):
        x, arrays = planted(case)
        found = fit(case, x, init=network(case, moved(case, arrays, 0.01)))
        assert found.error < 1e-10


X = np.arange(56.0).reshape(7, 8)
LORA = "out r, r in -> out in"
BAD = {
    "complex": ({"x": X + 1j}, DataError, "real"),
    "NaN": ({"x": X * np.nan}, DataError, "NaN"),
    "order": ({"x": X[None]}, DataError, "3 modes"),
    "no target": ({"rank": None}, ArgumentError, "exactly one"),
    "two targets": ({"budget": 30}, ArgumentError, "exactly one"),
    "no arrow": ({"equation": "out r, r in"}, ArgumentError, "->"),
    "no such mode": ({"equation": "out r, r s, s -> out in"}, ArgumentError, "'in'"),
    "empty term": ({"equation": "out r, , r in -> out in"}, ArgumentError, "empty term"),
    "twice": ({"equation": "out r r, r in -> out in"}, ArgumentError, "twice"),
    "split term": ({"equation": "(out r), r in -> out in"}, ArgumentError, "only the output"),
    "dangling": ({"equation": "out r, in -> out in"}, ArgumentError, "'r' is in one factor"),
    "unknown rank": ({"rank": {"q": 2}}, ArgumentError, "'q'"),
    "missing rank": ({"rank": {}}, ArgumentError, "'r'"),
    "text rank": ({"rank": "3"}, ArgumentError, "rank"),
    "rank against sizes": ({"rank": {"r": 2}, "sizes": {"r": 3}}, ArgumentError, "make it 3"),
    "unknown size": ({"sizes": {"q": 2}}, ArgumentError, "'q'"),
    "size 0": ({"sizes": {"r": 0}}, ArgumentError, "whole number"),
    "mode size": ({"sizes": {"out": 2}}, ArgumentError, "out"),
    "split unsized": (
        {"equation": "a r, b r, r in -> (a b) in"},
        ArgumentError,
        "all its parts but one",
    ),
    "split uneven": (
        {"equation": "a r, b r, r in -> (a b) in", "sizes": {"a": 2}},
        ArgumentError,
        "divide",
    ),
    "frozen position": ({"frozen": {2: X}}, ArgumentError, "terms 0 to 1"),
    "frozen order": ({"frozen": {0: X[0]}}, ArgumentError, "does not fit"),
    "frozen shape": ({"frozen": {0: X.T}}, ArgumentError, "'out' has size 7"),
    "all frozen": ({"frozen": {0: X[:, :2], 1: X[:2]}}, ArgumentError, "nothing is left"),
    "tied shapes": ({"tied": [(0, 1)]}, ArgumentError, "one shape"),
    "tied frozen": ({"tied": [(0, 1)], "frozen": {0: X[:, :2]}}, ArgumentError, "frozen"),
    "tied position": ({"tied": [(0, 5)]}, ArgumentError, "terms 0 to 1"),
    "init name": ({"init": "hosvd"}, ArgumentError, "init"),
    "init equation": (
        {"init": Network(Equation.parse("in r, out r -> out in"), (X[0, :, None], X[:, :1]))},
        ArgumentError,
        "not a Network of",
    ),
    "init sizes": (
        {"init": Network(Equation.parse(LORA), (X[:, :3], X[:3]))},
        ArgumentError,
        "of shape",
    ),
    "no free letter": (
        {"equation": "out r, r s, s in -> out in", "rank": None, "error": 0.1},
        ArgumentError,
        "r s",
    ),
    "wrong free letter": ({"rank": None, "error": 0.1, "free": "q"}, ArgumentError, "'q'"),
    "small budget": ({"rank": None, "budget": 14}, ArgumentError, "15 numbers"),
    "tiny error": ({"rank": None, "error": 1e-16}, ArgumentError, "precision"),
    "sweeps": ({"n_iter_max": 0}, ArgumentError, "n_iter_max"),
    "ridge": ({"ridge": -1.0}, ArgumentError, "ridge"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    changed, kind, text = BAD[name]
    options = {"x": X, "equation": LORA, "rank": 2} | changed
    with pytest.raises(kind) as caught:
        als(options.pop("x"), options.pop("equation"), **options)
    assert text in str(caught.value)


# --- formats as input -----------------------------------------------------------------------------

TARGETS = [
    ("out r, layer r s, s in -> layer out in", {"rank": 2}),
    ("layer out r, layer r in -> layer out in", {"rank": 2}),  # layer is in two terms
    ("out r, in r, layer r -> layer out in", {"error": 0.2}),
    ("out r, layer r in -> layer out in", {"budget": 250}),
    ("out r, r in + layer a, out a, a in -> layer out in", {"rank": 2}),
]


@pytest.mark.parametrize(("equation", "target"), TARGETS, ids=[e for e, _ in TARGETS])
def test_a_format_is_fitted_as_its_dense_tensor(equation, target, rng):
    """Any format to any network: the dense tensor is never formed where a mode has one term."""
    modes, shape = ("layer", "out", "in"), (3, 20, 16)
    given = td.CP(
        modes, np.array([4.0, 2.0, 1.0]), tuple(rng.standard_normal((n, 3)) for n in shape)
    )
    x = given.to_dense()
    found, expected = (als(data, equation, **target) for data in (given, x))
    assert found.tensor.shape == shape
    true = np.linalg.norm(x - found.tensor.to_dense()) / np.linalg.norm(x)
    assert found.error == pytest.approx(true, abs=1e-10)
    assert found.error <= expected.error * 1.05 + 1e-9
    assert found.n_params <= target.get("budget", x.size)


def test_a_network_far_too_large_to_form(rng):
    modes = ("layer", "out", "in")
    big = td.CP(modes, np.ones(3), tuple(rng.standard_normal((n, 3)) for n in (50, 10**5, 10**5)))
    fit = als(big, "out r, layer r s, in s -> layer out in", rank=3)
    assert fit.error < 1e-12


# -- without Newton steps ---------------------


RING = "a m0 b, b m1 c, c m2 a -> m0 m1 m2"


def test_newton_steps_can_be_left_out():
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal((2, n, 2)) for n in (6, 7, 8)]
    x = np.einsum("aib,bjc,cka->ijk", *cores)
    plain = td.als(x, RING, rank=2, n_iter_max=500, tol=1e-10, n_restarts=3, newton=False)
    assert "Newton" not in plain.trace.reason
    assert plain.error < 1e-2
    noisy = x + 0.1 * rng.standard_normal(x.shape)
    assert "Newton" in td.als(noisy, RING, rank=2, n_iter_max=5).trace.reason
    more = td.als(noisy, RING, rank=2, n_iter_max=20, tol=0, newton=False).trace.errors
    assert len(more) <= 20
    assert list(more) == sorted(more, reverse=True)


def test_tied_terms_need_newton_steps():
    x = np.eye(4)
    with pytest.raises(td.ArgumentError, match="tied terms are fitted by Newton steps"):
        td.als(x, "i r, j r -> i j", rank=2, tied=[(0, 1)], newton=False)


@pytest.mark.parametrize("options", [{"n_iter_max": 10}, {"n_iter_max": 100, "newton": False}])
def test_a_ring_with_bonds_wider_than_its_modes_is_found_to_rounding(options):
    """TensorLy's tensor_ring_als comes to 2e-11; normal equations would stop at 1e-6."""
    shape, rank = (6, 2, 3, 2, 6), (3, 2, 4, 12, 18, 3)
    x = random_tr(shape, rank, full=True, random_state=1234)
    cores = ", ".join(f"b{k} m{k} b{(k + 1) % 5}" for k in range(5))
    ranks = {f"b{k}": rank[k] for k in range(5)}
    fit = td.als(x, f"{cores} -> m0 m1 m2 m3 m4", rank=ranks, random_state=1, tol=1e-7, **options)
    assert fit.error < 1e-9
