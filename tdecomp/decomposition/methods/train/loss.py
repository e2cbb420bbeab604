"""Bonds of a train for a given error: few numbers, and none of the bonds can be lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tdecomp.decomposition.methods.train.bonds import (
    Bonds,
    count_numbers,
    exchanges,
    grow_bonds,
    tails_of,
    usable_bonds,
)
from tdecomp.decomposition.methods.train.sweeps import (
    Cores,
    Keep,
    Source,
    bonds_of,
    fixed_bonds,
    truncated,
)

__all__ = ["least_loss", "within_loss"]

Loss = Callable[[Bonds], list[float]]
"""Squared error that each bond adds when the tensor is cut to these bonds, by a sweep."""

_GAIN = 1e-6  # relative change of a loss that is not rounding
_NOTHING = 1e-12  # share of the energy that is


def least_loss(
    source: Source, energies: list[np.ndarray], candidates: Sequence[Bonds], budget: int
) -> Bonds:
    """The bonds that lose least in a sweep, of some candidates and what exchanges lead to.

    Tails of the unfoldings do not show what several bonds cut together: bonds are exchanged for
    others within the budget as long as a sweep loses less.
    """
    if not candidates[0]:
        return candidates[0]
    first: dict = {}
    known: dict[Bonds, float] = {}
    nothing = _NOTHING * float(np.sum(energies[0]))

    def loss(bonds: Bonds) -> float:
        if bonds not in known:
            known[bonds] = max(sum(_losses(source, bonds, first)), nothing)
        return known[bonds]

    def better_of(best: Bonds, others: Sequence[Bonds]) -> Bonds:
        least = min(others, key=loss, default=best)
        return least if loss(least) < (1 - _GAIN) * loss(best) else best

    best, before = better_of(candidates[0], candidates[1:]), None
    while best != before:
        best, before = better_of(best, exchanges(source.sizes, energies, best, budget)), best
    return best


def _losses(source: Source, bonds: Bonds, first: dict) -> list[float]:
    """What each bond loses in a sweep that cuts to these bonds."""
    losses = [0.0] * len(bonds)

    def keep(bond: int, energy: np.ndarray) -> int:
        r = min(bonds[bond - 1], len(energy))
        losses[bond - 1] = float(energy[r:].sum())
        return r

    truncated(source, keep, first)
    return losses


def within_loss(source: Source, energies: list[np.ndarray], allowed: float) -> Cores:
    """Train of a squared error of at most `allowed`.

    Two candidates: bonds on the path of most energy per number, and equal shares of the squared
    error for all bonds, which never store more than the rule ``ε / √(d - 1)`` of [oseledets2011];
    in both, what a bond leaves unused is carried to the next. Of the smaller one, bonds are lowered
    while the error allows. Every candidate is judged by a sweep, not by the sum of its tails, which
    only bounds it: at least the largest tail is lost, at most their sum.
    """
    if len(source.sizes) == 1:
        return fixed_bonds(source, (), None)
    tails = [tails_of(e) for e in energies]
    first: dict = {}
    known: dict[Bonds, list[float]] = {}

    def loss(bonds: Bonds) -> list[float]:
        if bonds not in known:
            known[bonds] = _losses(source, bonds, first)
        return known[bonds]

    def carried(keep: Keep) -> Bonds:
        return usable_bonds(bonds_of(truncated(source, keep, first)[0]), source.sizes)

    on_path = _on_path(grow_bonds(source.sizes, energies), tails, allowed, loss)
    candidates = [
        carried(_spending(on_path, loss(on_path), allowed)),
        carried(_even_shares(allowed, len(tails))),
    ]
    within = [b for b in candidates if sum(loss(b)) <= allowed] or [on_path]
    best = min(within, key=lambda b: count_numbers(source.sizes, b))
    return fixed_bonds(source, _lowered(source, best, tails, allowed, loss), None)


def _on_path(path: list[Bonds], tails: list[np.ndarray], allowed: float, loss: Loss) -> Bonds:
    """First bonds of the path that lose no more than allowed, by bisection between the bounds."""
    cut = np.stack([t[list(r)] for t, r in zip(tails, zip(*path, strict=True), strict=True)])
    low = int(np.argmax(cut.max(axis=0) <= allowed))
    within = cut.sum(axis=0) <= allowed
    high = int(np.argmax(within)) if within.any() else len(path) - 1
    while low < high:
        middle = (low + high) // 2
        fits = sum(loss(path[middle])) <= allowed
        low, high = (low, middle) if fits else (middle + 1, high)
    return path[low]


def _spending(bonds: Bonds, losses: list[float], allowed: float) -> Keep:
    """No more than `bonds`, and fewer where the spare error allows, bond after bond."""
    spare = allowed - sum(losses)

    def keep(bond: int, energy: np.ndarray) -> int:
        nonlocal spare
        room = losses[bond - 1] + max(0.0, spare)
        tails = tails_of(energy)
        r = min(max(1, int(np.argmax(tails <= room))), bonds[bond - 1])
        spare = room - tails[r]
        return r

    return keep


def _even_shares(allowed: float, bonds: int) -> Keep:
    """An equal part of what is left for every bond that is left."""
    left, visited = allowed, 0

    def keep(bond: int, energy: np.ndarray) -> int:
        nonlocal left, visited
        tails = tails_of(energy)
        r = max(1, int(np.argmax(tails <= left / (bonds - visited))))
        left, visited = max(0.0, left - float(tails[r])), visited + 1
        return r

    return keep


def _lowered(
    source: Source, bonds: Bonds, tails: list[np.ndarray], allowed: float, loss: Loss
) -> Bonds:
    """Bonds none of which can be one lower, the dearest ones tried first."""

    def fits(bonds: Bonds) -> bool:
        # what a sketch cannot tell of is not known to be lost
        cut = [t[min(r, len(t) - 1)] for t, r in zip(tails, bonds, strict=True)]
        return max(cut) <= allowed and sum(loss(bonds)) <= allowed

    def without(k: int) -> Bonds:
        return usable_bonds((*bonds[:k], bonds[k] - 1, *bonds[k + 1 :]), source.sizes)

    before = None
    while bonds != before:
        before = bonds
        for k in sorted(range(len(bonds)), key=lambda k: count_numbers(source.sizes, without(k))):
            while bonds[k] > 1 and fits(fewer := without(k)):
                bonds = fewer
    return bonds
