"""What every format states about itself; everything else is derived from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from tdecomp._xp import Array
from tdecomp.errors import ArgumentError
from tdecomp.modes import Equation

__all__ = ["Format"]


class Format(ABC):
    """A tensor held as factors.

    A format names its modes and its arrays and says how they are contracted. The last two modes
    are the matrix modes; an index over the modes before them is a *site*.
    """

    modes: tuple[str, ...]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Sizes of the modes."""

    @property
    @abstractmethod
    def rank(self) -> Any:
        """Rank as the format counts it: an int per compressed mode, or per site."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """Every stored array by name, in the order of the terms of `equation`."""

    @property
    @abstractmethod
    def equation(self) -> Equation:
        """The einsum from `arrays` to the dense tensor (to one site where ranks are ragged)."""

    @property
    @abstractmethod
    def layout(self) -> dict[str, Any]:
        """What `build` needs besides the modes and arrays, as plain JSON values."""

    @classmethod
    @abstractmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        """Rebuild a format from its `modes`, `arrays` and `layout`."""

    @property
    @abstractmethod
    def shares_in(self) -> bool:
        """Whether all sites have one basis of the last mode in common."""

    @abstractmethod
    def pair(self, site: int, *, shared_in: bool = False) -> tuple[Array, Array]:
        """Exact factors of one site's matrix: ``(out, r)`` and ``(r, in)``.

        Parameters
        ----------
        site
            Position in C order over the site modes.
        shared_in
            Return the common basis of the last mode as the second factor, the same for every
            site; only where `shares_in`. Otherwise the smaller of the possible ranks is chosen.
        """

    @property
    def n_params(self) -> int:
        """How many numbers are stored: every entry of every array."""
        return sum(math.prod(a.shape) for a in self.arrays.values())

    @property
    def n_sites(self) -> int:
        """Number of matrices: the product of the site modes' sizes."""
        return math.prod(self.shape[:-2])

    def matrix(self, site: int) -> Array:
        """Dense matrix ``(out, in)`` of one site, without forming the others."""
        left, right = self.pair(site)
        return left @ right

    @abstractmethod
    def to_dense(self) -> Array:
        """The whole tensor, ``shape``."""

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        """The same format with other arrays of the same names, for example cast ones."""
        if set(arrays) != set(self.arrays):
            raise ArgumentError(f"expected the arrays {sorted(self.arrays)}, got {sorted(arrays)}")
        return self.build(self.modes, arrays, self.layout)
