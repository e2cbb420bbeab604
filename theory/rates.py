"""What rate an adapter bears: how far its first Adam step moves the output of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tdecomp.adapters import Bound
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation
from theory.first_step import sign_mean_square, unrelated_mean_square
from theory.formulas import at

__all__ = ["alpha_for", "step_size"]


def step_size(bound: Bound, start: Mapping[str, np.ndarray], *, related: bool = False) -> float:
    """Root mean square of an entry of ``ΔW x`` after the first Adam step, per unit of rate.

    For inputs whose entries have mean square 1. A layer whose weights have entries of variance
    ``1 / in`` gives outputs of that size, so the rate times this number is the share of the output
    that one step changes. Of the start only the mean square of every factor's entries is used.

    Parameters
    ----------
    bound
        An adapter of one term, with one factor that starts as zeros.
    start
        The factors at the start.
    related
        For the token that was trained on alone, in place of one unrelated to the step; only where
        the zero factor holds every rank.

    Notes
    -----
    LoTR at its paper's start (left and right of variance 1, scale 1 / r) moves the output by
    ``√in`` per unit of rate, whatever its rank: 20 on MiniLM, where LoRA of rank r moves it by
    ``√(r / 3)`` and TensLoRA by less than 1. So a rate of 0.03 changes more than half of every
    output at the first step. The power of r in LoTR's scale is the right one; what is missing is
    ``1 / √in``, which other starts have in their down factor. With ``right ~ N(0, 1 / in)``, or
    ``alpha = 1 / √in``, LoTR moves the output by 1.

    Examples
    --------
    >>> from tdecomp.adapters import Grid, bind, method
    >>> minilm = Grid.full((384, 384), layer=6, proj=3)
    >>> for name, rank in {"lora": 1, "lotr": 14, "tenslora_qkv_depth": MINILM_RANKS}.items():
    ...     adapter = bind(method(name), minilm, rank)
    ...     print(name, round(step_size(adapter, adapter.start()), 1))
    lora 0.6
    lotr 19.6
    tenslora_qkv_depth 0.7
    """
    equation, zero = _network(bound, start)
    square = sign_mean_square(equation, zero) if related else unrelated_mean_square(equation)
    variances = [
        np.mean(np.square(start[o.factor]))
        for k, o in enumerate(bound.spec.terms[0].operands)
        if k != zero
    ]
    per_entry = float(at(square, bound.sizes)) / bound.matrix_shape[0]
    return abs(bound.scale()) * math.sqrt(per_entry * math.prod(variances))


def alpha_for(bound: Bound, start: Mapping[str, np.ndarray], size: float = 1.0) -> float:
    """The alpha at which the first step moves the output by `size` per unit of rate.

    >>> from tdecomp.adapters import Grid, bind, method
    >>> lotr = bind(method("lotr"), Grid.full((400, 400), layer=3), 8)
    >>> round(1 / alpha_for(lotr, lotr.start()))
    20
    """
    return float(bound.numbers["alpha"]) * size / step_size(bound, start)


MINILM_RANKS = {"r": 14, "s": 14, "u": 3, "v": 6}
"""Ranks at which TensLoRA has as many numbers as LoRA of rank 1 on MiniLM's query, key, value."""


def _network(bound: Bound, start: Mapping[str, np.ndarray]) -> tuple[Equation, int]:
    """The equation of one weight, and the place of the factor that starts as zeros."""
    first, *more = bound.spec.terms
    zeros = [k for k, o in enumerate(first.operands) if not start[o.factor].any()]
    if more or len(zeros) != 1:
        raise ArgumentError(
            f"{bound.spec.name!r} has {1 + len(more)} terms and {len(zeros)} factors of zeros in"
            " the first: the size of a first step is known for one of each"
        )
    return Equation(tuple(map(bound.letters, first.operands)), bound.spec.output), zeros[0]
