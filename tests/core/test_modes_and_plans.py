"""Equations and contraction plans, with numpy's einsum as the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import opt_einsum
import pytest

import tdecomp as td
from tdecomp._plan import contract, make_plan, plan
from tdecomp._xp import to_numpy, tol
from tdecomp.modes import Equation, name_modes, parse_modes, positions
from tdecomp.tensor import gram, mode_product, unfold

SIZES = {"layer": 3, "proj": 2, "out": 5, "in": 4, "r": 2, "s": 3, "head": 2, "hd": 3, "one": 1}

EQUATIONS = [
    "out r, r in -> out in",
    "out r, layer proj r s, s in -> layer proj out in",
    "out r, in s, proj one, layer s, r s one s -> layer proj out in",
    "hd r, head r, in r, proj r, layer r -> layer proj (head hd) in",  # CP: r is a hyperedge
    "layer out, out r, layer r, r in -> layer out in",  # VeRA
    "out r, in r -> in out",
    "layer out in -> out layer",
    "layer out, in -> in layer out",
    "out, out -> out",
    "r, layer out in -> in out layer",
]


@pytest.mark.parametrize("text", EQUATIONS)
def test_plans_agree_with_einsum(text, rng, xp):
    if "one s" in text:
        text = text.replace("r s one s", "r s one")
    equation = Equation.parse(text)
    shapes = [tuple(SIZES[n] for n in term) for term in equation.terms]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    expected = np.einsum(equation.symbols, *arrays)
    result = to_numpy(contract(equation, [xp.asarray(a) for a in arrays]))
    assert result.shape == equation.shape(equation.sizes(shapes))
    np.testing.assert_allclose(
        result.reshape(expected.shape), expected, atol=tol("float64", expected.size * 50)
    )


def test_a_plan_avoids_the_dense_tensor():
    plan = make_plan("ar,brs,sc->bac", ((512, 4), (6, 4, 4), (4, 512)))
    assert plan.flops < 2 * 6 * 512 * 512 * 16
    assert len(plan.steps) == 2


def forms(symbols: str, steps) -> list[tuple[str, str]]:
    """Every array that the steps form, written by hand: (inputs of the step, result)."""
    operands, formed = symbols.split("->")[0].split(","), []
    for where, step in steps:
        taken = [operands.pop(i) for i in sorted(where, reverse=True)]
        assert step.split("->")[0] == ",".join(taken)
        operands.append(step.split("->")[1])
        formed.append((",".join(taken), operands[-1]))
    return formed


@pytest.mark.parametrize("text", EQUATIONS)
def test_costs_of_a_plan_are_counted_by_hand(text):
    if "one s" in text:
        text = text.replace("r s one s", "r s one")
    equation = Equation.parse(text)
    found = plan(equation, SIZES)
    sizes = {letter: SIZES[name] for letter, name in found.names}
    size = lambda letters: int(np.prod([sizes[c] for c in letters], dtype=int))
    formed = forms(equation.symbols, found.steps)
    assert found.peak == max(size(result) for _, result in formed)
    flops = 0
    for inputs, result in formed:
        loops = size(set(inputs) - {","})
        flops += loops if "," in inputs else 0  # multiplications
        flops += loops if set(inputs) - {","} - set(result) else 0  # additions
    assert found.flops == flops
    assert found.peak >= np.prod(equation.shape({n: SIZES[n] for n in SIZES}))


def test_costs_of_simple_products():
    assert plan("m k, k n -> m n", {"m": 3, "k": 5, "n": 7}).flops == 2 * 3 * 5 * 7
    assert plan("m, n -> m n", {"m": 3, "n": 7}).flops == 21
    assert plan("m k -> m", {"m": 3, "k": 5}).flops == 15
    assert plan("m k -> k m", {"m": 3, "k": 5}).flops == 0
    assert plan("m k, k n -> m n", [(3, 5), (5, 7)]).peak == 21


def test_a_plan_reads_as_named_steps():
    text = str(plan("m k, k n -> m n", [(3, 5), (5, 7)]))
    assert text.splitlines()[0] in ("m k, k n -> m n", "k n, m k -> m n")
    assert text.splitlines()[1] == "flops 210, peak 21 numbers"


A, B = np.ones((2, 3)), np.ones((3, 4))
MISFITS = [
    ([A, B, np.ones((7, 7))], r"contracts 2 arrays \(i j, j k\), got 3"),
    ([A], "contracts 2 arrays .*, got 1"),
    ([], "contracts 2 arrays .*, got 0"),
    (A, r"array 0 of this plan, 'i j', has the shape \(2, 3\), got the shape \(3,\)"),
    ([B, A], r"array 0 .*'i j', has the shape \(2, 3\), got the shape \(3, 4\).*reorder"),
    ([A, np.ones((3, 5))], r"array 1 of this plan, 'j k', has the shape \(3, 4\)"),
    ([A, np.ones((3, 4, 1))], r"array 1 .*got the shape \(3, 4, 1\)"),
    ([A, B.tolist()], "array 1 .*got a list"),
]


@pytest.mark.parametrize(("arrays", "text"), MISFITS, ids=[text for _, text in MISFITS])
def test_a_plan_runs_on_the_arrays_that_it_is_made_for(arrays, text):
    found = plan("i j, j k -> i k", [(2, 3), (3, 4)])
    np.testing.assert_array_equal(found.run([A, B]), A @ B)
    with pytest.raises(td.ArgumentError, match=text):
        found.run(arrays)
    single = plan("i j -> j", {"i": 2, "j": 3})
    np.testing.assert_array_equal(single.run([A]), A.sum(0))
    with pytest.raises(td.ArgumentError, match="contracts 1 arrays"):
        single.run([A, A])


CHAIN = "a b, b c, c d, d e -> a e"
WIDE = {"a": 2, "b": 50, "c": 3, "d": 40, "e": 5}


def brute_force(terms: list[str], output: str, sizes) -> int:
    """Smallest peak over all orders of pairwise contraction."""
    if len(terms) == 1:
        return 0
    best = None
    for i, j in itertools.combinations(range(len(terms)), 2):
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        needed = set(output).union(*rest)
        result = "".join(c for c in dict.fromkeys(terms[i] + terms[j]) if c in needed)
        size = int(np.prod([sizes[c] for c in result], dtype=int))
        peak = max(size, brute_force([*rest, result], output, sizes))
        best = peak if best is None else min(best, peak)
    return best


def test_memory_limits_are_kept_down_to_the_best_order(rng):
    least = brute_force(["ab", "bc", "cd", "de"], "ae", WIDE)
    found = plan(CHAIN, WIDE, memory_limit=least)
    assert found.peak == least
    with pytest.raises(td.ArgumentError, match=f"within memory_limit={least - 1}|more than"):
        plan(CHAIN, WIDE, memory_limit=least - 1)
    equation = Equation.parse(CHAIN)
    arrays = [rng.standard_normal([WIDE[n] for n in term]) for term in equation.terms]
    with pytest.raises(td.ArgumentError, match=r"has 10 numbers, more than memory_limit=9"):
        contract(equation, arrays, memory_limit=9)
    np.testing.assert_allclose(
        contract(equation, arrays, memory_limit=least), np.linalg.multi_dot(arrays)
    )


def test_memory_limits_of_long_chains():
    names = [f"n{k}" for k in range(19)]
    terms = [f"{a} {b}" for a, b in itertools.pairwise(names)]
    sizes = {n: 2 + 7 * (k % 3) for k, n in enumerate(names)}
    text = f"{', '.join(terms)} -> {names[0]} {names[-1]}"
    with pytest.raises(td.ArgumentError, match="memory_limit=3"):
        plan(text, sizes, memory_limit=3)
    free = plan(text, sizes)
    assert plan(text, sizes, memory_limit=free.peak).peak <= free.peak


def from_the_left(inputs, output, sizes, memory_limit):
    """A path by hand; checks opt_einsum's signature on the way."""
    assert all(isinstance(term, frozenset) for term in [*inputs, output])
    assert all(n > 0 for n in sizes.values())
    assert memory_limit is None
    return [(0, 1)] + [(0, n - 1) for n in range(len(inputs) - 1, 1, -1)]


class All:
    """A path optimizer object, not hashable, that contracts all at once."""

    __hash__ = None

    def __call__(self, inputs, output, sizes, memory_limit=None):
        return [tuple(range(len(inputs)))]


@pytest.mark.parametrize("optimizer", [from_the_left, All(), opt_einsum.DynamicProgramming()])
@pytest.mark.parametrize("text", [CHAIN, "r, a r, b r, c r -> a b c", "a b -> b a"])
def test_orders_of_other_optimizers(optimizer, text, rng):
    equation = Equation.parse(text)
    sizes = WIDE | {"r": 2}
    arrays = [rng.standard_normal([sizes[n] for n in term]) for term in equation.terms]
    expected = np.einsum(equation.symbols, *arrays)
    np.testing.assert_allclose(contract(equation, arrays, optimizer=optimizer), expected)
    assert all(len(where) <= 2 for where, _ in plan(text, sizes, optimizer=optimizer).steps)


WRONG = [[], [(0, 1)], [(0, 9)], [(0, 0), (0, 1), (0, 1)], ["ab"], 3, [(), (0, 1, 2, 3)]]


@pytest.mark.parametrize("path", WRONG, ids=str)
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(td.ArgumentError, match="the optimizer's path for"):
        plan(CHAIN, WIDE, optimizer=lambda *_: path)


def test_an_order_of_its_own_is_held_to_the_limit():
    with pytest.raises(td.ArgumentError, match="forms an array of 250 numbers"):
        plan(CHAIN, WIDE, memory_limit=100, optimizer=lambda *_: [(2, 3), (1, 2), (0, 1)][::1])


def test_plans_are_made_once():
    asked = []

    def optimizer(*arguments):
        asked.append(arguments)
        return [(0, 1), (0, 2), (0, 1)]

    for _ in range(3):
        plan(CHAIN, WIDE, optimizer=optimizer)
    assert len(asked) == 1


def test_any_number_of_names(rng):
    names = [f"n{k}" for k in range(80)]
    terms = tuple(itertools.pairwise(names))
    arrays = [rng.standard_normal((2, 2)) for _ in terms]
    equation = Equation(terms, (names[0], names[-1]))
    np.testing.assert_allclose(contract(equation, arrays), np.linalg.multi_dot(arrays))
    assert "n79" in str(plan(equation, [a.shape for a in arrays]))


def test_sizes_are_all_needed():
    with pytest.raises(td.ArgumentError, match="no size for e"):
        plan(CHAIN, {n: k for n, k in WIDE.items() if n != "e"})


BAD = [
    ("out r r in", "no '->'"),
    ("out r, r in -> out in layer", "'layer' is in the output"),
    ("out r, r in -> out out", "twice in the output"),
    ("out r, r in -> (out in", "unclosed"),
    ("out r, r+in -> out in", "cannot read '\\+'"),
    ("out out r, r in -> out in", "a name twice"),
    ("h r, (h d) s, in r s -> (h d) in", "'h' is a name of its own and a part of the axis"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_equations_are_refused_with_their_text(text, message):
    with pytest.raises(td.ArgumentError, match=message):
        Equation.parse(text)


def test_a_joined_axis_is_a_name_like_others(rng):
    text = "layer (h d) r, r in -> layer (h d) in"
    equation = Equation.parse(text)
    assert equation.output == ("layer", "(h d)", "in")
    assert str(equation) == text
    x, y = rng.standard_normal((2, 6, 3)), rng.standard_normal((3, 5))
    np.testing.assert_allclose(contract(equation, [x, y]), x @ y)
    assert "layer (h d) r" in str(plan(text, [x.shape, y.shape]))
    assert plan(text, {"layer": 2, "(h d)": 6, "r": 3, "in": 5}).peak == 60
    split = Equation.parse("h r, d r -> (h d)")
    assert split.output == (("h", "d"),)
    assert Equation.parse(str(split)) == split


@pytest.mark.parametrize("names", ["layer (h d) in", ["layer", "(h d)", "in"]])
def test_a_joined_axis_names_one_mode(names):
    assert name_modes(3, names) == ("layer", "(h d)", "in")


@pytest.mark.parametrize("names", [["a b", "c"], ["", "c"], ["a.b", "c"], ["(a)b", "c"], "a a"])
def test_names_no_equation_could_hold(names):
    with pytest.raises(td.ArgumentError, match="cannot name a mode|named twice"):
        name_modes(2, names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "greedy"}, r"optimizer='greedy' must be a function .*opt_einsum"),
        ({"memory_limit": "1GB"}, "memory_limit='1GB' must be a whole number"),
    ],
)
def test_options_of_a_wrong_kind(options, message):
    with pytest.raises(td.ArgumentError, match=message):
        plan(CHAIN, WIDE, **options)


def test_sizes_must_agree():
    with pytest.raises(td.ArgumentError, match="'r' is both 2 and 3"):
        Equation.parse("out r, r in -> out in").sizes([(4, 2), (3, 5)])


def test_names_and_positions():
    assert parse_modes("a (b c) d") == ("a", ("b", "c"), "d")
    assert positions(("a", "b", "c"), ["c", 0]) == (2, 0)
    with pytest.raises(td.ArgumentError, match="no mode 'x'"):
        positions(("a",), ["x"])
    with pytest.raises(td.ArgumentError, match="3 different names"):
        name_modes(3, "a b")


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 1, 4), (1, 1, 6)])
def test_mode_products_and_grams_of_unfoldings(shape, rng, xp):
    x = rng.standard_normal(shape)
    for mode, n in enumerate(shape):
        matrix = rng.standard_normal((3, n))
        expected = np.moveaxis(np.tensordot(matrix, x, axes=(1, mode)), 0, mode)
        got = mode_product(xp.asarray(x), xp.asarray(matrix), mode)
        np.testing.assert_allclose(to_numpy(got), expected, atol=tol("float64", x.size))
        flat = np.moveaxis(x, mode, 0).reshape(n, -1)
        np.testing.assert_array_equal(unfold(x, mode), flat)
        np.testing.assert_allclose(
            to_numpy(gram(xp.asarray(x), mode)), flat @ flat.T, atol=tol("float64", 50 * x.size)
        )


def test_grams_larger_than_a_tile_are_summed(rng, monkeypatch):
    monkeypatch.setattr("tdecomp.tensor._TILE", 40)
    x = rng.standard_normal((6, 7, 11))
    for mode in range(3):
        flat = unfold(x, mode)
        np.testing.assert_allclose(gram(x, mode), flat @ flat.T, atol=tol("float64", 500))
