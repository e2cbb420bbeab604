"""What a merge rule is told of one site: the members' pairs, and what was asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tdecomp.collections.merging.cores import CommonCores, cores_of
from tdecomp.collections.pair import AdapterPair
from tdecomp.errors import ArgumentError

__all__ = ["Merged", "MergeSite"]

BareProduct = tuple[np.ndarray, np.ndarray]


class Merged(NamedTuple):
    """A merged delta ``b @ a``, ``(out, r)`` and ``(r, in)``; without an `a`, `b` is all of it."""

    b: np.ndarray
    a: np.ndarray | None = None

    def dense(self) -> np.ndarray:
        """``(out, in)``."""
        return self.b if self.a is None else self.b @ self.a

    def inner(self, b: np.ndarray, a: np.ndarray) -> float:
        """``⟨merged, b a⟩``; nothing of size ``out × in`` is formed where both are products."""
        if self.a is None:
            return float(np.sum((b.T @ self.b) * a))
        return float(np.sum((b.T @ self.b) * (a @ self.a.T)))

    def energy(self) -> float:
        """``‖merged‖²``, of a product from the triangles of its factors."""
        if self.a is None:
            return float(np.sum(self.b**2))
        return self.pair().energy()

    def pair(self) -> AdapterPair:
        """As a product; of a dense delta with an identity."""
        if self.a is not None:
            return AdapterPair(b=self.b, a=self.a)
        out, in_ = self.b.shape
        if in_ <= out:
            return AdapterPair(b=self.b, a=np.eye(in_))
        return AdapterPair(b=np.eye(out), a=self.b)


@dataclass(frozen=True, kw_only=True, eq=False)
class MergeSite:
    """One weight that several members change, by a product each.

    Attributes
    ----------
    name
        Of the weight; random rules draw by it and the seed.
    pairs
        ``(out, r_t)`` and ``(r_t, in)`` of every member, in float64; rank 0: it changes nothing.
    weights
        One per member.
    seed
        Of random rules.
    fishers
        Diagonal of the Fisher information of every member's weight, ``(out, in)`` each.
    inputs
        Second moment of the inputs that every member sees, ``(in, in)`` each.
    """

    name: str
    pairs: tuple[BareProduct, ...]
    weights: tuple[float, ...]
    seed: int = 0
    fishers: tuple[np.ndarray, ...] = ()
    inputs: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        shapes = {(b.shape[0], a.shape[1]) for b, a in self.pairs}
        if len(shapes) != 1:
            told = ", ".join(f"{m}×{n}" for m, n in sorted(shapes)) or "none"
            raise ArgumentError(f"{self.name}: the members change weights of one shape, got {told}")
        if len(self.weights) != len(self.pairs):
            raise ArgumentError(
                f"{self.name}: {len(self.weights)} weights for {len(self.pairs)} members"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        b, a = self.pairs[0]
        return b.shape[0], a.shape[1]

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.pairs)

    @cached_property
    def cores(self) -> CommonCores:
        """All deltas in bases that they have in common."""
        return cores_of(self.pairs)

    def dense(self) -> np.ndarray:
        """All deltas, ``(task, out, in)``."""
        return np.stack([b @ a for b, a in self.pairs])

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers in [0, 1) that only the seed and the name of the site decide."""
        key = np.frombuffer(hashlib.sha256(self.name.encode()).digest()[:16], dtype="<u4")
        return np.random.default_rng([self.seed, *map(int, key)]).random(shape)
