"""Bases that several adapters have in common, with one small core for every member and weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp._xp import to_numpy
from tdecomp.collections.collection import Collection
from tdecomp.collections.pair import AdapterPair
from tdecomp.decomposition import decompose, tucker2
from tdecomp.progress import Progress, silent
from tdecomp.ranking.target import Target

__all__ = ["CommonBases", "SharedSites", "away", "common_bases", "shared_sites"]

_NUMBER = re.compile(r"(?<=[._])\d+(?=[._])")


@dataclass(frozen=True)
class SharedSites:
    """Weights of one shape whose deltas have their bases in common, over all members."""

    sites: tuple[str, ...]
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CommonBases:
    """``ΔW ≈ left · core · right`` for every member and weight.

    Attributes
    ----------
    left, right
        ``(out, p)`` and ``(q, in)``, as they are stored: orthonormal up to rounding.
    """

    left: np.ndarray
    right: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q) of a core."""
        return self.left.shape[1], self.right.shape[0]

    def core(self, pair: AdapterPair) -> np.ndarray:
        """The nearest core ``(p, q)`` of a delta, by least squares."""
        b, a = map(to_numpy, pair.folded())
        return (_inverse(self.left) @ b) @ (a @ _inverse(self.right.T).T)

    def pair(self, core: np.ndarray) -> AdapterPair:
        """The delta of a core as a pair, the narrower side of which is multiplied out.

        Sums are taken term by term in float64, so that every machine gives the same bits.

        >>> import numpy as np
        >>> bases = CommonBases(np.eye(4, 2), np.eye(2, 3))
        >>> bases.pair(np.diag([1.0, 2.0])).dense().sum()
        np.float64(3.0)
        """
        left, right = self.left.astype(np.float64), self.right.astype(np.float64)
        core = core.astype(np.float64)
        if core.shape[0] <= core.shape[1]:
            return AdapterPair(b=left, a=_product(core, right))
        return AdapterPair(b=_product(left, core), a=right)


def shared_sites(together: Collection, *, over_layers: bool = False) -> list[SharedSites]:
    """Weights that get their bases together: each alone, or those that differ in numbers only."""
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for site, shape in together.shapes.items():
        key = _NUMBER.sub("*", site) if over_layers else site
        groups.setdefault((key, shape), []).append(site)
    return [SharedSites(tuple(sites), shape) for (_, shape), sites in groups.items()]


def common_bases(
    together: Collection,
    groups: Sequence[SharedSites],
    target: Target,
    *,
    rounding: Callable[[np.ndarray], np.ndarray],
    progress: Progress = silent,
) -> list[CommonBases]:
    """Bases of every group: Tucker2 of ΔW over (task, layer, out, in), in factors.

    An error or a budget is that of all groups, cores included, by energy per number. No more
    directions are kept than the deltas have.

    Parameters
    ----------
    together, groups
        Members, and which weights share.
    target
        A rank of both bases, an error, or a budget of stored numbers.
    rounding
        Applied to the bases (storage precision).
    progress
        Called with the fraction of the work done.
    """
    tensors: Any = [together.over(group.sites, "layer") for group in groups]
    if target.rank is not None:
        largest = max(max(group.shape) for group in groups)
        rank = min(int(target.ranks_of(("rank",), (largest,))[0]), largest)
        fits = decompose(tensors, tucker2, rank=rank, progress=progress)
    else:
        fits = decompose(
            tensors, tucker2, error=target.error, budget=target.budget, progress=progress
        )
    return [_bases(fit.tensor.arrays, rounding) for fit in fits]


def away(pair: AdapterPair, other: AdapterPair) -> float:
    """``‖ΔW − ΔW'‖²`` of two pairs, of their difference and not of squares."""
    (b, a), (left, right) = (map(to_numpy, one.folded()) for one in (pair, other))
    return AdapterPair(b=np.hstack([b, -left]), a=np.vstack([a, right])).energy()


def _bases(arrays, rounding: Callable[[np.ndarray], np.ndarray]) -> CommonBases:
    left, right, core = (to_numpy(arrays[n]) for n in ("factor.out", "factor.in", "core"))
    size = np.abs(core).max(axis=(0, 1), initial=0.0)  # (p, q)
    used = size > 1e-12 * size.max(initial=0.0)
    rows, columns = used.any(axis=1), used.any(axis=0)
    return CommonBases(rounding(left[:, rows]), rounding(right[:, columns].T))


def _inverse(columns: np.ndarray) -> np.ndarray:
    """``(p, n)``: what least squares do with columns that are orthonormal up to rounding."""
    columns = columns.astype(np.float64)
    return np.linalg.pinv(columns) if columns.size else columns.T


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = np.zeros((x.shape[0], y.shape[1]))
    for k in range(x.shape[1]):
        total += x[:, k, None] * y[None, k, :]
    return total
