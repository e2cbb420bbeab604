"""What the size of a letter costs and promises, before anything is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array, namespace, sum_of_squares, to_numpy
from tdecomp.decomposition.methods.cp.frontier import listed
from tdecomp.decomposition.methods.network.parse import Ansatz
from tdecomp.decomposition.methods.network.skeleton import Skeleton
from tdecomp.decomposition.methods.network.tree import Tree, tree_of
from tdecomp.linalg import singular_values
from tdecomp.modes import flatten
from tdecomp.progress import Progress
from tdecomp.ranking.frontier import Frontier

__all__ = ["network_frontier"]

_DOUBT = 0.01  # share of the rest that the cuts do not show
_LITTLE = 1e-6  # share of the energy that the largest size wins at least
_SLICES = 4096  # matrices of one cut up to which their singular values are computed

Term = tuple[str, ...]


@dataclass(frozen=True)
class _Cut:
    """Two sides of a network: the data between them are matrices of a bounded rank.

    Attributes
    ----------
    rows, columns
        Modes of the terms on one side only; a matrix for each index of all other modes.
    letters
        Rank letters in terms of both sides, per addend.
    """

    rows: Term
    columns: Term
    letters: tuple[Term, ...]

    def rank(self, sizes: Mapping[str, int]) -> int:
        """Rank that no matrix exceeds."""
        return sum(math.prod(sizes[n] for n in names) for names in self.letters)


def network_frontier(skeleton: Skeleton, letter: str, array: Array, progress: Progress) -> Frontier:
    """What sizes of `letter` store, and the squared error that they promise.

    Every cut of the network bounds the rank of an unfolding, and the tail of its singular values
    is lost at least. For a tree the sum over its bonds is what the closed form loses at most, and
    exact for one bond; for other networks the largest tail counts, with some doubt. It starts at
    size 0 where that stores nothing, else at size 1, which is then counted as if it won nothing.
    """
    energy, least = sum_of_squares(array), int(skeleton.nothing is None)
    sizes = listed(skeleton.reach(letter))[least:]
    params = np.array([skeleton.count({letter: n}) for n in sizes.tolist()])
    if least == 0:
        params[0] = 0
    if energy == 0:
        return Frontier(params[:1], np.array([0.0]), sizes[:1, None])
    share = sizes / sizes[-1]
    tails = _tails_at(skeleton, letter, array, sizes, progress)
    if not tails:
        lost = energy * (1 - share)
    elif _tree(skeleton) is not None:
        lost = np.minimum(sum(tails), energy * (1 - _LITTLE * share))
    else:
        bound = np.max(tails, axis=0)
        lost = bound + _DOUBT * (energy - bound) * (1 - share)
    lost[0], falling = energy, np.append(True, np.diff(np.minimum.accumulate(lost)) < 0)
    return Frontier(params[falling], lost[falling], sizes[falling][:, None])


def _tails_at(
    skeleton: Skeleton, letter: str, array: Array, sizes: np.ndarray, progress: Progress
) -> list[np.ndarray]:
    """What every cut loses, for each size of the letter."""
    names = flatten(skeleton.ansatz.output)
    x = namespace(array).reshape(array, tuple(skeleton.sizes[n] for n in names))
    known = [{**skeleton.sizes, letter: n} for n in sizes.tolist()]
    found, cuts = [], _cuts(skeleton)
    for i, cut in enumerate(cuts):
        ranks = np.array([cut.rank(sized) for sized in known])
        tails = _tails(x, names, cut)
        found.append(tails[np.minimum(ranks, len(tails) - 1)])
        progress((i + 1) / len(cuts))
    return found


def _tails(x: Array, names: Term, cut: _Cut) -> np.ndarray:
    """Squared error of the matrices of a cut at every rank from 0 on; zeros if they are many."""
    others = [n for n in names if n not in (*cut.rows, *cut.columns)]
    size = dict(zip(names, x.shape, strict=True))
    n_slices, n_rows = (math.prod(size[n] for n in part) for part in (others, cut.rows))
    if n_slices > _SLICES:
        return np.zeros(1)
    xp = namespace(x)
    moved = xp.permute_dims(x, tuple(names.index(n) for n in (*others, *cut.rows, *cut.columns)))
    matrices = xp.reshape(moved, (n_slices, n_rows, -1))  # (others, rows, columns)
    squares = np.zeros(min(matrices.shape[1:]))
    for i in range(n_slices):
        squares += to_numpy(singular_values(matrices[i, ...])).astype(np.float64) ** 2
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


def _tree(skeleton: Skeleton) -> Tree | None:
    ansatz = skeleton.ansatz
    return tree_of(ansatz.terms, flatten(ansatz.output), ansatz.blocks, skeleton.groups)


def _cuts(skeleton: Skeleton) -> list[_Cut]:
    """For every bond of a tree its two sides; else for every mode the terms that have it."""
    ansatz, tree = skeleton.ansatz, _tree(skeleton)
    if tree is not None:
        return [_cut(ansatz, _side(tree, bond)) for bond in tree.bonds]
    found: dict[tuple[frozenset[Term], tuple[Term, ...]], _Cut] = {}
    for mode in flatten(ansatz.output):
        cut = _cut(ansatz, {k for k, term in enumerate(ansatz.terms) if mode in term})
        if cut.rows and cut.columns:
            found.setdefault((frozenset({cut.rows, cut.columns}), cut.letters), cut)
    return list(found.values())


def _side(tree: Tree, bond: tuple[int, int]) -> set[int]:
    """Terms on the first side of a bond."""
    side, rest = {bond[0]}, [pair for pair in tree.bonds if pair != bond]
    while reached := [pair for pair in rest if len(side.intersection(pair)) == 1]:
        side.update(*reached)
    return side


def _cut(ansatz: Ansatz, side: set[int]) -> _Cut:
    """Some terms of every addend against the others."""
    modes = flatten(ansatz.output)
    names = []
    for block in ansatz.blocks:
        here = {n for k in block if k in side for n in ansatz.terms[k]}
        there = {n for k in block if k not in side for n in ansatz.terms[k]}
        names.append((here, there))
    rows = [n for n in modes if all(n in here - there for here, there in names)]
    columns = [n for n in modes if all(n in there - here for here, there in names)]
    letters = [[n for n in ansatz.letters if n in here & there] for here, there in names]
    return _Cut(tuple(rows), tuple(columns), tuple(map(tuple, letters)))
