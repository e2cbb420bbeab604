"""Ranks of a CP tensor: which are possible, what they store, what the unfoldings promise."""

from __future__ import annotations

import math

import numpy as np

from tdecomp._xp import Array, to_numpy
from tdecomp.decomposition.methods.cp.solve import Spectra
from tdecomp.errors import ArgumentError
from tdecomp.linalg import singular_values
from tdecomp.progress import Progress
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.target import Target
from tdecomp.tensor import unfold

__all__ = ["cost", "frontier", "given_rank", "least_rank", "listed", "reach", "spectra_of"]

_LISTED = 1024  # ranks up to which a frontier names every one, and about as many beyond
_DOUBT = 0.01  # share of the energy that the unfoldings do not show: low-rank ones, full CP rank


def reach(shape: tuple[int, ...]) -> int:
    """A rank that every tensor of this shape has: its fibres along the largest mode."""
    return math.prod(shape) // max(shape)


def cost(shape: tuple[int, ...]) -> int:
    """Numbers that one component stores."""
    return 1 + sum(shape)


def given_rank(target: Target, shape: tuple[int, ...]) -> int:
    """Rank of a target that names one."""
    if not isinstance(target.rank, int | np.integer):
        raise ArgumentError(f"rank={target.rank!r}: CP has one rank, a whole number")
    if target.rank > max(reach(shape), *shape):
        raise ArgumentError(
            f"rank {target.rank} is above {reach(shape)}: no tensor of shape {shape} needs more"
        )
    return min(int(target.rank), reach(shape))


def spectra_of(x: Array, progress: Progress) -> Spectra:
    """Singular values of all unfoldings."""
    found = {}
    for k in range(len(x.shape)):
        found[k] = to_numpy(singular_values(unfold(x, k))).astype(np.float64)
        progress((k + 1) / len(x.shape))
    return found


def _tails(spectra: Spectra, ranks: np.ndarray) -> np.ndarray:
    """Squared error that any tensor of these ranks has at least: the largest tail."""
    least = np.zeros(len(ranks))
    for s in spectra.values():
        tails = np.append(np.cumsum((s**2)[::-1])[::-1], 0.0)
        least = np.maximum(least, tails[np.minimum(ranks, len(s))])
    return least


def least_rank(spectra: Spectra, lost: float) -> int:
    """Rank below which some unfolding alone already loses more."""
    longest = max((len(s) for s in spectra.values()), default=1)
    return max(1, int(np.argmax(_tails(spectra, np.arange(longest + 1)) <= lost)))


def listed(most: int) -> np.ndarray:
    """Ranks from 0 to `most`: every one of the first, and about as many beyond."""
    beyond = np.geomspace(1, most, _LISTED).astype(np.int64)
    return np.unique(np.concatenate([np.arange(min(most, _LISTED) + 1), beyond, [most]]))


def frontier(energy: float, each: int, most: int, spectra: Spectra) -> Frontier:
    """What ranks cost and promise: the bound of the unfoldings, and some doubt about it.

    Parameters
    ----------
    energy
        Squared norm.
    each
        Numbers that one component stores.
    most
        A rank that is enough.
    spectra
        Of the unfoldings; without them the error is taken to fall evenly.
    """
    if energy == 0:
        return Frontier(np.array([0]), np.array([0.0]), np.array([[0]]))
    ranks = listed(most)
    doubt = energy * (1 - ranks / most)
    lost = _tails(spectra, ranks) + _DOUBT * doubt if spectra else doubt
    lost[0], falling = energy, np.append(True, np.diff(np.minimum.accumulate(lost)) < 0)
    return Frontier((ranks * each)[falling], lost[falling], ranks[falling][:, None])
