"""A real first step of adapters of the catalogue is as large as is said of their starts."""

from __future__ import annotations

import numpy as np
import pytest

from tdecomp._plan import contract
from tdecomp.adapters import Grid, Spec, bind, method
from tdecomp.errors import ArgumentError
from theory.gradients import spec_gradient
from theory.rates import alpha_for, step_size

SHAPE = (96, 80)
GRID = Grid.full(SHAPE, heads=4, layer=4, proj=3)
ROWS = {
    "lora": 8,
    "rslora": 8,
    "lora_fa": 8,
    "asymmetric": 8,
    "lotr": {"r": 12, "s": 10},
    "tenslora_depth": {"r": 12, "s": 10, "v": 4},
    "tenslora_qkv_depth": {"r": 10, "s": 12, "u": 3, "v": 4},
    "tenslora_att": {"r": 8, "s": 8, "t": 4},
    "tenslora_qkv_depth_cp": 24,
    "lorta": 24,
    "fact_tt": 10,
    "tt_lora": {"r1": 4, "r2": 16, "r3": 16, "r4": 16, "r5": 4},
    "melora": 4,
    "gralora": 8,
}


def moved(bound, start, rng, *, itself):
    """Mean square of the output's entries of one weight after a sign step of rate 1.

    The step is from many tokens at every weight (their gradients add up to one of full rank with
    independent entries), or from one token that is then looked at `itself`.
    """
    (zero,) = (name for name, array in start.items() if not array.any())
    (term,) = bound.spec.terms
    (operand,) = (o for o in term.operands if o.factor == zero)
    (part,) = spec_gradient(bound, zero)
    gradient = np.zeros_like(start[zero])
    for site in range(1 if itself else GRID.n_sites):
        x = rng.standard_normal(SHAPE[1])
        full = np.outer(rng.standard_normal(SHAPE[0]), x) if itself else rng.standard_normal(SHAPE)
        parts = {o.factor: start[o.factor][bound.where(o, site)] for o in term.operands}
        opened = full.reshape([bound.sizes[n] for n in part.equation.terms[-1]])
        arrays = [*(parts[n] for n in part.operands), opened]
        gradient[bound.where(operand, site)] += part.coefficient * contract(part.equation, arrays)
    seen = x[None] if itself else rng.standard_normal((50, SHAPE[1]))
    return np.mean((seen @ bound.delta({**start, zero: -np.sign(gradient)}, site).T) ** 2)


def sizes(name, *, itself):
    """Root mean squares over starts: as measured, and as said of each."""
    rng = np.random.default_rng(0)
    bound = bind(method(name), GRID, ROWS[name])
    starts = [bound.start(seed=seed) for seed in range(120 if itself else 20)]
    measured = [moved(bound, start, rng, itself=itself) for start in starts]
    said = [step_size(bound, start, related=itself) ** 2 for start in starts[:20]]
    return np.mean(measured) ** 0.5, np.mean(said) ** 0.5


@pytest.mark.parametrize("name", ROWS)
def test_other_inputs_move_as_far_as_is_said(name):
    measured, said = sizes(name, itself=False)
    assert measured == pytest.approx(said, rel=0.15)


@pytest.mark.parametrize("name", ["lora", "lotr", "tenslora_depth", "tenslora_qkv_depth_cp"])
def test_the_token_itself_moves_farther(name):
    measured, said = sizes(name, itself=True)
    assert measured == pytest.approx(said, rel=0.15)


def test_lotr_moves_by_the_root_of_in_whatever_its_rank():
    for rank in (2, 8, 40):
        lotr = bind(method("lotr"), GRID, rank)
        assert step_size(lotr, lotr.start()) == pytest.approx(SHAPE[1] ** 0.5, rel=0.1)


def test_both_ways_to_bring_lotr_to_one():
    rank = {"r": 14, "s": 14}
    lotr = bind(method("lotr"), GRID, rank)
    alpha = alpha_for(lotr, lotr.start())
    again = bind(method("lotr"), GRID, rank, alpha=alpha)
    assert step_size(again, again.start()) == pytest.approx(1)
    narrow = Spec.parse(
        "narrow",
        method("lotr").equation,
        {"left": "normal", "core": "zeros", "right": "normal(1 / sqrt(in))"},
        scale="1 / r",
    )
    here = bind(narrow, GRID, rank)
    assert step_size(here, here.start()) == pytest.approx(1, rel=0.1)


def test_what_has_no_zero_factor_is_refused():
    loose = bind(method("dcft"), GRID, 2)
    with pytest.raises(ArgumentError, match="0 factors of zeros"):
        step_size(loose, loose.start())
