"""An equation on data of one shape: every size that is known before the ranks are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.methods.network.parse import Ansatz
from tdecomp.decomposition.rank_search import largest_within
from tdecomp.errors import ArgumentError

__all__ = ["Groups", "Skeleton"]

Groups = tuple[tuple[int, ...], ...]
"""Positions of the free terms, tied ones together."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The terms with everything that does not hang on the choice of ranks; no data.

    Attributes
    ----------
    ansatz, sizes
        The equation, and the sizes that are known.
    shape
        Of the data in the coordinates that they are fitted in.
    stored
        Sizes of the modes that will be stored with another size than those have.
    frozen
        Arrays as given, by position.
    groups
        Of the free terms.
    """

    ansatz: Ansatz
    sizes: Mapping[str, int]
    shape: tuple[int, ...]
    stored: Mapping[str, int]
    frozen: Mapping[int, Array]
    groups: Groups

    @classmethod
    def of(
        cls,
        ansatz: Ansatz,
        shape: tuple[int, ...],
        stored_shape: tuple[int, ...],
        *,
        sizes: Mapping[str, int],
        frozen: Mapping[int, Array],
        tied: Sequence[Sequence[int]],
    ) -> Skeleton:
        """The skeleton, with everything that was asked for checked against the equation."""
        if len(frozen) == len(ansatz.written):
            raise ArgumentError(f"all terms of '{ansatz}' are frozen: nothing is left to fit")
        known = ansatz.sizes(shape, sizes, frozen)
        axes = zip(ansatz.output, shape, stored_shape, strict=True)
        stored = {str(axis): whole for axis, n, whole in axes if whole != n}
        free = [k for k in ansatz.written if k not in frozen]
        return cls(
            ansatz=ansatz,
            sizes=known,
            shape=shape,
            stored=stored,
            frozen=frozen,
            groups=_groups(ansatz, free, tied),
        )

    @property
    def open(self) -> list[str]:
        """Letters without a size."""
        return [n for n in self.ansatz.letters if n not in self.sizes]

    def ranks(self, rank: object) -> dict[str, int]:
        """Sizes of the open letters for a given rank."""
        if isinstance(rank, Mapping):
            return self._by_letter(rank)
        if not isinstance(rank, int | np.integer):
            raise ArgumentError(f"rank={rank!r} must be a whole number, or sizes by letter")
        return self._useful(dict.fromkeys(self.open, int(rank)))

    def _by_letter(self, rank: Mapping[str, int]) -> dict[str, int]:
        if unknown := [n for n in rank if n not in self.ansatz.letters]:
            raise ArgumentError(
                f"rank names {unknown[0]!r}; the rank letters of '{self.ansatz}' are"
                f" {' '.join(self.ansatz.letters) or 'none'}"
            )
        for name, n in rank.items():
            if self.sizes.get(name, n) != n:
                raise ArgumentError(
                    f"rank[{name!r}]={n}, but sizes or a frozen array make it {self.sizes[name]}"
                )
        if missing := [n for n in self.open if n not in rank]:
            raise ArgumentError(f"rank={dict(rank)!r} has no size for {missing[0]!r}")
        return {n: int(rank[n]) for n in self.open}

    def _useful(self, ranks: dict[str, int]) -> dict[str, int]:
        """Sizes cut to what each letter can use, until nothing changes."""
        infinite = math.prod(self.shape) * max([1, *ranks.values()])
        while True:
            known = {**self.sizes, **ranks}
            cut = {n: min(r, self.ansatz.reach(n, known, infinite)) for n, r in ranks.items()}
            if cut == ranks:
                return ranks
            first = next(n for n in ranks if cut[n] != ranks[n])
            ranks = ranks | {first: cut[first]}  # one at a time: each cut is free only by itself

    def free_letter(self, free: str | None) -> str:
        """The letter whose size an error or a budget chooses."""
        if free is None and len(self.open) == 1:
            return self.open[0]
        if free not in self.open or len(self.open) > 1:
            listed = " ".join(self.open) or "none"
            raise ArgumentError(
                f"error and budget choose the size of one rank letter, free={free!r}; without a"
                f" size in '{self.ansatz}': {listed}. Give the others in sizes"
            )
        return free

    def reach(self, letter: str) -> int:
        """Size of a letter above which nothing is gained."""
        fibres = math.prod(self.shape) // max(self.shape)  # no CP needs a larger rank
        return self.ansatz.reach(letter, self.sizes, fibres)

    def count(self, ranks: Mapping[str, int]) -> int:
        """Numbers that the network stores with letters of these sizes."""
        known = {**self.sizes, **self.stored, **ranks}
        return sum(math.prod(known[n] for n in term) for term in self.ansatz.terms)

    def within(self, letter: str, budget: int) -> int:
        """Largest useful size of `letter` whose network stores at most `budget` numbers."""
        size = largest_within(lambda n: self.count({letter: n}), budget, self.reach(letter))
        if size == 0:
            raise ArgumentError(
                f"budget {budget} is below rank 1: the smallest possible is"
                f" {self.count({letter: 1})} numbers"
            )
        return size

    @property
    def nothing(self) -> dict[str, int] | None:
        """Letters of size 0 that leave a network of no numbers, which is zero.

        None where there is no such network: some term has no letter, or is frozen.
        """
        zeros = dict.fromkeys(self.ansatz.letters, 0)
        return zeros if not self.frozen and self.count(zeros) == 0 else None


def _groups(ansatz: Ansatz, free: Sequence[int], tied: Sequence[Sequence[int]]) -> Groups:
    """Free positions, tied ones in one group."""
    groups = {k: {k} for k in free}
    for group in tied:
        for k in group:
            if k not in groups:
                raise ArgumentError(
                    f"the term '{' '.join(ansatz.terms[k])}' is frozen and cannot be tied"
                )
        whole = set().union(*(groups[k] for k in group))
        groups |= dict.fromkeys(whole, whole)
    return tuple(tuple(sorted(groups[k])) for k in free if k == min(groups[k]))
