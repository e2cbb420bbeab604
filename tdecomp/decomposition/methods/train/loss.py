"""Bonds of a train for an error or a budget, judged by sweeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from tdecomp._xp import Array
from tdecomp.decomposition.methods.train.bonds import (
    Bonds,
    exchanges,
    tails_of,
    usable_bonds,
)
from tdecomp.decomposition.methods.train.sweeps import (
    FixedBonds,
    Source,
    Step,
    Sweep,
    left_orthonormal,
    resumed,
    right_orthonormal,
    step_at,
    swept,
)

__all__ = ["least_loss", "usable_cores", "within_loss"]

_GAIN = 1e-6  # relative change of a loss that is not rounding
_NOTHING = 1e-12  # share of the energy that is
_TRIED = 16  # candidates of a round of exchanges that a sweep is spent on
_FEW = 8  # bonds up to which each is tried one lower, as often as that succeeds
_TRIALS = 2  # sweeps spent on such trials where there are more


def least_loss(
    source: Source, energies: list[np.ndarray], candidates: Sequence[Bonds], budget: int
) -> Bonds:
    """The bonds that lose least in a sweep, of some candidates and what exchanges lead to.

    Tails of the unfoldings do not show what several bonds cut together: bonds are exchanged for
    others within the budget as long as a sweep loses less.
    """
    if not candidates[0]:
        return candidates[0]
    judge = _Judge(source, energies)
    best, before = judge.better_of(candidates[0], candidates[1:]), None
    while best != before:
        others = judge.promising(exchanges(source.sizes, energies, best, budget))
        best, before = judge.better_of(best, others), best
    return best


@dataclass
class _Judge:
    """Losses of sweeps, each taken once; the first step is the same for all."""

    source: Source
    energies: list[np.ndarray]
    known: dict[Bonds, float] = field(default_factory=dict)

    def __post_init__(self):
        ones = FixedBonds((1,) * len(self.energies))
        self.first = step_at(self.source, ones, self.source.bonds[0], self.source.start())
        self.tails = [tails_of(e) for e in self.energies]
        self.nothing = _NOTHING * float(np.sum(self.energies[0]))

    def loss(self, bonds: Bonds) -> float:
        """Squared error of a sweep that cuts to these bonds."""
        if bonds not in self.known:
            keep = FixedBonds(bonds)
            first = replace(self.first, kept=keep(self.first.bond, self.first.values))
            self.known[bonds] = max(swept(self.source, keep, [first]).lost, self.nothing)
        return self.known[bonds]

    def better_of(self, best: Bonds, others: Sequence[Bonds]) -> Bonds:
        """`best`, or another one that loses less by more than rounding."""
        least = min(others, key=self.loss, default=best)
        return least if self.loss(least) < (1 - _GAIN) * self.loss(best) else best

    def promising(self, candidates: Sequence[Bonds]) -> Sequence[Bonds]:
        """Those of the least sums of tails, where there are many."""
        if len(candidates) <= _TRIED:
            return candidates
        return sorted(candidates, key=self._sum_of_tails)[:_TRIED]

    def _sum_of_tails(self, bonds: Bonds) -> float:
        pairs = zip(self.tails, bonds, strict=True)
        return math.fsum(float(t[min(r, len(t) - 1)]) for t, r in pairs)


def within_loss(source: Source, allowed: float, most: int | None = None) -> Sweep:
    """Train of a squared error of at most `allowed`, or of no bond above `most`.

    One sweep shares the squared error out evenly over the bonds, what one leaves unused being
    carried to the next: so it never stores more than the rule ``ε / √(d - 1)`` of [oseledets2011].
    Bonds whose last singular value still fits in what is left are lowered, dearest first, by
    another sweep, as long as there are any. A cut lowers what later bonds lose, so each of up to 8
    bonds is then tried one lower; of more, those that two further sweeps reach.
    """
    sweep = swept(source, _EvenShares(allowed, len(source.sizes) - 1, most))
    if sweep.lost > allowed:
        return sweep
    while lowered := _spent(sweep, allowed - sweep.lost):
        trial = _lowered(sweep, lowered, allowed)
        if trial is None:
            break
        sweep = trial
    return _one_lower(sweep, allowed)


def usable_cores(sweep: Sweep) -> list[Array]:
    """The cores of a sweep; where a bond is wider than its neighbours can use, it is made less."""
    cores = sweep.cores
    if usable_bonds(sweep.bonds, sweep.source.sizes) == sweep.bonds:
        return cores
    if sweep.source.from_right:
        return right_orthonormal(left_orthonormal(cores))
    return left_orthonormal(right_orthonormal(cores))


class _EvenShares:
    """An equal part of what is left for every bond that is left."""

    def __init__(self, allowed: float, bonds: int, most: int | None):
        self.left, self.bonds, self.most = allowed, bonds, most

    def __call__(self, bond: int, energy: np.ndarray) -> int:
        del bond
        tails = tails_of(energy)
        r = max(1, int(np.argmax(tails <= self.left / self.bonds)))
        r = r if self.most is None else min(r, self.most)
        self.left, self.bonds = max(0.0, self.left - float(tails[r])), self.bonds - 1
        return r


def _spent(sweep: Sweep, slack: float) -> Bonds | None:
    """Lower bonds that lose no more than the slack beyond this sweep, by its own tails; or None."""
    sizes, bonds = sweep.source.sizes, list(sweep.bonds)
    steps = {step.bond - 1: step for step in sweep.steps}
    waiting = [k for k, step in steps.items() if step.kept > 1 and _last(step) <= slack]
    while waiting:
        k = max(waiting, key=partial(_saved, sizes, bonds))
        value = float(steps[k].values[bonds[k] - 1] ** 2)
        if bonds[k] > 1 and value <= slack:
            bonds[k], slack = bonds[k] - 1, slack - value
        else:
            waiting.remove(k)
    return None if tuple(bonds) == sweep.bonds else tuple(bonds)


def _saved(sizes: Sequence[int], bonds: Sequence[int], k: int) -> int:
    """Numbers that bond `k`, counted from 0, would save if it were one lower."""
    left = bonds[k - 1] if k else 1
    right = bonds[k + 1] if k + 1 < len(bonds) else 1
    return left * sizes[k] + sizes[k + 1] * right


def _last(step: Step) -> float:
    """The square of the smallest singular value that a step keeps."""
    return float(step.values[step.kept - 1] ** 2)


def _lowered(sweep: Sweep, bonds: Bonds, allowed: float) -> Sweep | None:
    """The sweep to lower bonds, from the first that differs on; None where it loses too much."""
    same = []
    for step in sweep.steps:
        same.append(replace(step, kept=bonds[step.bond - 1]))
        if same[-1].kept != step.kept:
            break
    return resumed(sweep.source, FixedBonds(bonds), same, allowed)


def _one_lower(sweep: Sweep, allowed: float) -> Sweep:
    """Each bond tried one lower, the dearest first; of many bonds only some."""
    count, sizes = len(sweep.steps), sweep.source.sizes
    room = math.inf if count <= _FEW else _TRIALS * count
    failed: set[int] = set()
    while places := [p for p in _undecided(sweep, allowed, failed) if count - p <= room]:
        place = max(places, key=lambda p: _saved(sizes, sweep.bonds, sweep.steps[p].bond - 1))
        bond = sweep.steps[place].bond
        room -= max(count - place, _FEW)
        lower = tuple(r - (k == bond) for k, r in enumerate(sweep.bonds, start=1))
        trial = _lowered(sweep, lower, allowed)
        if trial is None:
            failed.add(bond)
        else:
            sweep, failed = trial, set()
    return sweep


def _undecided(sweep: Sweep, allowed: float, failed: Collection[int]) -> list[int]:
    """Places of the steps that could keep one less as far as they and those before them lose."""
    found, before = [], 0.0
    for place, step in enumerate(sweep.steps):
        fits = step.kept > 1 and before + step.lost(step.kept - 1) <= allowed
        if fits and step.bond not in failed:
            found.append(place)
        before += step.lost()
    return found
