"""Factors of an adapter that give what a decomposed tensor gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tdecomp.adapters import Bound, Spec
from tdecomp.formats import Format, LowRank
from tdecomp.starts.alike import AlikeRow, alike, padded
from tdecomp.starts.any_row import times
from tdecomp.starts.fitting import FittedRow, fit_row, is_pair
from tdecomp.statistics import Gradient

__all__ = ["row_of", "rank_for"]


def rank_for(spec: Spec, tensor: Format) -> dict[str, int] | None:
    """Sizes of the ranks at which an adapter is a tensor exactly; None where that is not clear.

    Those of the tensor where its equation is the adapter's; the widest site's where every weight
    has two factors of its own.
    """
    if (found := alike(spec, tensor)) is not None:
        return dict(found.ranks)
    if not is_pair(spec):
        return None
    (rank,) = {n for o in spec.terms[0].operands for n in o.letters} - {"site", "out", "in"}
    return {rank: max(max(_width(tensor, k) for k in range(tensor.n_sites)), 1)}


def row_of(
    bound: Bound,
    tensor: Format,
    order: Sequence[int],
    *,
    own: Mapping[str, np.ndarray],
    settled: Mapping[str, np.ndarray],
) -> FittedRow:
    """Factors whose ΔW is the tensor: exactly if the adapter can, else nearest, with the error.

    Parameters
    ----------
    bound
        The adapter on the matrices of the tensor.
    order
        Position in the tensor of every weight of the adapter's grid.
    own
        The adapter's own start; of it are the ranks that the tensor does not need, beside a zero.
    settled
        Factors that other groups have decided.

    Raises
    ------
    ArgumentError
        The adapter is not one product of factors.
    """
    same = None if settled else alike(bound.spec, tensor)
    if same is not None and _fits(bound, same, order):
        return FittedRow(factors=times(padded(bound, same.arrays, own), 1 / bound.scale()), error=0)
    pairs = [tensor.pair(k) for k in order]
    matrices = [
        Gradient(batches=1, left=np.asarray(left, float), right=np.asarray(right, float))
        for left, right in pairs
    ]
    fit = fit_row(bound, matrices, frozen=settled)
    factors: Mapping[str, np.ndarray] = fit.factors
    if is_pair(bound.spec) and not settled:
        factors = _alive(bound, factors, [m.rank for m in matrices], own)
    return FittedRow(factors=times(factors, 1 / bound.scale(), settled), error=fit.error)


def _width(tensor: Format, site: int) -> int:
    """Columns of a matrix as the tensor has it."""
    return tensor.ranks[site] if isinstance(tensor, LowRank) else tensor.pair(site)[0].shape[1]


def _fits(bound: Bound, same: AlikeRow, order: Sequence[int]) -> bool:
    """Whether the ranks suffice, and the weights stand as the matrices of the tensor do."""
    if any(bound.sizes[n] < k for n, k in same.ranks.items()):
        return False
    for o in bound.spec.terms[0].operands:
        own = zip(o.letters, same.arrays[o.factor].shape, bound.shapes[o.factor], strict=True)
        if any(k != size for n, k, size in own if n not in same.ranks):
            return False
    return list(order) == list(range(bound.grid.n_sites))


def _alive(
    bound: Bound,
    factors: Mapping[str, np.ndarray],
    widths: Sequence[int],
    own: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Ranks beyond those of a weight as the adapter starts them: zero in one factor only."""
    found = {name: array.copy() for name, array in factors.items()}
    operands = bound.spec.terms[0].operands
    zero = next((o for o in operands if not own[o.factor].any()), operands[0])
    for o in operands:
        if o != zero:
            rank = next(k for k, n in enumerate(o.letters) if n not in ("site", "out", "in"))
            for site, width in enumerate(widths):
                beyond: list[int | slice] = [site, slice(None), slice(None)]
                beyond[rank] = slice(width, None)
                found[o.factor][tuple(beyond)] = own[o.factor][tuple(beyond)]
    return found
