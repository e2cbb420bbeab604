"""Fits in the metric of the inputs: ``‖(G - Ĝ) A^½‖`` is least, A the second moment of the inputs.

What the change of a weight does to its outputs has that norm, over the tokens that were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tdecomp.adapters import Bound, Operand
from tdecomp.errors import ArgumentError
from tdecomp.starts.fitting import FittedRow, fit_row
from tdecomp.statistics import Gradient

__all__ = ["damped", "fit_in_metric"]

_DAMPING = 0.01
"""Of a second moment before it is inverted, in multiples of its mean diagonal."""


def damped(moment: np.ndarray) -> np.ndarray:
    """``A + 0.01 · mean(diag A) · I``, float64: a second moment that can be inverted."""
    a = np.asarray(moment, dtype=np.float64)
    return a + _DAMPING * float(np.mean(np.diagonal(a))) * np.eye(len(a))


def fit_in_metric(
    bound: Bound,
    matrices: Sequence[Gradient],
    moments: Sequence[np.ndarray],
    *,
    frozen: Mapping[str, np.ndarray] | None = None,
) -> FittedRow:
    """Fit the adapter to one matrix for every weight, distances weighted by the inputs.

    Parameters
    ----------
    bound, matrices, frozen
        As in `fit_row`.
    moments
        Second moment ``(in, in)`` of the inputs of every weight; they are damped. Weights that
        share the factor of their inputs are all measured with the mean of theirs.

    Returns
    -------
    FittedRow
        Its error is that of the weighted distance.

    Raises
    ------
    ArgumentError
        The inputs are split, or their factor belongs to some of the weights.
    """
    operand = _of_inputs(bound)
    own = "site" in operand.letters
    spread = [damped(moment) for moment in moments]
    if not own:
        spread = [np.mean(spread, axis=0)] * len(spread)
    roots = _each(_root, spread)
    seen = [replace(m, right=m.right @ root) for m, root in zip(matrices, roots, strict=True)]
    held = dict(frozen or {})
    if operand.factor in held:
        held[operand.factor] = _times(held[operand.factor], operand, bound, roots)
    fit = fit_row(bound, seen, frozen=held)
    inverses = _each(np.linalg.inv, roots)
    back = _times(fit.factors[operand.factor], operand, bound, inverses)
    factors = {**fit.factors, operand.factor: back, **(frozen or {})}
    return FittedRow(factors=factors, error=fit.error)


def _of_inputs(bound: Bound) -> Operand:
    """The operand that has the whole axis of the inputs."""
    letters = bound.in_letters
    holders = [o for o in bound.spec.terms[0].operands if set(o.letters) & {*letters}]
    sites = {*bound.grid.rows} - {"site"}
    width = bound.grid.shape[1]
    if (
        len(letters) != 1
        or len(holders) != 1
        or {*holders[0].letters} & sites
        or bound.shapes[holders[0].factor][holders[0].letters.index(letters[0])] != width
    ):
        raise ArgumentError(
            f"{bound.spec.name!r} has no one factor for whole inputs of {bound.grid.name}: metric="
            " is for lora, lotr and their kin; leave it out"
        )
    return holders[0]


def _times(
    array: np.ndarray, operand: Operand, bound: Bound, each: Sequence[np.ndarray]
) -> np.ndarray:
    """A factor times a matrix along the inputs; one for every weight that has its own part."""
    axis = operand.letters.index(bound.in_letters[0])
    if "site" not in operand.letters:
        return _along(array, each[0], axis)
    first = np.moveaxis(array, operand.letters.index("site"), 0)
    axis -= operand.letters.index("site") < axis
    found = np.stack([_along(a, m, axis) for a, m in zip(first, each, strict=True)])
    return np.moveaxis(found, 0, operand.letters.index("site"))


def _along(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.moveaxis(array, axis, -1) @ matrix, -1, axis)


def _root(a: np.ndarray) -> np.ndarray:
    """``A^½``, symmetric."""
    values, vectors = np.linalg.eigh(a)
    return (vectors * np.sqrt(values)) @ vectors.T


def _each(
    function: Callable[[np.ndarray], np.ndarray], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """A function of every array, once for one that is there several times."""
    known: dict[int, np.ndarray] = {}
    for array in arrays:
        if id(array) not in known:
            known[id(array)] = function(array)
    return [known[id(array)] for array in arrays]
