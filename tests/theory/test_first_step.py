"""The first step from a zero start is as large as the formulas say, whatever the ranks."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from tdecomp._plan import contract
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation
from theory.first_step import (
    lora_sign_mean_square,
    ranks_of,
    sgd_mean_square,
    sgd_response,
    sgd_scale,
    sign_mean_square,
    sign_response,
    sign_scale,
)
from theory.formulas import at, size_of
from theory.gradients import gradients

LORA = "out r, r in -> out in"
LOTR = "out r, r s, s in -> out in"
TUCKER = "out r, in s, t, r s t -> out in"  # of one weight: a vector stands for its layer
CP = "out r, in r, r -> out in"
TT = "i1 a, a i2 b, b o1 c, c o2 -> (o1 o2) (i1 i2)"
METATT = "in a, a b, b c, c out -> out in"
NETWORKS = {"lora": LORA, "lotr": LOTR, "tucker": TUCKER, "cp": CP, "tt": TT, "metatt": METATT}
PLACES = [
    pytest.param(equation, zero, id=f"{name}_{zero}")
    for name, equation in NETWORKS.items()
    for zero in range(len(Equation.parse(equation).terms))
]
STARS = [(LORA, 0), (LORA, 1), (LOTR, 1), (TUCKER, 3), (CP, 0), (CP, 1), (CP, 2)]
SIZES = {"out": 7, "in": 5, "r": 4, "s": 3, "t": 2, "a": 3, "b": 4, "c": 2}
SIZES |= {"i1": 2, "i2": 3, "o1": 3, "o2": 2}
WIDE = {"out": 60, "in": 50, "r": 24, "s": 20, "t": 16, "a": 24, "b": 20, "c": 16}
WIDE |= {"i1": 8, "i2": 6, "o1": 8, "o2": 7}


def number(formula, sizes):
    return float(at(formula, sizes))


def first_steps(text, zero, sizes, direction, n):
    """``‖ΔW x‖²`` and the response after steps of rate 1, from n normal factors, x and δ."""
    rng = np.random.default_rng(0)
    alone = Equation.parse(text)
    equation = Equation(tuple(("sample", *term) for term in alone.terms), ("sample", *alone.output))
    arrays = [rng.standard_normal((n, *(sizes[k] for k in term))) for term in alone.terms]
    arrays[zero] *= 0
    rows, columns = alone.shape(sizes)
    delta, x = rng.standard_normal((n, rows)), rng.standard_normal((n, columns))
    g = gradients(equation, arrays, delta[:, :, None] * x[:, None, :])
    assert all(not part.any() for k, part in enumerate(g) if k != zero)  # only Z moves
    arrays[zero] = -direction(g[zero])
    moved = np.einsum("noi,ni->no", contract(equation, arrays), x)
    return np.stack([(moved**2).sum(axis=1), -(delta * moved).sum(axis=1)], axis=1)


def means(*args):
    """Means of both over the samples, and their standard errors."""
    found = first_steps(*args)
    return found.mean(axis=0), found.std(axis=0) / len(found) ** 0.5


def plain(g):
    return g


@pytest.mark.parametrize(("text", "zero"), PLACES)
def test_sgd_moves_the_output_as_far_as_wick_says(text, zero):
    found, error = means(text, zero, SIZES, plain, 3000)
    said = np.array([number(f(text, zero), SIZES) for f in (sgd_mean_square, sgd_response)])
    assert np.all(np.abs(found - said) < 5 * error)


@pytest.mark.parametrize(("text", "zero"), STARS)
def test_sign_steps_of_stars_are_exact(text, zero):
    found, error = means(text, zero, SIZES, np.sign, 3000)
    said = number(sign_mean_square(text, zero), SIZES)
    assert abs(found[0] - said) < 5 * error[0]


@pytest.mark.parametrize(("text", "zero"), PLACES)
def test_sign_response_of_wide_networks(text, zero):
    found, error = means(text, zero, WIDE, np.sign, 60)
    said = number(sign_response(text, zero), WIDE)
    assert abs(found[1] - said) < 5 * error[1] + 0.08 * said


@pytest.mark.parametrize(("text", "zero"), PLACES)
def test_the_scales_leave_no_rank_in_the_response(text, zero):
    ranks = {size_of(n) for n in ranks_of(text)}
    assert ranks
    for response, scale, power in (
        (sgd_response, sgd_scale, 2),
        (sign_response, sign_scale, 1),
    ):
        left = sympy.simplify(response(text, zero) * scale(text, zero) ** power)
        assert not left.free_symbols & ranks


@pytest.mark.parametrize(("text", "zero"), PLACES)
@pytest.mark.parametrize(
    ("direction", "scale", "power", "wide"),
    [(plain, sgd_scale, 2, 0), (np.sign, sign_scale, 1, 0.1)],
    ids=["sgd", "sign"],
)
def test_scaled_steps_are_as_large_at_every_rank(text, zero, direction, scale, power, wide):
    """Simulated at ranks of 6 and of 24, all at once; sign steps are exact for wide ranks."""
    found, errors = [], []
    for rank in (6, 24):
        sizes = WIDE | dict.fromkeys(ranks_of(text), rank)
        mean, error = means(text, zero, sizes, direction, 100)
        factor = number(scale(text, zero), sizes) ** power
        found.append(mean[1] * factor)
        errors.append(error[1] * factor)
    assert abs(found[0] - found[1]) < 5 * np.hypot(*errors) + wide * found[1]


def test_sgd_response_is_the_product_of_all_ranks_whatever_is_zero():
    for text in NETWORKS.values():
        equation = Equation.parse(text)
        product = sympy.prod(map(size_of, equation.letters))
        assert all(sgd_response(text, k) == product for k in range(len(equation.terms)))


def test_a_batch_of_tokens_makes_adam_rank_stable():
    """Exact mean against simulation, from one token to more than there are ranks."""
    rng = np.random.default_rng(0)
    sizes, n = {"out": 5, "in": 32, "r": 6}, 2000
    basis = np.linalg.qr(rng.standard_normal((32, 32)))[0] * 32**0.5
    for tokens in (1, 4, 30):
        a = rng.standard_normal((n, sizes["r"], sizes["in"]))
        x = basis[:, :tokens]
        delta = rng.standard_normal((n, sizes["out"], tokens))
        p = a @ x
        step = np.sign(delta @ p.swapaxes(1, 2))
        moved = (step @ p[:, :, :1]) ** 2
        square = moved.sum(axis=(1, 2))
        said = number(lora_sign_mean_square(tokens), sizes)
        assert abs(square.mean() - said) < 5 * square.std() / n**0.5
    one = lora_sign_mean_square(1) - sign_mean_square(LORA, 0)
    assert sympy.expand(one) == 0


def test_sides_in_pieces_have_no_exact_size():
    with pytest.raises(ArgumentError, match="whole side"):
        sign_mean_square("hd r, head r, in r -> (head hd) in", 2)
    with pytest.raises(ArgumentError, match="neither the zero"):
        sign_mean_square(LOTR, 0)
