"""LowRank format: an independent truncated SVD of every matrix, each with its own rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Self

import numpy as np

from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats._base import Format
from tdecomp.modes import Equation

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Format):
    """``X[site] = u_site · diag(s_site) · vh_site`` with a rank of its own for every site.

    The factors of all sites stand side by side along one rank mode ``R = Σ ranks``, so that a
    ragged format is three arrays.

    Parameters
    ----------
    modes
        Site modes, then the two matrix modes.
    sites
        Sizes of the site modes.
    ranks
        Rank of each site in C order; 0 is the zero matrix.
    u, s, vh
        ``(out, R)``, ``(R,)``, ``(R, in)``.

    Examples
    --------
    >>> import numpy as np
    >>> u, s, vh = np.ones((3, 1)), np.ones(1), np.ones((1, 4))
    >>> t = LowRank(("layer", "out", "in"), (2,), (1, 0), u, s, vh)
    >>> t.shape, t.n_params, float(t.to_dense().sum())
    ((2, 3, 4), 8, 12.0)
    """

    modes: tuple[str, ...]
    sites: tuple[int, ...]
    ranks: tuple[int, ...]
    u: Array
    s: Array
    vh: Array

    def __post_init__(self):
        width = sum(self.ranks)
        if (self.u.shape[1], *self.s.shape, self.vh.shape[0]) != (width,) * 3 or len(
            self.ranks
        ) != np.prod(self.sites, dtype=int):
            raise ArgumentError(
                f"{len(self.ranks)} ranks summing to {width} over the sites {self.sites} do not fit"
                f" u {tuple(self.u.shape)}, s {tuple(self.s.shape)}, vh {tuple(self.vh.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.sites, self.u.shape[0], self.vh.shape[1])

    @property
    def rank(self) -> tuple[int, ...]:
        """Rank of every site, in C order."""
        return self.ranks

    @property
    def arrays(self) -> dict[str, Array]:
        return {"u": self.u, "s": self.s, "vh": self.vh}

    @property
    def equation(self) -> Equation:
        """The einsum within one site; sites do not share ranks."""
        return Equation.parse(
            f"{self.modes[-2]} r, r, r {self.modes[-1]} -> {' '.join(self.modes[-2:])}"
        )

    @property
    def layout(self) -> dict[str, Any]:
        return {"sites": list(self.sites), "ranks": list(self.ranks)}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        sites, ranks = tuple(layout["sites"]), tuple(layout["ranks"])
        return cls(modes, sites, ranks, arrays["u"], arrays["s"], arrays["vh"])

    @property
    def shares_in(self) -> bool:
        return False

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return (0, *accumulate(self.ranks))

    def pair(self, site: int, *, shared_in: bool = False) -> tuple[Array, Array]:
        if shared_in:
            raise ArgumentError("independent SVDs have no common basis of the last mode")
        part = slice(self._ends[site], self._ends[site + 1])
        root = namespace(self.s).sqrt(self.s[part])
        return self.u[:, part] * root[None, :], root[:, None] * self.vh[part, :]

    def to_dense(self) -> Array:
        xp = namespace(self.u)
        return xp.reshape(xp.stack([self.matrix(i) for i in range(self.n_sites)]), self.shape)
