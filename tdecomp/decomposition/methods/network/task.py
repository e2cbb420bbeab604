"""The data, the terms and every known size: what stays when the ranks are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdecomp._xp import Array, double, namespace
from tdecomp.decomposition.checks import check_real
from tdecomp.decomposition.fit import Trace
from tdecomp.decomposition.methods.network.parse import Ansatz, positions_of
from tdecomp.decomposition.methods.network.problem import Problem
from tdecomp.decomposition.methods.network.solve import Options, solve_network
from tdecomp.decomposition.rank_search import largest_within
from tdecomp.errors import ArgumentError
from tdecomp.modes import flatten
from tdecomp.passes.slices import dense
from tdecomp.progress import Progress

__all__ = ["Task"]

_SMALL = 1 << 22  # numbers up to which the data are widened to float64


@dataclass(frozen=True)
class Task:
    """Everything but the sizes of the ranks.

    Attributes
    ----------
    array, ansatz, sizes
        The data in working precision, the equation, and the sizes that are known.
    kept
        Frozen arrays as given, ones included, by position.
    groups
        Positions of the free terms, tied ones together.
    stored
        Sizes of the modes that will be stored with another size than the data have.
    """

    array: Array
    ansatz: Ansatz
    sizes: Mapping[str, int]
    kept: Mapping[int, Array]
    groups: tuple[tuple[int, ...], ...]
    stored: Mapping[str, int]

    @classmethod
    def of(
        cls,
        array: Array,
        ansatz: Ansatz,
        sizes: Mapping[str, int],
        frozen: Mapping[int, Array],
        tied: Iterable[Sequence[int]],
        stored: Mapping[str, int],
    ) -> Task:
        """The task, with everything that was asked for checked against the equation."""
        positions = positions_of(ansatz, frozen, "frozen")
        kept = dict(zip(positions, frozen.values(), strict=True))
        if len(kept) == len(ansatz.written):
            raise ArgumentError(f"all terms of '{ansatz}' are frozen: nothing is left to fit")
        for a in kept.values():
            namespace(array, a)
            check_real(dense(a), "als")
        known = ansatz.sizes(array.shape, sizes, kept)
        xp, made = namespace(array), {"dtype": array.dtype, "device": array.device}
        for k, term in enumerate(ansatz.terms):
            if k not in ansatz.written:
                kept[k] = xp.ones((known[term[0]],), **made)
        free = [k for k in ansatz.written if k not in kept]
        groups = _groups(ansatz, free, [positions_of(ansatz, g, "tied") for g in tied])
        return cls(array, ansatz, known, kept, groups, stored)

    @property
    def open(self) -> list[str]:
        """Letters without a size."""
        return [n for n in self.ansatz.letters if n not in self.sizes]

    def ranks(self, rank: object) -> dict[str, int]:
        """Sizes of the open letters for a given rank."""
        if isinstance(rank, Mapping):
            if unknown := [n for n in rank if n not in self.ansatz.letters]:
                raise ArgumentError(
                    f"rank names {unknown[0]!r}; the rank letters of '{self.ansatz}' are"
                    f" {' '.join(self.ansatz.letters) or 'none'}"
                )
            for name, n in rank.items():
                if self.sizes.get(name, n) != n:
                    raise ArgumentError(
                        f"rank[{name!r}]={n}, but sizes or a frozen array make it"
                        f" {self.sizes[name]}"
                    )
            if missing := [n for n in self.open if n not in rank]:
                raise ArgumentError(f"rank={dict(rank)!r} has no size for {missing[0]!r}")
            return {n: int(rank[n]) for n in self.open}
        if not isinstance(rank, int | np.integer):
            raise ArgumentError(f"rank={rank!r} must be a whole number, or sizes by letter")
        return self._useful(dict.fromkeys(self.open, int(rank)))

    def _useful(self, ranks: dict[str, int]) -> dict[str, int]:
        """Sizes cut to what each letter can use, until nothing changes."""
        infinite = math.prod(self.array.shape) * max([1, *ranks.values()])
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

    def within(self, letter: str, budget: int, reach: int) -> int:
        """Largest useful size of `letter` whose network stores at most `budget` numbers."""

        def count(size: int) -> int:
            known = {**self.sizes, **self.stored, letter: size}
            return sum(math.prod(known[n] for n in term) for term in self.ansatz.terms)

        size = largest_within(count, budget, reach)
        if size == 0:
            raise ArgumentError(
                f"budget {budget} is below rank 1: the smallest possible is {count(1)} numbers"
            )
        return size

    def solve(
        self,
        ranks: Mapping[str, int],
        given: list[Array] | None,
        smaller: list[Array] | None,
        options: Options,
        progress: Progress,
    ) -> tuple[list[Array], Trace]:
        """Arrays of all terms in the precision of the data, and how they were found.

        The first start is `given`; the arrays `smaller`, of smaller ranks, are one start more.
        """
        sizes, terms = {**self.sizes, **ranks}, self.ansatz.terms
        self._check_tied(sizes)
        xp, scale = namespace(self.array), self._scale()
        powers = {k: scale ** (1 / self._n_free(k)) for group in self.groups for k in group}
        wide = double if math.prod(self.array.shape) <= _SMALL else (lambda a: a)
        shape = tuple(sizes[n] for n in flatten(self.ansatz.output))
        problem = Problem(
            terms,
            self.ansatz.blocks,
            flatten(self.ansatz.output),
            sizes,
            self.groups,
            {k: double(a) / (scale if self._carries(k) else 1.0) for k, a in self.kept.items()},
            wide(xp.reshape(self.array, shape)) / scale,
        )
        if given is not None:
            self._check_given(given, problem)

        def scaled(arrays: list[Array] | None) -> list[Array] | None:
            if arrays is None:
                return None
            return [
                double(a) / powers[k] if k in powers else problem.frozen[k]
                for k, a in enumerate(arrays)
            ]

        found = solve_network(problem, scaled(given), scaled(smaller), options, progress)
        dtype = self.array.dtype
        arrays = [
            xp.astype(a * powers[k] if k in powers else self.kept[k], dtype, copy=False)
            for k, a in enumerate(found.arrays)
        ]
        return arrays, Trace(found.errors, found.converged, found.reason)

    def _scale(self) -> float:
        """Largest entry of the data; 1 where tied arrays of different addends forbid scaling."""
        largest = float(namespace(self.array).max(namespace(self.array).abs(self.array)))
        crossing = any(len({self._n_free(k) for k in group}) > 1 for group in self.groups)
        return 1.0 if crossing or largest == 0 else largest

    def _block(self, k: int) -> tuple[int, ...]:
        return next(block for block in self.ansatz.blocks if k in block)

    def _n_free(self, k: int) -> int:
        return sum(j not in self.kept for j in self._block(k))

    def _carries(self, k: int) -> bool:
        """Whether a frozen array carries the scale: the first of an addend that has only those."""
        return self._n_free(k) == 0 and k == self._block(k)[0]

    def _check_tied(self, sizes: Mapping[str, int]) -> None:
        for group in self.groups:
            shapes = {k: tuple(sizes[n] for n in self.ansatz.terms[k]) for k in group}
            if len(set(shapes.values())) > 1:
                told = ", ".join(
                    f"'{' '.join(self.ansatz.terms[k])}' {s}" for k, s in shapes.items()
                )
                raise ArgumentError(f"tied terms must have one shape, got {told}")

    def _check_given(self, given: Sequence[Array], problem: Problem) -> None:
        for k, a in enumerate(given):
            namespace(self.array, a)
            check_real(dense(a), "als")
            if tuple(a.shape) != problem.shape(k):
                raise ArgumentError(
                    f"init has an array of shape {tuple(a.shape)} for the term"
                    f" '{' '.join(problem.terms[k])}' of shape {problem.shape(k)}"
                )
        for group in problem.groups:
            xp = namespace(given[group[0]])
            if any(bool(xp.any(given[k] != given[group[0]])) for k in group[1:]):
                raise ArgumentError("init has different arrays for terms that are tied")


def _groups(
    ansatz: Ansatz, free: Sequence[int], tied: Iterable[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
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
