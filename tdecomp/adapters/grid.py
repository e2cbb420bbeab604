"""Grids: weights of one shape, and where each stands along the site modes."""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import numpy as np

from tdecomp._brief import brief, brief_count, brief_modes
from tdecomp.errors import ArgumentError
from tdecomp.stack.groups import Label

__all__ = ["Grid"]

_NOT_SITES = ("site", "out", "in", "long", "short", "alpha", "step")


@dataclass(frozen=True, repr=False, kw_only=True)
class Grid:
    """Weights of one shape, and where each stands along the site modes.

    Attributes
    ----------
    name
        Name of the group.
    shape
        (out, in) of every weight.
    modes
        Site modes and their labels: ``(("layer", (0, 1)), ("proj", ("q", "v")))``.
    places
        Per site, the position of its label in each mode. Not every cell need be taken.
    heads
        Number of heads; 0 where unknown.
    heads_in
        The heads lie along ``in`` (an output projection), not along ``out``.
    """

    name: str
    shape: tuple[int, int]
    modes: tuple[tuple[str, tuple[Label, ...]], ...]
    places: tuple[tuple[int, ...], ...]
    heads: int = 0
    heads_in: bool = False

    def __post_init__(self):
        if (
            not isinstance(self.shape, tuple)
            or len(self.shape) != 2
            or not all(isinstance(n, Integral) and n > 0 for n in self.shape)
        ):
            raise ArgumentError(
                f"the weights of {self.name} need a shape (out, in), such as (768, 768): got"
                f" {self.shape!r}"
            )
        names = [mode for mode, _ in self.modes]
        if wrong := [n for n in names if n in _NOT_SITES or names.count(n) > 1]:
            raise ArgumentError(
                f"{wrong[0]!r} cannot be a site mode of {self.name}: give every site mode a name of"
                " its own"
            )
        sizes = tuple(len(labels) for _, labels in self.modes)
        for place in self.places:
            if len(place) != len(sizes) or not all(
                0 <= k < n for k, n in zip(place, sizes, strict=True)
            ):
                raise ArgumentError(
                    f"the place {place} of a weight of {self.name} is outside of its site modes"
                    f" {' '.join(names)} of sizes {sizes}"
                )

    def __repr__(self) -> str:
        sizes = {mode: len(labels) for mode, labels in self.modes}
        gaps = math.prod(sizes.values()) - self.n_sites
        return brief(
            type(self),
            self.name,
            brief_modes((*sizes, "out", "in"), (*sizes.values(), *self.shape)),
            f"{brief_count(self.n_sites, 'weight')}, {brief_count(gaps, 'gap')}" if gaps else "",
        )

    @classmethod
    def full(
        cls, shape: tuple[int, int], *, heads: int = 0, name: str = "weights", **modes: int
    ) -> Grid:
        """A grid without gaps, by the sizes of its site modes.

        >>> Grid.full((768, 768), layer=12, proj=3).n_sites
        36
        """
        labels = tuple((mode, tuple(range(n))) for mode, n in modes.items())
        places = tuple(np.ndindex(*modes.values()))
        return cls(name=name, shape=shape, modes=labels, places=places, heads=heads)

    @property
    def n_sites(self) -> int:
        """Number of weights."""
        return len(self.places)

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Position of every site along each site mode, and along ``site``."""
        places = np.array(self.places, dtype=np.intp).reshape(self.n_sites, len(self.modes))
        found = {mode: places[:, k] for k, (mode, _) in enumerate(self.modes)}
        return found | {"site": np.arange(self.n_sites)}
