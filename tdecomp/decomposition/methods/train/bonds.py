"""Bonds of a tensor train: which are possible, what they store, which are worth their numbers.

A chain has core sizes ``(n_1, ..., n_d)`` and inner bonds ``(r_1, ..., r_{d-1})``; bond ``k`` lies
behind core ``k``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tdecomp.errors import ArgumentError
from tdecomp.ranking.frontier import Frontier
from tdecomp.ranking.rounding import SAME
from tdecomp.ranking.target import Target

__all__ = [
    "Bonds",
    "bond_frontier",
    "bond_names",
    "count_numbers",
    "exchanges",
    "fill_budget",
    "grow_bonds",
    "raise_bond",
    "tails_of",
    "target_bonds",
    "usable_bonds",
    "within_budget",
]

_EXCHANGED = 16  # bonds, at most, that are tried lower
_PRICES = 30  # halvings of the range of prices, 18 decades: to a factor of 1 + 4e-8

Bonds = tuple[int, ...]
"""Inner bonds, ``d - 1`` of them."""


def bond_frontier(sizes: Sequence[int], spectra: list[np.ndarray], path: list[Bonds]) -> Frontier:
    """What the path trades, with the squared error estimated as if bonds were cut independently.

    Cutting bond ``k`` leaves the share ``1 - tail_k / ‖X‖²``; the product over the bonds is exact
    for one bond and for uncorrelated cuts. It only decides how inputs share a target.
    """
    bonds, d = np.array(path), len(sizes)
    assert d > 1
    total = float(np.sum(spectra[0] ** 2))
    zero = np.zeros((1, d - 1), dtype=np.int64)
    if total == 0:
        return Frontier(np.array([0]), np.array([0.0]), zero)
    kept = [tails_of(s**2)[r] / total for s, r in zip(spectra, bonds.T, strict=True)]
    with np.errstate(divide="ignore"):
        lost = -total * np.expm1(np.sum(np.log1p(-np.minimum(kept, 1.0)), axis=0))
    params = np.array([count_numbers(sizes, b) for b in path])
    lost[0] = min(lost[0], (1 - 1e-9) * total)  # where many cuts add up, something is kept still
    lost, params = np.append(total, lost), np.append(0, params)
    better = np.append(True, lost[1:] < np.minimum.accumulate(lost)[:-1])
    return Frontier(params[better], lost[better], np.concatenate([zero, bonds])[better])


def grow_bonds(sizes: Sequence[int], energies: list[np.ndarray]) -> list[Bonds]:
    """Bonds from all 1 to full, each step the most energy per number stored."""
    growth = _Growth(sizes, energies, (1,) * (len(sizes) - 1))
    path = [growth.bonds]
    while (best := growth.best(math.inf)) is not None:
        growth.raise_one(best)
        path.append(growth.bonds)
    return path


class _Growth:
    """Bonds that are raised one at a time, and what raising each would return and cost.

    A raise takes some neighbours along (`raise_bond`). What it returns is looked at again only
    where bonds that it hangs on have changed: a step costs the same for any number of bonds.
    """

    def __init__(self, sizes: Sequence[int], energies: list[np.ndarray], bonds: Bonds):
        self.bonds = bonds
        self.numbers = count_numbers(sizes, bonds)
        self._sizes, self._energies = sizes, energies
        self._price = np.zeros(len(bonds))  # energy per number; 0 where there is none to win
        self._cost = np.zeros(len(bonds), dtype=np.int64)
        self._low, self._high = np.arange(len(bonds)), np.arange(len(bonds))
        for k in range(len(bonds)):
            self._look(k)

    def best(self, room: float, held: int | None = None) -> int | None:
        """The bond whose raise returns the most per number and costs no more than `room`."""
        price = np.where(self._cost <= room, self._price, 0.0)
        if held is not None:
            price[held] = 0.0
        most = price.max(initial=0.0)
        return int(np.argmax((1 + SAME) * price >= most)) if most > 0 else None

    def raise_one(self, k: int) -> None:
        """Raise a bond and what that needs."""
        low, high = int(self._low[k]), int(self._high[k])
        self.numbers += int(self._cost[k])
        self.bonds = raise_bond(self._sizes, self.bonds, k)
        for j in np.flatnonzero((self._high + 1 >= low) & (self._low - 1 <= high)):
            self._look(int(j))

    def _look(self, k: int) -> None:
        self._price[k] = 0.0
        if self.bonds[k] >= len(self._energies[k]):
            return
        low, raised = _raised(self._sizes, self.bonds, k)
        high = low + len(raised)
        before = self.bonds[low:high]
        if any(r > len(e) for r, e in zip(raised, self._energies[low:high], strict=True)):
            return
        won = zip(self._energies[low:high], before, raised, strict=True)
        gain = math.fsum(x for e, a, b in won for x in e[a:b].tolist())
        sizes = self._sizes[low : high + 1]
        left = self.bonds[low - 1] if low else 1
        right = self.bonds[high] if high < len(self.bonds) else 1
        cost = _count(sizes, (left, *raised, right)) - _count(sizes, (left, *before, right))
        self._low[k], self._high[k], self._cost[k] = low, high - 1, cost
        self._price[k] = gain / cost


def within_budget(
    sizes: Sequence[int], energies: list[np.ndarray], bonds: Bonds, budget: int
) -> list[Bonds]:
    """Bonds that may be the best for a budget; no bond of any could be raised within it.

    Those on the greedy path, `bonds`; it starts with whatever is cheap while the neighbours are 1,
    and pays for that in every further step. Those of the least sum of tails for a price per number
    (`_for_price`), at the lowest price that fits; that sum counts twice what two bonds both cut.
    And one rank for all bonds.
    """
    if not bonds:
        return [bonds]
    tails = [tails_of(e) for e in energies]
    low, high, priced = 1e-18, 1.0, bonds
    for _ in range(_PRICES):
        middle = math.sqrt(low * high)
        found = usable_bonds(_for_price(sizes, tails, middle * float(tails[0][0])), sizes)
        if count_numbers(sizes, found) <= budget:
            high, priced = middle, found
        else:
            low = middle
    even = bonds
    for rank in range(1, max(map(len, energies)) + 1):
        found = usable_bonds(tuple(min(rank, len(e)) for e in energies), sizes)
        if count_numbers(sizes, found) > budget:
            break
        even = found
    filled = (fill_budget(sizes, energies, b, budget) for b in (bonds, priced, even))
    return list(dict.fromkeys(filled))


def _for_price(sizes: Sequence[int], tails: list[np.ndarray], price: float) -> Bonds:
    """Bonds of the least sum of tails and price of their numbers, over all bonds.

    Both are sums over neighbouring bonds, so the least is found bond after bond, with the best
    bond before for each (dynamic programming).
    """
    costs, before = np.zeros(1), []
    widths = np.ones(1)
    for n, tail in zip(sizes, tails, strict=False):
        bond = np.arange(1, len(tail))
        total = costs[:, None] + price * n * widths[:, None] * bond[None, :]
        before.append(np.argmin(total, axis=0))
        costs, widths = np.min(total, axis=0) + tail[1:], bond
    at, bonds = int(np.argmin(costs + price * sizes[-1] * widths)), []
    for came in reversed(before):
        bonds.append(at + 1)
        at = int(came[at])
    return tuple(reversed(bonds))


def exchanges(
    sizes: Sequence[int], energies: list[np.ndarray], bonds: Bonds, budget: int
) -> list[Bonds]:
    """Bonds with one of them 1, 3, 9, ... lower and what that saves spent on the others.

    Of many bonds those that lose least.
    """
    found = []
    last = [float(e[min(b, len(e)) - 1]) for e, b in zip(energies, bonds, strict=True)]
    for k in sorted(np.argsort(last, kind="stable")[:_EXCHANGED].tolist()):
        bond = bonds[k]
        step = 1
        while step < bond:
            fewer = usable_bonds((*bonds[:k], bond - step, *bonds[k + 1 :]), sizes)
            found.append(fill_budget(sizes, energies, fewer, budget, held=k))
            step *= 3
    return list(dict.fromkeys(found))


def fill_budget(
    sizes: Sequence[int],
    energies: list[np.ndarray],
    bonds: Bonds,
    budget: int,
    held: int | None = None,
) -> Bonds:
    """Bonds raised as long as any raise fits the budget; the one `held` only once no other does."""
    growth = _Growth(sizes, energies, bonds)
    for spared in dict.fromkeys((held, None)):
        while (best := growth.best(budget - growth.numbers, spared)) is not None:
            growth.raise_one(best)
    return growth.bonds


def raise_bond(sizes: Sequence[int], bonds: Bonds, k: int) -> Bonds:
    """Bond `k` one larger, and its neighbours as large as that needs."""
    low, raised = _raised(sizes, bonds, k)
    return (*bonds[:low], *raised, *bonds[low + len(raised) :])


def _raised(sizes: Sequence[int], bonds: Bonds, k: int) -> tuple[int, list[int]]:
    """The bonds that change where bond `k` is one larger: the first of them, and their sizes."""
    raised, low = [bonds[k] + 1], k
    for j in range(k + 1, len(bonds)):
        if (need := -(-raised[-1] // sizes[j])) <= bonds[j]:
            break
        raised.append(need)
    for j in range(k - 1, -1, -1):
        if (need := -(-raised[0] // sizes[j + 1])) <= bonds[j]:
            break
        raised.insert(0, need)
        low = j
    return low, raised


def usable_bonds(bonds: Bonds, sizes: Sequence[int]) -> Bonds:
    """Bonds no larger than their neighbours can use."""
    new = [1, *bonds, 1]
    for k in range(1, len(new) - 1):
        new[k] = min(new[k], new[k - 1] * sizes[k - 1])
    for k in range(len(new) - 2, 0, -1):
        new[k] = min(new[k], new[k + 1] * sizes[k])
    return tuple(new[1:-1])


def count_numbers(sizes: Sequence[int], bonds: Bonds) -> int:
    """Numbers that the cores store."""
    return _count(sizes, (1, *bonds, 1))


def _count(sizes: Sequence[int], full: Sequence[int]) -> int:
    """Numbers of neighbouring cores between bonds, one more than cores."""
    return sum(a * n * b for a, n, b in zip(full, sizes, full[1:], strict=False))


def target_bonds(target: Target, names: Sequence[str], largest: Bonds) -> Bonds:
    """Inner bonds of a target that names ranks."""
    rank = target.rank
    if isinstance(rank, Mapping):
        if unknown := [name for name in rank if name not in names]:
            raise ArgumentError(f"rank names {unknown[0]!r}; the bonds are {', '.join(names)}")
        rank = tuple(int(rank.get(name, n)) for name, n in zip(names, largest, strict=True))
    if isinstance(rank, Sequence) and len(rank) == len(largest) + 2:
        if (rank[0], rank[-1]) != (1, 1):
            raise ArgumentError(f"rank={rank!r}: the outer bonds of a train are 1")
        rank = tuple(rank[1:-1])
    if isinstance(rank, int | np.integer):
        return tuple(min(int(rank), n) for n in largest)
    if not isinstance(rank, Sequence) or len(rank) != len(largest):
        raise ArgumentError(
            f"rank={rank!r} must be an int or {len(largest)} bonds: {', '.join(names)}"
        )
    for name, r, n in zip(names, rank, largest, strict=True):
        if r > n:
            raise ArgumentError(f"rank {r} is above {n}, the most the bond '{name}' can have")
    return tuple(int(r) for r in rank)


def bond_names(axes: Sequence[tuple[str, ...]]) -> list[str]:
    """``"layer | out in"``: the modes on both sides."""
    write = lambda part: " ".join(name for names in part for name in names)
    return [f"{write(axes[:k])} | {write(axes[k:])}" for k in range(1, len(axes))]


def tails_of(energy: np.ndarray) -> np.ndarray:
    """What is lost by keeping 0, 1, ... of the squared singular values."""
    return np.append(np.cumsum(energy[::-1])[::-1], 0.0)
