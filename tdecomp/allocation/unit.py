"""What gets one rank: what it costs, and what its data say of every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tdecomp.adapters import Grid, Spec, bind
from tdecomp.adapters.bound import WeightOf
from tdecomp.errors import ArgumentError
from tdecomp.ranking.frontier import Frontier
from tdecomp.starts import fit_row
from tdecomp.statistics import Gradient, InputStatistics

__all__ = ["RankUnit"]

_EVERY = 4
"""Ranks of a group that are all tried; each larger one is a third to a half above the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankUnit:
    """A weight with factors of its own, or a group of weights that share factors.

    Attributes
    ----------
    spec
        The adapter.
    grid
        The weights.
    names
        Of the weights, in the order of the grid.
    gradients
        Mean gradient by every weight; empty for a rule that needs none.
    inputs
        Moments of what every weight multiplies; empty for a rule that needs none.
    weights
        Base weight ``(out, in)`` by number; read only by rules that say so.
    """

    spec: Spec
    grid: Grid
    names: Sequence[str]
    gradients: Sequence[Gradient] = ()
    inputs: Sequence[InputStatistics] = ()
    weights: WeightOf | None = None

    def __post_init__(self):
        if len(self.names) != self.grid.n_sites:
            raise ArgumentError(f"{len(self.names)} names for the weights of {self.grid!r}")

    @property
    def side(self) -> int:
        """The smaller side of a weight: the largest rank that can be used."""
        return min(self.grid.shape)

    @property
    def kind(self) -> str:
        """Last part of the name of the first weight: ``q_proj``."""
        return self.names[0].rpartition(".")[2]

    @property
    def alone(self) -> bool:
        """Whether it is one weight."""
        return len(self.names) == 1

    def cost(self, rank: int) -> int:
        """Numbers that are trained at a rank; none at rank 0."""
        return 0 if rank == 0 else bind(self.spec, self.grid, rank).n_trainable

    def weight(self, k: int = 0) -> np.ndarray:
        """Base weight number k, ``(out, in)``, float64."""
        if self.weights is None:
            raise ArgumentError(
                f"these ranks are made of the weight {self.names[k]}: give weights="
            )
        return np.asarray(self.weights(k), dtype=np.float64)

    @cached_property
    def changes(self) -> list[Gradient]:
        """The weights themselves, in the place of gradients."""
        n = len(self.names)
        return [Gradient(batches=1, left=None, right=self.weight(k)) for k in range(n)]

    def frontier(self, matrices: Sequence[Gradient], most: int) -> Frontier:
        """Numbers against the energy of some matrices that is not held, up to a rank.

        A weight by itself holds its leading singular values; of a group it is what the adapter
        that is nearest to all its matrices leaves out, for some ranks.
        """
        if self.alone:
            squares = matrices[0].svd(matrices[0].rank)[1].astype(np.float64) ** 2
            return self.spectrum(squares, most)
        total = sum(matrix.norm() ** 2 for matrix in matrices)
        ranks = ladder(min(most, self.side))
        errors = [fit_row(bind(self.spec, self.grid, r), matrices).error for r in ranks]
        return _frontier(
            self.cost, {0: total} | dict(zip(ranks, total * np.square(errors), strict=True))
        )

    def spectrum(self, energies: np.ndarray, most: int) -> Frontier:
        """The same for energies of single ranks, in descending order."""
        after = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        ranks = range(min(most, self.side, len(energies)) + 1)
        return _frontier(self.cost, {r: float(after[r]) for r in ranks})


def ladder(most: int) -> list[int]:
    """The small ranks, and of the larger ones some: 1 2 3 4 6 8 12 16 24 ..., and the last."""
    steps = [*range(1, _EVERY + 1)]
    while steps[-1] < most:
        power = steps[-1] & (steps[-1] - 1) == 0
        steps.append(steps[-1] * 3 // 2 if power else steps[-1] * 4 // 3)
    return [rank for rank in steps if rank < most] + [most]


def _frontier(cost: Callable[[int], int], lost: Mapping[int, float]) -> Frontier:
    """Ranks that hold more than every smaller one."""
    kept = [0]
    for rank in list(lost)[1:]:
        if lost[rank] < lost[kept[-1]] * (1 - 1e-12):
            kept.append(rank)
    return Frontier(
        params=np.array([cost(rank) for rank in kept]),
        lost=np.array([lost[rank] for rank in kept]),
        ranks=np.array(kept)[:, None],
    )
