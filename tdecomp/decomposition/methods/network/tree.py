"""Closed form for networks that are trees: one truncated SVD per bond."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdecomp._xp import Array, double, namespace
from tdecomp.decomposition.methods.network.problem import Problem, Term
from tdecomp.linalg import truncated_svd

__all__ = ["Tree", "is_tree", "padded", "tree_of", "tree_of_svds"]


@dataclass(frozen=True)
class Tree:
    """Bonds of a tree network: names between two terms, none for a bond of size 1.

    Attributes
    ----------
    batch
        Output modes in all terms: an independent problem for each of their indices.
    bonds
        ``{(k, l): names}`` with ``k < l``.
    """

    batch: Term
    bonds: Mapping[tuple[int, int], Term]


def is_tree(problem: Problem) -> bool:
    """Whether `tree_of_svds` takes this network."""
    return _tree(problem) is not None


def tree_of(
    terms: Sequence[Term],
    output: Term,
    addends: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
) -> Tree | None:
    """The bonds of a network that is a tree; None for any other, a sum, a frozen or tied one."""
    if len(addends) != 1 or len(groups) != len(terms):
        return None
    having = [set(term) for term in terms]
    batch = tuple(n for n in output if all(n in term for term in having))
    if len(having) == 1:
        batch = ()
    bonds: dict[tuple[int, int], list[str]] = {}
    for name in dict.fromkeys(n for term in terms for n in term):
        where = [k for k, term in enumerate(having) if name in term]
        if name in batch:
            continue
        if len(where) != (1 if name in output else 2):
            return None
        if name not in output:
            bonds.setdefault((where[0], where[1]), []).append(name)
    pieces = [{k} for k in range(len(having))]
    for bond in bonds:
        a, b = (next(p for p in pieces if k in p) for k in bond)
        if a is b:
            return None  # a cycle
        pieces = [p for p in pieces if p is not a and p is not b] + [a | b]
    heads = sorted(min(piece) for piece in pieces)
    joints = {(heads[0], other): () for other in heads[1:]}
    return Tree(batch, {k: tuple(v) for k, v in bonds.items()} | joints)


def tree_of_svds(problem: Problem) -> list[Array]:
    """Arrays of a tree network, by peeling its leaves.

    The tensor is unfolded with the modes of a leaf as rows; the leading left singular vectors are
    the leaf, the rest replaces the tensor, and so on. Terms in several pieces are joined by bonds
    of size 1: a Kronecker product is then a rank-1 matrix, as Van Loan and Pitsianis found. Exact
    if the tensor is such a network; optimal for two terms; otherwise ``‖X − X̂‖`` is at most
    ``√bonds`` times the least possible, as for [oseledets2011].
    """
    tree = _tree(problem)
    assert tree is not None
    xp = namespace(problem.x)
    names = [n for n in problem.output if n not in tree.batch]
    order = [problem.output.index(n) for n in (*tree.batch, *names)]
    moved = xp.permute_dims(problem.x, tuple(order))
    shape = tuple(moved.shape[len(tree.batch) :])
    slabs = xp.reshape(moved, (-1, *shape))
    peeled = [_peeled(problem, tree, slabs[i, ...], names) for i in range(slabs.shape[0])]
    return [_gathered(problem, tree, [p[k] for p in peeled], k) for k in range(len(problem.terms))]


def _tree(problem: Problem) -> Tree | None:
    return tree_of(problem.terms, problem.output, problem.addends, problem.groups)


def _peeled(problem: Problem, tree: Tree, x: Array, names: Sequence[str]) -> dict[int, tuple]:
    """``{k: (names, array)}`` of one slab; a bond is one axis, named by its pair of terms."""
    xp = namespace(x)
    bonds, names = dict(tree.bonds), list(names)
    own: dict[int, list] = {
        k: [n for n in term if n in names] for k, term in enumerate(problem.terms)
    }
    found: dict[int, tuple] = {}
    while bonds:
        leaf, bond = _leaf(bonds, own, names, x.shape)
        rows = own[leaf]
        rest = [n for n in names if n not in rows]
        matrix = xp.permute_dims(x, tuple(names.index(n) for n in (*rows, *rest)))
        sizes = dict(zip(names, x.shape, strict=True))
        matrix = xp.reshape(matrix, (math.prod(sizes[n] for n in rows), -1))
        rank = math.prod(problem.sizes[n] for n in bonds.pop(bond))
        u, s, vh = truncated_svd(matrix, min(rank, *matrix.shape))
        u, rest_of_x = padded(u, rank, 1), padded(s[:, None] * vh, rank, 0)
        found[leaf] = ([*rows, bond], xp.reshape(u, (*(sizes[n] for n in rows), rank)))
        x = xp.reshape(rest_of_x, (rank, *(sizes[n] for n in rest)))
        names = [bond, *rest]
        other = bond[0] if bond[1] == leaf else bond[1]
        own[other] = [bond, *own[other]]
    (root,) = set(own) - set(found)
    return found | {root: (names, x)}


def _leaf(bonds: Mapping, own: Mapping, names: Sequence, shape: Sequence[int]):
    """The leaf with the fewest rows of those that have one bond left, and that bond."""
    sizes = dict(zip(names, shape, strict=True))
    ends = [k for pair in bonds for k in pair]
    leaves = [k for k in dict.fromkeys(ends) if ends.count(k) == 1]
    leaf = min(leaves, key=lambda k: math.prod(sizes[n] for n in own[k]))
    return leaf, next(pair for pair in bonds if leaf in pair)


def padded(x: Array, size: int, axis: int) -> Array:
    """Zeros appended along an axis: a rank above that of the unfolding."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    xp = namespace(x)
    shape = tuple(missing if k == axis else n for k, n in enumerate(x.shape))
    return xp.concat([x, xp.zeros(shape, dtype=x.dtype, device=x.device)], axis=axis)


def _gathered(problem: Problem, tree: Tree, slabs: Sequence[tuple], k: int) -> Array:
    """The factor of one term from those of all slabs: bonds opened, axes in the term's order."""
    term = problem.terms[k]
    names = [
        n for axis in slabs[0][0] for n in ((axis,) if isinstance(axis, str) else tree.bonds[axis])
    ]
    xp = namespace(slabs[0][1])
    stacked = xp.stack([double(a) for _, a in slabs], axis=0)
    array = xp.reshape(stacked, tuple(problem.sizes[n] for n in (*tree.batch, *names)))
    found = [*tree.batch, *names]
    return xp.permute_dims(array, tuple(found.index(n) for n in term))
