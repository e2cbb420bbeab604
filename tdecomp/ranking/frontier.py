"""Choosing ranks: by rank, by relative error, or by a budget of stored numbers.

A unit that can be truncated (a matrix, or a whole Tucker tensor) states its *frontier*: the pairs
(stored numbers, squared error) worth having. One allocation over all frontiers of a model then
meets a total error at the least storage, or a total storage at the least error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from tdecomp.ranking.rounding import coarse, without_rounding

__all__ = [
    "Frontier",
    "all_or_nothing",
    "box_frontier",
    "spectrum_frontier",
    "spectrum_frontiers",
]

_TABLE = 10_000_000  # rank tuples enumerated at most


@dataclass(frozen=True)
class Frontier:
    """What one unit can trade: more stored numbers for less squared error.

    Attributes
    ----------
    params : ``(k,)``
        Stored numbers, strictly increasing, starting with 0 (the zero tensor), or with what a unit
        stores that cannot be left out.
    lost : ``(k,)``
        Squared error at each, strictly decreasing.
    ranks : ``(k, number of ranks)``
        The ranks that give it.
    """

    params: np.ndarray
    lost: np.ndarray
    ranks: np.ndarray

    def plus(self, outside: float) -> Frontier:
        """With a squared error that is lost at any rank."""
        return replace(self, lost=self.lost + outside)

    def up_to(self, rank: int) -> Frontier:
        """Without ranks above a limit."""
        keep = np.all(self.ranks <= rank, axis=1)
        return Frontier(self.params[keep], self.lost[keep], self.ranks[keep])

    def cheapest(self, lost: float) -> int:
        """Position of the least storage whose squared error is at most `lost`."""
        return int(np.searchsorted(-self.lost, -lost, side="left"))

    def best(self, params: int) -> int:
        """Position of the least error that stores at most `params`."""
        return int(np.searchsorted(self.params, params, side="right")) - 1


def all_or_nothing(energy: float, ranks: int) -> Frontier:
    """Frontier of a unit that nothing but its squared norm is known of: rank 0, or some rank."""
    if energy == 0:
        return Frontier(np.array([0]), np.array([0.0]), np.zeros((1, ranks), dtype=np.int64))
    return Frontier(np.array([0, 1]), np.array([energy, 0.0]), np.repeat([[0], [1]], ranks, axis=1))


def spectrum_frontier(s: np.ndarray, cost: int, floor: float) -> Frontier:
    """Frontier of one matrix: each singular value costs `cost` numbers and returns its square.

    Those that are only rounding are worth nothing; `floor` is that of the precision.
    """
    return spectrum_frontiers(np.asarray(s)[None, :], cost, floor)[0]


def spectrum_frontiers(s: np.ndarray, cost: int, floor: float) -> list[Frontier]:
    """The same for many matrices of one shape.

    Parameters
    ----------
    s
        Their singular values, largest first: ``(matrices, k)``.
    """
    energy = without_rounding(np.asarray(s, dtype=np.float64) ** 2, floor)
    lost = np.flip(np.cumsum(np.flip(energy, axis=1), axis=1), axis=1)
    lost = np.pad(lost, ((0, 0), (0, 1)))  # (matrices, k + 1)
    keys = coarse(lost)
    worth = np.pad(keys[:, 1:] < keys[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    worth[:, 1:] &= energy > 0
    rank = np.nonzero(worth)[1]
    ends = np.cumsum(np.count_nonzero(worth, axis=1))[:-1]
    columns = rank * cost, lost[worth], rank[:, None]
    each = zip(*(np.split(column, ends) for column in columns), strict=True)
    return [Frontier(*frontier) for frontier in each]


def box_frontier(energy: np.ndarray, sizes: Sequence[int], fixed: int, floor: float) -> Frontier:
    """Frontier of a Tucker tensor from the squared entries of its full HOSVD core.

    Truncating the core to a box of ranks loses exactly the squares outside it, because the bases
    are orthonormal. All boxes are tried when there are at most 10⁷; beyond that those near a greedy
    path, which drops, one index at a time, what loses the least energy per number saved.

    Parameters
    ----------
    energy
        Squared core, summed over the modes that are not compressed: ``(k₁, ..., k_d)``.
    sizes
        Size of each compressed mode (rows of its factor).
    fixed
        Product of the sizes of the modes that are not compressed.
    floor
        Of the precision: a smaller relative error counts as none.
    """
    boxes = _all_boxes if energy.size <= _TABLE else _boxes_near_greedy
    ranks, lost = boxes(np.asarray(energy, dtype=np.float64), np.asarray(sizes), fixed)
    params = fixed * np.prod(ranks, axis=1, dtype=np.int64) + ranks @ np.asarray(sizes)
    total = float(energy.sum())
    lost = np.where(lost > floor**2 * total, lost, 0.0)
    zero = np.zeros((1, energy.ndim), dtype=ranks.dtype)
    return _pareto(np.append(0, params), np.append(total, lost), np.concatenate([zero, ranks]))


def _all_boxes(energy: np.ndarray, sizes: np.ndarray, fixed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every box with the energy outside it, summed as tails and never as a difference.

    Mode by mode from the last: what lies beyond rank r in this mode, plus what was already lost in
    the later modes at the indices up to r.
    """
    del sizes, fixed
    d = energy.ndim
    outside = np.zeros_like(energy)
    for k in reversed(range(d)):
        slabs = energy.sum(axis=tuple(range(k + 1, d)))
        beyond = np.flip(np.cumsum(np.flip(slabs, k), axis=k), k) - slabs
        within = np.cumsum(outside, axis=k) if k < d - 1 else outside
        outside = beyond.reshape(beyond.shape + (1,) * (d - 1 - k)) + within
    ranks = np.indices(energy.shape, dtype=np.int32).reshape(d, -1).T + 1
    return ranks, outside.reshape(-1)


def _greedy_boxes(
    energy: np.ndarray, sizes: np.ndarray, fixed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A path of boxes from the full one to rank 1, dropping the least energy per number saved."""
    d = energy.ndim
    ranks = np.array(energy.shape)
    slabs = [energy.sum(axis=tuple(j for j in range(d) if j != k)) for k in range(d)]
    path, lost = [ranks.copy()], [0.0]
    while (ranks > 1).any():
        core = fixed * math.prod(ranks)
        saved = core / ranks + sizes
        price = [slabs[k][ranks[k] - 1] / saved[k] if ranks[k] > 1 else math.inf for k in range(d)]
        k = int(np.argmin(price))
        ranks[k] -= 1
        box = tuple(slice(r) if j != k else r for j, r in enumerate(ranks))
        slab = energy[box]  # what is dropped, over the other modes
        others = [j for j in range(d) if j != k]
        for axis, j in enumerate(others):
            slabs[j][: ranks[j]] -= slab.sum(axis=tuple(a for a in range(d - 1) if a != axis))
        path.append(ranks.copy())
        lost.append(lost[-1] + float(slab.sum()))
    return np.array(path), np.array(lost)


def _boxes_near_greedy(
    energy: np.ndarray, sizes: np.ndarray, fixed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The greedy path, and every box that differs from one of its boxes in up to three modes.

    By up to three indices in each of two modes, or by one in each of three. The energy outside a
    neighbour is read off a table of sums, so it is exact to 1e-16 of the whole, not of itself.
    """
    path, lost = _greedy_boxes(energy, sizes, fixed)
    inside = energy
    for k in range(energy.ndim):
        inside = np.cumsum(inside, axis=k)
    total = inside.reshape(-1)[-1]
    moves = np.array(list(_moves(energy.ndim)))
    near = (path[:, None, :] + moves[None, :, :]).reshape(-1, energy.ndim)
    near = near[((near >= 1) & (near <= energy.shape)).all(axis=1)]
    outside = np.maximum(total - inside[tuple((near - 1).T)], 1e-16 * total)
    return np.concatenate([path, near]), np.append(lost, outside)


def _moves(d: int) -> Iterator[np.ndarray]:
    """Changes of a box in one, two or three of its `d` ranks."""
    for count, steps in ((1, 3), (2, 3), (3, 1)):
        each = [s for s in range(-steps, steps + 1) if s]
        for modes in combinations(range(d), count):
            for change in product(each, repeat=count):
                move = np.zeros(d, dtype=np.int64)
                move[list(modes)] = change
                yield move


def _pareto(params: np.ndarray, lost: np.ndarray, ranks: np.ndarray) -> Frontier:
    order = np.argsort(params, kind="stable")  # of equals the first
    params, lost = params[order], lost[order]
    keys = coarse(lost)
    best = np.minimum.accumulate(keys)
    keep = np.flatnonzero(np.append(True, keys[1:] < best[:-1]))
    keep = keep[np.append(params[keep][1:] > params[keep][:-1], True)]  # the best of equal params
    return Frontier(params[keep].astype(np.int64), lost[keep], ranks[order[keep]])
