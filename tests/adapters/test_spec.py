"""The language of methods: formulas, equations, sizes, and what is said of those that are wrong."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdecomp.adapters import CATALOGUE, Factor, Grid, Operand, Spec, Term, bind, method
from tdecomp.adapters.expressions import Expression
from tdecomp.adapters.inits import Init
from tdecomp.adapters.sums import why_not_summed
from tdecomp.errors import ArgumentError

from .test_laws import close, deltas, dense, n_terms

LORA = "b: site out r, a: site r in"
GRID = Grid.full((12, 8), layer=3, proj=2)


def spec(equation: str = LORA, init="normal", **options) -> Spec:
    return Spec.parse("mine", equation, init, **options)


def refused(message: str):
    return pytest.raises(ArgumentError, match=re.escape(message))


# -- formulas -------------------------------------------------------------------------------------

NUMBERS = {"in": 10, "out": 12, "r": 4, "alpha": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("r + 2 * in - 1", 23),
        ("in // r", 2),
        ("in % r", 2),
        ("-r", -4),
        ("(in + out) / r", Fraction(11, 2)),
        ("in / 5", 2),
        ("1 / 3 * 3", 1),
        ("r ** 2", 16),
        ("2 ** 0.5", math.sqrt(2)),
        ("alpha / r", 0.125),
        ("1.5", 1.5),
        ("min(in, out, r)", 4),
        ("max(in, out)", 12),
        ("sqrt(r)", 2),
        ("sqrt(in)", math.sqrt(10)),
        ("sqrt(1 / 4)", 0.5),
        ("ceil(in / r)", 3),
        ("floor(in / r)", 2),
        ("round(in / 3)", 3),
        ("gcd(in, out)", 2),
        ("divisor(out, 5)", 4),
        ("divisor(out, sqrt(out))", 3),
        ("divisor(7, 6)", 1),
        ("divisor(out, 100)", 12),
        ("part(768, 3, 1)", 8),
        ("part(768, 3, 3)", 12),
        ("part(7, 2, 1)", 1),
        ("part(out, 1, 1)", 12),
        ("inner", 3),
        ("is + as", 9),
    ],
)
def test_a_formula_has_its_value(text, value):
    found = Expression(text)({**NUMBERS, "inner": 3, "is": 4, "as": 5})
    assert found == value
    assert isinstance(found, float) == isinstance(value, float)


@given(st.integers(1, 5000), st.integers(1, 5))
def test_the_parts_of_a_number_make_it(n, parts):
    found = [Expression(f"part({n}, {parts}, {k + 1})")({}) for k in range(parts)]
    assert math.prod(found) == n
    assert found == sorted(found)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_divisor_is_the_largest_up_to_the_limit(n, limit):
    assert Expression(f"divisor({n}, {limit})")({}) == max(
        d for d in range(1, limit + 1) if n % d == 0
    )


@pytest.mark.parametrize(
    ("text", "names"), [("in", {"in"}), ("min(a, b) / in_2", {"a", "b", "in_2"})]
)
def test_a_formula_names_what_it_needs(text, names):
    assert Expression(text).names == names


NO_FORMULAS = [
    "", " ", "1 +", "a b", "__import__('os')", "r.real", "r[0]", "[1]", "'a'", "1j", "r < 2",
    "r if r else 1", "lambda: 1", "x and y", "~r", "+r", "r @ r", "r << 2", "max(*r)",
    "min(r, key=r)", "f'{r}'", "(r := 2)", "a; b", "exec(r)", "a\0b", "(" * 400 + "r" + ")" * 400,
]  # fmt: skip


@pytest.mark.parametrize("text", NO_FORMULAS, ids=range(len(NO_FORMULAS)))
def test_nothing_but_arithmetic_is_read(text):
    with pytest.raises(ArgumentError, match="formula"):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r / 0", "'r / 0' has no value: division by zero"),
        ("r % 0", "has no value"),
        ("sqrt(-r)", "has no value"),
        ("(-r) ** 0.5", "is not a real number"),
        ("9 ** 9 ** 9", "is too large"),
        ("gcd(r / 3, r)", "4/3 is not whole"),
        ("part(in, 3, 4)", "part 4 of 3 of 10: count the parts from 1"),
        ("part(in, 3, 0)", "part 0 of 3 of 10"),
        ("part(2 ** 60, 2, 1)", "has no value"),
        ("divisor(in, 0)", "10 has no divisor up to 0"),
        ("min()", "has no value"),
        ("gcd(r)", "has no value"),
        ("rr + 1", "needs 'rr', did you mean 'r'?"),
        ("True", "needs 'True'"),
    ],
)
def test_a_formula_without_a_value_says_why(text, message):
    with refused(message):
        Expression(text)(NUMBERS)


def test_an_unknown_function_is_named_with_the_nearest():
    with refused("no function 'ceiling' in the formula 'ceiling(r)', did you mean 'ceil'?"):
        Expression("ceiling(r)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in / r", "the size g = in / r is 2.5 for in = 10, r = 4: it must be a positive whole"),
        ("r - 4", "is 0 for r = 4"),
        ("-1", "the size g = -1 is -1:"),
        ("1e400", "is inf"),
        ("alpha", "is 0.5"),
    ],
)
def test_a_size_is_a_positive_whole_number(text, message):
    with refused(message):
        Expression(text).size(NUMBERS, "g")


# -- reading an equation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("out r,r in", "out_r: out r, r_in: r in -> out in"),
        ("  b:out r ,  * a : r in ", "b: out r, *a: r in -> out in"),
        ("- out r, r in", "- out_r: out r, r_in: r in -> out in"),
        ("+ out r, r in", "out_r: out r, r_in: r in -> out in"),
        (
            "out r, r in - out r, s in, r s",
            "out_r: out r, r_in: r in - out_r: out r, s_in: s in, r_s: r s -> out in",
        ),
        (
            "head hd r, r in -> (head hd) in",
            "head_hd_r: head hd r, r_in: r in -> (head hd) in",
        ),
        ("long r, r a b -> long (a b)", "long_r: long r, r_a_b: r a b -> long (a b)"),
        ("a b r, r short -> (a b) short", "a_b_r: a b r, r_short: r short -> (a b) short"),
    ],
)
def test_an_equation_is_read_and_written(text, written):
    assert spec(text).equation == written
    assert spec(written).equation == written


def test_letters_used_twice_are_one_factor():
    twice = spec("out r, r in - out r, s in, r s")
    assert [f.name for f in twice.factors] == ["out_r", "r_in", "s_in", "r_s"]


EQUATIONS = {
    "nothing": ("", "has no factors"),
    "only an output": ("-> out in", "has no factors"),
    "an empty term": ("out r, r in + ", "has no factors: write 'out r, r in'"),
    "two signs": ("out r, r in - - out r, r in", "has no factors"),
    "an empty factor": ("out r, , r in", "cannot read the factor ''"),
    "a name without modes": ("b:, r in", "cannot read the factor 'b:'"),
    "a stray sign": ("out r, r in; out", "cannot read the factor 'r in; out'"),
    "two names": ("a: b: out r, r in", "cannot read the factor 'a: b: out r'"),
    "brackets in a factor": ("(out r), r in", "cannot read the factor '(out r)'"),
    "an open bracket": ("out r, r in -> (out in", "unclosed ("),
    "a letter in no factor": (
        "out r, r s", "'in' is in the output of 'mine' but in no factor of 'out_r: out r, r_s:",
    ),
    "a part in no factor": ("head r, r in -> (head hd) in", "'hd' is in the output"),
    "a letter in one term only": ("out r, r in + out r", "'in' is in the output of 'mine' but"),
    "a split side as a whole": (
        "out r, head hd r, r in -> (head hd) in", "'out' is split in the output of 'mine': use its",
    ),
    "a letter twice": (
        "out r r, r in", "'out r r' of 'mine' has a letter twice: use two letters and a frozen",
    ),
    "another number of axes": (
        "b: out r, b: in", "'b' of 'mine' has the axes out r, it cannot stand as 'in'",
    ),
    "frozen and trained": (
        "*b: out r, b: in r", "the factor 'b' of '*b: out r, b: in r' is frozen in one place",
    ),
    "frozen and trained by letters": ("out r, r in - *out r, r in", "'out_r'"),
    "two factors of one name": (
        "a_b c, a b_c, out in", "'a b_c' and 'a_b c' of 'a_b c, a b_c, out in' would both be named",
    ),
    "one axis": ("out in -> (out in)", "must be two axes, out and in (or long and short)"),
    "three axes": ("out in r -> out in r", "must be two axes"),
    "axes the other way round": ("out in -> in out", "must be two axes"),
    "axes of two kinds": ("out short -> out short", "must be two axes"),
    "a whole side at the place of another": ("a b out -> (a b) out", "must be two axes"),
    "a part twice": ("a b in -> (a a) b", "must be two axes"),
    "a part on both sides": ("a b c -> (a b) (b c)", "must be two axes"),
    "a number of the scale": ("out alpha, alpha in", "'alpha' in 'out_alpha: out alpha, alpha_in"),
    "the step": ("out step, step in", "is a number of the scale: use another letter"),
}  # fmt: skip


@pytest.mark.parametrize("what", EQUATIONS)
def test_an_equation_that_is_wrong_is_refused(what):
    equation, message = EQUATIONS[what]
    with refused(message):
        spec(equation)


OPTIONS = {
    "unknown base": ({"base": "residul"}, "base='residul', did you mean 'residual'?: expected"),
    "unknown wrap": ({"wrap": "row"}, "wrap='row', did you mean 'rows'?: expected one of rows"),
    "a wrap of a residual": ({"wrap": "rows", "base": "residual"}, "a wrap goes with base='add'"),
    "unknown init": ({"init": "normel"}, "init 'normel', did you mean 'normal'?"),
    "no init": ({"init": {"b": "zeros"}}, "no init for the factor 'a': say how it starts"),
    "too few inits": ({"init": ["zeros"]}, "1 inits for the 2 factors b, a"),
    "too many inits": ({"init": ["zeros"] * 3}, "3 inits for the 2 factors b, a"),
    "an init of another": (
        {"init": {"b": "zeros", "a": "ones", "core": "ones"}}, "init names 'core': the factors are",
    ),
    "modes of another": ({"modes": {"bb": "n r"}}, "modes names 'bb', did you mean 'b'?"),
    "axes that do not fit": (
        {"modes": {"b": "out r"}}, "'b' of 'mine' has the axes out r, it cannot stand as 'site out",
    ),
    "a schedule of another": ({"freeze": {"c": "step"}}, "freeze names 'c': the factors of 'mine'"),
    "a schedule of nothing": ({"freeze": {"b": "stp / 2"}}, "the freeze of b = stp / 2 of 'mine'"),
    "a norm of another": ({"unit": {"c": "out"}}, "unit names 'c': the factors of 'mine'"),
    "a norm over weights": ({"unit": {"b": "site"}}, "unit of 'b' of 'mine' names 'site'"),
    "a norm of no axis": ({"unit": {"b": "in"}}, "names 'in': expected axes of it inside of a"),
    "a norm of a part": (
        {"modes": {"b": "site long r"}, "unit": {"b": "long"}}, "stands with its own letters",
    ),
    "across of another": ({"across": ["c"]}, "across names 'c'"),
    "crop of no side": ({"crop": ["long"]}, "crop='long': expected out or in"),
    "a scale of nothing": ({"scale": "alpha / s"}, "scale = alpha / s of 'mine' names 's'"),
    "a scale of a factor": ({"scale": "1 / a"}, "scale = 1 / a of 'mine' names 'a'"),
    "an alpha of nothing": ({"alpha": "rr"}, "alpha = rr of 'mine' names 'rr', did you mean 'r'?"),
    "a size of nothing": ({"where": {"r": "outt"}}, "r = outt of 'mine' names 'outt', did you"),
    "a size that is known": ({"where": {"out": 4}}, "where gives 'out' of 'mine' a size"),
    "an init of nothing": ({"init": "normal(1 / n)"}, "the init of b = 1 / n of 'mine' names 'n'"),
    "a copy of nothing": ({"init": ["normal", "copy(c)"]}, "'a' of 'mine' cannot start as copy(c)"),
    "a copy of a copy": ({"init": ["copy(a)", "copy(b)"]}, "'b' of 'mine' cannot start as copy(a)"),
    "a factor that the wrap has": (
        {"equation": "magnitude: site out r, a: r in", "wrap": "rows"},
        "'mine' has two factors named 'magnitude'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OPTIONS)
def test_an_option_that_is_wrong_is_refused(what):
    options, message = OPTIONS[what]
    with refused(message):
        spec(**options)


def test_a_factor_of_norm_1_is_one_everywhere():
    mine = spec("b: hd r, a: head r in -> (head hd) in", "normal", unit={"b": "hd", "a": "r in"})
    assert Spec.from_json(json.loads(json.dumps(mine.to_json()))) == mine
    assert [f.unit for f in mine.over_heads().factors] == [("out",), ("r", "in")]
    assert "norm of 1" in why_not_summed(mine, ["r"])
    residual = replace(mine, base="residual").expanded
    assert [f.unit for f in residual.factors] == [("hd",), ("r", "in")] * 2


def test_a_term_of_an_unknown_factor_is_refused():
    term = Term((Operand("b", ("out", "in")),))
    with refused("'b' of 'b: out in' is not a factor of 'mine': there are a"):
        Spec(
            name="mine",
            terms=(term,),
            factors=(Factor(name="a", modes=("out", "in"), init=Init("zeros")),),
        )


def test_a_factor_of_no_term_is_refused():
    term = Term((Operand("a", ("out", "in")),))
    factors = tuple(Factor(name=name, modes=("out", "in"), init=Init("zeros")) for name in "ab")
    with refused("the factor 'b' of 'mine' stands in no term"):
        Spec(name="mine", terms=(term,), factors=factors)


def test_an_unknown_method_is_named_with_the_nearest():
    with refused("no adapter row 'lotra', did you mean 'lotr'?"):
        method("lotra")


def test_a_method_is_found_as_people_write_it():
    assert method("LoTR") is CATALOGUE["lotr"]


@pytest.mark.parametrize(
    "plain",
    [{}, {"name": "mine"}, {"name": "mine", "equation": LORA, "init": "ones", "rank": 3}],
    ids=["nothing", "a name", "too much"],
)
def test_json_that_is_no_method_is_refused(plain):
    with refused("this is not a description of an adapter"):
        Spec.from_json(plain)


# -- the base rule written out, gates -------------------------------------------------------------


def test_a_residual_is_the_method_less_its_start():
    whole = spec("*u: site out r, s: r, v: r in", base="residual", scale="alpha / r").expanded
    assert whole.equation == (
        "*u: site out r, s: r, v: r in - *u: site out r, *s_0: r, *v_0: r in -> out in"
    )
    assert [str(f.init) for f in whole.factors[3:]] == ["copy(s)", "copy(v)"]
    assert whole.base == "add"
    assert whole.expanded == whole


def test_a_truncated_base_is_less_its_last_singular_values():
    b = bind(spec(init="ones", base="truncate", scale=0), Grid.full((5, 4), layer=2), 2)
    w = np.random.default_rng(0).standard_normal((2, 5, 4))
    arrays = b.start(w.__getitem__)
    for site in range(2):
        u, s, vh = np.linalg.svd(w[site], full_matrices=False)
        kept = u[:, :2] * s[:2] @ vh[:2]
        assert close(b.weight(w[site], arrays, site), kept, 4)


def test_a_truncated_base_written_out_has_no_json():
    truncated = spec(base="truncate")
    assert Spec.from_json(truncated.to_json()) == truncated
    with refused("'mine' has terms without the scale"):
        truncated.expanded.to_json()


def test_a_gate_of_ones_changes_nothing_and_a_gate_of_zeros_prunes_a_rank():
    plain, gated = bind(spec(), GRID, 3), bind(spec().gated("r"), GRID, 3)
    arrays = plain.start()
    gate = np.ones((6, 3))
    assert close(deltas(gated, arrays | {"gate_r": gate}), deltas(plain, arrays), 3)
    gate[4, 1:] = 0
    pruned = arrays["b"][4][:, :1] @ arrays["a"][4][:1]
    assert close(gated.delta(arrays | {"gate_r": gate}, 4), pruned, 3)


def test_a_gate_stands_in_every_term_of_its_letter():
    two = spec("b: out r, a: r in - b: out r, c: r s, d: s in + e: out in")
    assert two.gated("r", trainable=False).equation == (
        "b: out r, a: r in, *gate_r: site r - b: out r, c: r s, d: s in, *gate_r: site r"
        " + e: out in -> out in"
    )
    gated = two.gated("s").gated("r")
    assert Spec.from_json(gated.to_json()) == gated


@pytest.mark.parametrize("letter", ["out", "in", "site", "layer", "q"])
def test_only_a_rank_has_a_gate(letter):
    with refused(f"no rank {letter!r}"):
        spec("layer out r, site r in").gated(letter)


def test_a_rank_has_one_gate():
    with refused("two factors named 'gate_r'"):
        spec().gated("r").gated("r")


# -- the start is derived -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "zero"),
    [
        ({"init": ["zeros", "normal"]}, True),
        ({"init": ["normal", "ones"]}, False),
        ({"init": "normal", "base": "residual"}, True),
        ({"init": "zeros", "base": "replace"}, False),
        ({"init": "zeros", "base": "truncate"}, False),
        ({"init": "normal", "scale": "min(step / 10, 1) * alpha / r"}, True),
        ({"init": "normal", "scale": "1 + step"}, False),
        ({"init": ["normal", "zeros"], "wrap": "rows"}, True),
        ({"equation": "out r, r in - out r, r in", "init": "normal"}, True),
        ({"equation": "out r, r in + out r, r in", "init": "normal"}, False),
        ({"equation": "out r, r in - out s, s in", "init": "normal"}, False),
        ({"equation": "out r, r in + x: out in", "init": ["zeros", "normal", "normal"]}, False),
        ({"equation": "out r, r in + x: out in", "init": ["zeros", "normal", "zeros"]}, True),
        ({"equation": "a: out r, b: r in - *c: out r, b: r in",
          "init": ["normal", "normal", "copy(a)"]}, True),
    ],
    ids=range(14),
)  # fmt: skip
def test_whether_a_method_starts_at_zero_follows_from_its_inits(options, zero):
    assert spec(**options).starts_at_zero == zero


# -- on a grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_one_rank_is_for_every_open_letter(rank):
    b = bind(spec("out r, site r s, s in"), GRID, rank)
    assert b.shapes == {"out_r": (12, rank), "site_r_s": (6, rank, rank), "s_in": (rank, 8)}


def test_a_part_that_follows_is_not_asked_for_though_other_sizes_need_it():
    mine = spec("a b r, r in -> (a b) in", where={"r": "b - 1"})
    assert bind(mine, GRID, {"a": 2}).shapes["a_b_r"] == (2, 6, 5)


def test_ranks_by_letter():
    b = bind(spec("out r, site r s, s in"), GRID, {"r": 3, "s": np.int64(5)})
    assert b.shapes == {"out_r": (12, 3), "site_r_s": (6, 3, 5), "s_in": (5, 8)}


def test_a_rank_by_letter_replaces_the_size_that_the_method_gives():
    mine = spec("site out g, g r, r in", where={"g": "r + 1"})
    assert bind(mine, GRID, 2).sizes["g"] == 3
    assert bind(mine, GRID, {"r": 2, "g": 5}).sizes["g"] == 5


def test_sizes_follow_from_sizes_in_any_order():
    mine = spec("a b r, r in -> (a b) in", where={"a": "2 * c", "c": "gcd(out, in) / 2", "r": "b"})
    assert {n: bind(mine, GRID).sizes[n] for n in "abr"} == {"a": 4, "b": 3, "r": 3}


def test_the_last_part_of_a_split_follows_from_the_others():
    b = bind(spec("x y r, r in -> (x y) in"), GRID, {"x": 3, "r": 2})
    assert b.shapes["x_y_r"] == (3, 4, 2)


def test_the_last_part_of_a_cropped_split_is_rounded_up():
    b = bind(spec("x y r, r in -> (x y) in", crop=["out"]), GRID, {"x": 5, "r": 2})
    assert b.shapes["x_y_r"] == (5, 3, 2)
    assert b.delta(b.start(), 0).shape == (12, 8)


RANKS = {
    "no rank": (None, "'mine' needs the rank r, s: give rank=8, or rank={'r': 8}"),
    "a letter missing": ({"r": 2}, "'mine' needs the rank s"),
    "zero": (0, "the rank r=0 must be a whole number, 1 or more"),
    "negative": (-3, "the rank r=-3 must be"),
    "true": (True, "the rank r=True must be"),
    "a fraction": (2.0, "the rank r=2.0 must be"),
    "text": ("8", "the rank r='8' must be"),
    "one letter of zero": ({"r": 2, "s": 0}, "the rank s=0 must be"),
    "an unknown letter": ({"r": 2, "t": 2}, "rank names 't': 'mine' has r, s"),
    "a misspelt letter": ({"rr": 2, "s": 2}, "rank names 'rr', did you mean 'r'?"),
    "a side": ({"r": 2, "s": 2, "out": 3}, "rank names 'out': 'mine' has r, s"),
    "a site mode": ({"r": 2, "s": 2, "layer": 3}, "rank names 'layer'"),
}


@pytest.mark.parametrize("what", RANKS)
def test_a_rank_that_is_wrong_is_refused(what):
    rank, message = RANKS[what]
    with refused(message):
        bind(spec("out r, layer r s, s in"), GRID, rank)


def test_a_rank_above_what_a_factor_can_have_is_legal_and_reported():
    mine = spec("out r, site r s, s in")
    assert bind(mine, GRID, {"r": 12, "s": 9}).redundant == ("s",)
    assert bind(mine, GRID, 8).redundant == ()
    assert bind(mine, GRID, {"r": 2, "s": 13}).redundant == ("s",)


GRIDS = {
    "a split that does not divide": (
        "a b r, r in -> (a b) in", {"where": {"a": "5"}}, GRID, 2,
        "'mine' splits out = 12 of weights into (a b) with a = 5: that does not divide; choose",
    ),
    "parts that make less": (
        "a b r, r in -> (a b) in", {"where": {"a": "2", "b": "5"}, "crop": ["out"]}, GRID, 2,
        "with a = 2, b = 5: that does not divide; choose sizes whose product is 12",
    ),
    "two open parts": ("a b r, r in -> (a b) in", {}, GRID, 2, "no size for 'a'; give rank={'a'"),
    "sizes that need each other": (
        "out r, r in", {"where": {"r": "s + 1", "s": "r - 1"}}, GRID, None, "no size for 'r'",
    ),
    "a size that is no whole number": (
        "out r, r in", {"where": {"r": "out / 5"}}, GRID, None, "the size r = out / 5 is 2.4",
    ),
    "no heads": (
        "head hd r, r in -> (head hd) in", {}, GRID, 2,
        "'mine' needs the number of heads of weights",
    ),
    "heads that do not divide": (
        "head hd r, r in -> (head hd) in", {}, Grid.full((12, 8), heads=5, layer=2), 2,
        "splits out = 12 of weights into (head hd) with head = 5: that does not divide",
    ),
    "a site mode that the weights lack": (
        "expert out r, r in", {}, GRID, 2,
        "'mine' has the mode 'expert', the weights of weights have layer, proj",
    ),
    "a misspelt site mode": (
        "layer out r, r in", {}, Grid.full((12, 8), layers=2), 2, "did you mean 'layers'?",
    ),
    "no site modes": ("layer out r, r in", {}, Grid.full((12, 8)), 2, "have no site modes"),
    "a part that is a site mode": (
        "block x r, r in -> (block x) in", {}, Grid.full((12, 8), block=2), 2,
        "'block' is a part of a weight in 'block_x_r: block x r,",
    ),
    "a factor too small for its second use": (
        "a: in r, a: out r", {}, GRID, 2,
        "the factor 'a' of sizes (8, 2) cannot stand as 'out r' with out = 12: say its own axes",
    ),
    "a factor too small for the sites": (
        "a: layer out, a: site in", {}, Grid.full((8, 8), layer=2, proj=2), None,
        "cannot stand as 'site in' with site = 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GRIDS)
def test_a_grid_that_does_not_fit_is_refused(what):
    equation, options, grid, rank, message = GRIDS[what]
    with refused(message):
        bind(spec(equation, **options), grid, rank)


@pytest.mark.parametrize(
    ("modes", "places", "message"),
    [
        ((("site", (0, 1)),), ((0,),), "'site' cannot be a site mode of w"),
        ((("out", (0, 1)),), ((0,),), "'out' cannot be a site mode"),
        ((("layer", (0,)), ("layer", (0,))), ((0, 0),), "'layer' cannot be a site mode"),
        ((("layer", (0, 1)),), ((2,),), "the place (2,) of a weight of w is outside"),
        ((("layer", (0, 1)),), ((-1,),), "outside of its site modes layer of sizes (2,)"),
        ((("layer", (0, 1)),), ((0, 0),), "the place (0, 0) of a weight of w is outside"),
    ],
    ids=["site", "a side", "twice", "beyond", "negative", "too long"],
)
def test_a_grid_that_is_none_is_refused(modes, places, message):
    with refused(message):
        Grid(name="w", shape=(3, 2), modes=modes, places=places)


@pytest.mark.parametrize("shape", [8, (8,), (0, 8), ("a", 8), (8, 8, 8), [8, 8]])
def test_a_shape_that_is_none_is_refused(shape):
    with refused("the weights of weights need a shape (out, in)"):
        Grid.full(shape, layer=2)


def test_a_site_mode_may_have_any_name():
    b = bind(spec("block out r, r in"), Grid.full((12, 8), block=3, proj=2), 2)
    assert b.shapes["block_out_r"] == (3, 12, 2)
    assert b.redundant == ()
    arrays = b.start()
    assert close(b.delta(arrays, 3), arrays["block_out_r"][1] @ arrays["r_in"], 2)
    assert close(deltas(b, arrays), dense(b, arrays), 2)


# -- scale ----------------------------------------------------------------------------------------


def test_the_scale_is_the_formula():
    mine = spec("out r, site r s, s in", scale="min(step / 10, 1) * alpha / sqrt(s)", alpha="2 * r")
    b = bind(mine, GRID, {"r": 3, "s": 4})
    assert [b.scale(step) for step in (0, 5, 10, 99)] == [0, 1.5, 3, 3]
    assert bind(mine, GRID, {"r": 3, "s": 4}, alpha=8).scale(10) == 4


def test_alpha_is_the_papers_unless_given():
    assert bind(spec(alpha="16", scale="alpha / r"), GRID, 4).scale() == 4
    assert bind(spec(alpha="16", scale="alpha / r"), GRID, 4, alpha=2).scale() == 0.5


def test_delta_is_proportional_to_the_scale():
    small, large = (bind(spec(scale="alpha"), GRID, 2, alpha=alpha) for alpha in (1, 3))
    arrays = small.start()
    assert close(3 * deltas(small, arrays), deltas(large, arrays), 2)


# -- factors held across grids --------------------------------------------------------------------


def test_a_grid_takes_the_leading_part_of_what_is_held_across():
    mine = spec("*b: out n, *a: n in, g: site n", across=["a", "b"], where={"n": "in / 2"})
    large = bind(mine, Grid.full((12, 8), name="large", layer=2))
    small = bind(mine, Grid.full((5, 6), name="small", layer=2), sizes=large.sizes)
    arrays, other = large.start(seed=7), small.start(seed=7)
    assert all(np.array_equal(arrays[name], other[name]) for name in ("a", "b"))
    expected = arrays["b"][:5, :3] * other["g"][0] @ arrays["a"][:3, :6]
    assert close(small.delta(other, 0), expected, 3)
    assert close(small.tensor(other).to_dense()[0], expected, 3)


def test_sizes_across_that_are_too_small_are_refused():
    mine = spec("*b: out r, a: site r in", across=["b"])
    with refused("the factor 'b' of sizes (5, 2) cannot stand as 'out r' with out = 12"):
        bind(mine, GRID, 2, sizes={"out": 5})


# -- how the factors start ------------------------------------------------------------------------


def test_a_start_from_weights_needs_weights():
    with refused("'mine' starts from the base weights (svd_u of 'b'): give weights="):
        bind(spec(init=["svd_u", "zeros"]), GRID, 2).start()


def test_what_must_be_given_is_asked_for():
    with refused("the factor 'a' of 'mine' must be given, an array of site r in, (6, 2, 8)"):
        bind(spec(init=["zeros", "given"]), GRID, 2).start()


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_given_array_has_the_shape_of_its_factor(name):
    with refused(f"the factor {name!r} is site"):
        bind(spec(init=["zeros", "given"]), GRID, 2).start(given={name: np.ones((2, 3))})


def test_a_given_array_replaces_any_start():
    b = bind(spec(init=["svd_u", "given"]), GRID, 2)
    mine = {name: np.full(shape, 0.5, dtype=np.float32) for name, shape in b.shapes.items()}
    arrays = b.start(given=mine)
    assert all(np.array_equal(arrays[name], mine[name]) for name in mine)
    assert all(array.dtype == np.float64 for array in arrays.values())


def test_a_residual_is_less_the_start_that_was_given():
    b = bind(spec(base="residual"), GRID, 2)
    arrays = b.start(given={"a": np.ones(b.shapes["a"])})
    assert not deltas(b, arrays).any()


def test_the_start_that_is_taken_off_can_be_given():
    b = bind(spec(base="residual"), GRID, 2)
    arrays = b.start(given={"a_0": np.zeros(b.shapes["a"])})
    assert close(b.delta(arrays, 3), arrays["b"][3] @ arrays["a"][3], 2)


# -- methods at random ----------------------------------------------------------------------------

LETTERS = st.sets(
    st.sampled_from(["layer", "proj", "site", "r", "s", "out1", "out2", "in"]),
    min_size=1,
    max_size=4,
)


@st.composite
def methods(draw) -> Spec:
    """A sum of one to three random products, some factors frozen, some used again."""
    frozen = draw(st.sets(st.integers(0, 8)))
    names: dict[tuple[str, ...], str] = {}
    text = draw(st.sampled_from(["", "- "]))
    for k in range(draw(st.integers(1, 3))):
        sets = draw(st.lists(LETTERS, min_size=1, max_size=4))
        missing = {"out1", "out2", "in"} - set().union(*sets)
        terms = [tuple(sorted(letters)) for letters in (*sets, missing) if letters]
        operands = []
        for letters in dict.fromkeys(draw(st.permutations(terms))):
            name = names.setdefault(letters, f"f{len(names)}")
            star = "*" if int(name[1:]) in frozen else ""
            operands.append(f"{star}{name}: {' '.join(letters)}")
        text += (draw(st.sampled_from([" + ", " - "])) if k else "") + ", ".join(operands)
    return Spec.parse(
        "random",
        f"{text} -> (out1 out2) in",
        {
            name: draw(st.sampled_from(["normal", "zeros", "uniform(1/2)"]))
            for name in names.values()
        },
        base=draw(st.sampled_from(["add", "residual"])),
        scale=draw(st.sampled_from(["1", "alpha / 4", "1 / sqrt(in)"])),
    )


@settings(max_examples=60, deadline=None)
@given(methods())
def test_any_method_is_what_it_writes(mine):
    inits = {f.name: str(f.init) for f in mine.factors}
    again = Spec.parse("random", mine.equation, inits, base=mine.base, scale=mine.scale.text)
    assert again == mine
    assert again.equation == mine.equation
    for one in (mine, mine.expanded):
        assert Spec.from_json(json.loads(json.dumps(one.to_json()))) == one


@settings(max_examples=30, deadline=None)
@given(methods(), st.sampled_from([(6, 4), (4, 6), (2, 1)]), st.data())
def test_any_method_is_its_equation(mine, shape, data):
    cells = [(i, j) for i in range(3) for j in range(2)]
    places = data.draw(st.lists(st.sampled_from(cells), min_size=1, max_size=4, unique=True))
    modes = (("layer", ("a", "b", "c")), ("proj", ("q", "v")))
    needed = {n: 2 for n in ("r", "s", "out1") if n in mine.letters}
    b = bind(mine, Grid(name="w", shape=shape, modes=modes, places=tuple(places)), needed)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(size) for name, size in b.shapes.items()}
    expected = dense(b, arrays)
    assert close(deltas(b, arrays), expected, n_terms(b))
    assert close(b.tensor(arrays).to_dense(), expected, n_terms(b))
    start = deltas(b, b.start())
    assert not mine.starts_at_zero or close(start, np.zeros_like(start), n_terms(b))
    assert mine.base != "residual" or not start.any()  # to the bit


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: method(3),
        lambda: bind("lora", Grid.full((4, 4), layer=1), 2),
        lambda: bind(Grid.full((4, 4), layer=1), method("lora"), 2),
        lambda: Spec.parse("mine", 3, "normal"),
        lambda: Spec.parse("mine", "out r, r in", 5),
    ],
    ids=["no name", "a name to bind", "swapped", "no equation", "no inits"],
)
def test_arguments_of_another_kind_are_refused(wrong):
    with pytest.raises(ArgumentError):
        wrong()


@pytest.mark.parametrize(
    ("first", "second", "turned"), [("long", "short", 0), ("short", "long", 1)]
)
def test_sides_are_named_by_length_and_a_square_has_them_in_order(first, second, turned):
    mine = Spec.parse("m", f"u: site {first} r, v: site r {second} -> {first} {second}", "normal")
    square, tall, wide = (bind(mine, Grid.full(s, layer=1), 2) for s in ((4, 4), (6, 4), (4, 6)))
    assert [b.turned for b in (square, tall, wide)] == [False, bool(turned), not turned]
    assert {b.shapes["u"][1] for b in (tall, wide)} == {4 if turned else 6}
    arrays = tall.start()
    product = arrays["u"][0] @ arrays["v"][0]
    assert close(tall.delta(arrays, 0), product.T if turned else product, 2)
