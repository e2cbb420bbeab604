"""Merges entry by entry: on the deltas themselves, or in the coordinates of common bases."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import numpy as np

from tdecomp.collections.merging.rule import StackRule
from tdecomp.collections.merging.site import MergeSite
from tdecomp.errors import ArgumentError

__all__ = ["Breadcrumbs", "Dare", "DareTies", "Della", "MagnitudePrune", "SelectAndErase", "Ties"]


@dataclass(frozen=True, kw_only=True)
class _ByShare(StackRule, ABC):
    """Rules of which a share of the entries is an option."""

    density: float = 0.2

    def __post_init__(self) -> None:
        _check_share("density", self.density)


@dataclass(frozen=True, kw_only=True)
class Ties(_ByShare):
    """Largest entries of every member, the sign of their sum, the mean of those that have it.

    Attributes
    ----------
    density
        Share of the entries that is kept.

    Notes
    -----
    [yadav2023]; the weights multiply what is averaged, as in PEFT.
    """

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        return _agreeing_mean(_largest(stack, self.density), np.asarray(site.weights))


@dataclass(frozen=True, kw_only=True)
class MagnitudePrune(_ByShare):
    """The weighted sum of the largest entries of every member.

    Attributes
    ----------
    density
        Share of the entries that is kept.

    Notes
    -----
    The trimming of [yadav2023] alone.
    """

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        return np.tensordot(np.asarray(site.weights), _largest(stack, self.density), axes=1)


@dataclass(frozen=True, kw_only=True)
class Dare(_ByShare):
    """The weighted sum of random entries, divided by the share that is kept.

    Attributes
    ----------
    density
        Chance of an entry to be kept.

    Notes
    -----
    [yu2024].
    """

    density: float = 0.5

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        kept = _drawn(stack, np.asarray(self.density), site)
        return np.tensordot(np.asarray(site.weights), kept, axes=1)


@dataclass(frozen=True, kw_only=True)
class DareTies(_ByShare):
    """Random entries as in `Dare`, the sign of their sum, the mean of those that have it.

    Attributes
    ----------
    density
        Chance of an entry to be kept.

    Notes
    -----
    [yu2024] with the signs of [yadav2023].
    """

    density: float = 0.5

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        kept = _drawn(stack, np.asarray(self.density), site)
        return _agreeing_mean(kept, np.asarray(site.weights))


@dataclass(frozen=True, kw_only=True)
class Della(_ByShare):
    """Random entries, large ones of their row more likely; the mean of those of the common sign.

    The chance to be dropped rises from ``p − ε/2`` for the largest entry of a row by ``ε/n`` with
    every one that is smaller; what is kept is divided by its chance.

    Attributes
    ----------
    density
        ``1 − p``.
    spread
        ε.

    Notes
    -----
    [deep2024], eqs. 1 to 3. mergekit's `della` differs: its ``epsilon`` is ε/2, the chances reach
    both ends of their range in every row, and what is kept is rescaled by a norm of the whole.
    """

    density: float = 0.5
    spread: float = 0.2

    def __post_init__(self) -> None:
        _check_share("density", self.density)
        if not 0 <= self.spread / 2 < min(self.density, 1 - self.density) + 1e-15:
            raise ArgumentError(
                f"spread={self.spread} of density={self.density} gives chances outside 0 to 1:"
                f" it can be {2 * min(self.density, 1 - self.density):g} at most"
            )

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        order = np.argsort(-np.abs(stack), axis=2, kind="stable")
        ranks = np.argsort(order, axis=2, kind="stable")  # 0 for the largest of its row
        chance = self.density + self.spread / 2 - self.spread * ranks / stack.shape[2]
        return _agreeing_mean(_drawn(stack, chance, site), np.asarray(site.weights))


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(StackRule):
    """The weighted sum of entries that are neither among the smallest nor among the largest.

    Attributes
    ----------
    smallest, largest
        Shares of the entries of every member that are left out.

    Notes
    -----
    [davari2024].
    """

    smallest: float = 0.85
    largest: float = 0.007

    def __post_init__(self) -> None:
        _check_share("smallest + largest", self.smallest + self.largest, least=0.0)

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        size = stack[0].size
        first, end = int(self.largest * size), size - int(self.smallest * size)
        kept = np.stack([_of_places(x, _by_size(x)[first:end]) for x in stack])
        return np.tensordot(np.asarray(site.weights), kept, axes=1)


@dataclass(frozen=True, kw_only=True)
class SelectAndErase(_ByShare):
    """Entries of the largest variance, members by their energy there, minority signs erased.

    Divided entry by entry by the coefficients of those that stay.

    Attributes
    ----------
    density
        Share of the entries that differ between the members to select.

    Notes
    -----
    [wan2024], SCE.
    """

    def merged(self, stack: np.ndarray, site: MergeSite) -> np.ndarray:
        if self.density < 1:
            variance = stack.var(axis=0)
            count = int(self.density * np.count_nonzero(variance))
            chosen = _of_places(np.ones_like(variance), _by_size(variance)[:count])
            stack = stack * chosen
        energies = (stack**2).sum(axis=(1, 2)) * np.asarray(site.weights)
        each = energies[:, None, None] * _with_common_sign(stack)
        total = each.sum(axis=0)
        return (each * stack).sum(axis=0) / np.where(total == 0, 1.0, total)


def _largest(stack: np.ndarray, density: float) -> np.ndarray:
    """Every matrix with zeros but for the share of its largest entries; of equal ones the first."""
    count = int(density * stack[0].size)
    return np.stack([_of_places(x, _by_size(x)[:count]) for x in stack])


def _drawn(stack: np.ndarray, chance: np.ndarray, site: MergeSite) -> np.ndarray:
    """Entries that are kept by chance, divided by it."""
    return np.where(site.uniform(stack.shape) < chance, stack, 0.0) / chance


def _agreeing_mean(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``Σ w_t x_t / count`` over the members whose entry has the sign of the sum over all."""
    agree = _with_common_sign(stack)
    total = np.tensordot(weights, stack * agree, axes=1)
    return total / np.maximum(agree.sum(axis=0), 1)


def _with_common_sign(stack: np.ndarray) -> np.ndarray:
    common = np.where(stack.sum(axis=0) >= 0, 1.0, -1.0)
    return np.sign(stack) == common


def _by_size(x: np.ndarray) -> np.ndarray:
    """Places of the entries, the largest first."""
    return np.argsort(-np.abs(x), axis=None, kind="stable")


def _of_places(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    kept = np.zeros(x.size)
    kept[places] = x.ravel()[places]
    return kept.reshape(x.shape)


def _check_share(name: str, value: float, *, least: float = 1e-12) -> None:
    if not least <= value <= 1:
        raise ArgumentError(f"{name}={value!r}: expected a share, above 0 and at most 1")
