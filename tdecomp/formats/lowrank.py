"""LowRank format: an independent truncated SVD of every matrix, each with its own rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Self

import numpy as np
from array_api_compat import device

from tdecomp._brief import brief_ranks
from tdecomp._xp import Array, namespace
from tdecomp.drawing import DrawnProduct, DrawnTensor
from tdecomp.errors import ArgumentError
from tdecomp.formats.at_indices import IndexColumns
from tdecomp.formats.base import Format, entries_of, products_of, summand
from tdecomp.formats.equations import fresh
from tdecomp.formats.fields import read_array, read_names, read_sizes
from tdecomp.formats.network import Network
from tdecomp.formats.pairs import Summand
from tdecomp.formats.shaped import Blank, Blanks, Shaped, ranks_within, read_shape
from tdecomp.formats.slices import owners, restricted, take
from tdecomp.modes import Equation, check_names, name_modes
from tdecomp.tasks import sendable
from tdecomp.tensor import promoted

__all__ = ["LowRank"]


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class LowRank(Shaped, leaves=("u", "s", "vh")):
    """``X[site] = u_site · diag(s_site) · vh_site`` with a rank of its own for every site.

    The factors of all sites stand side by side along one rank mode ``R = Σ ranks``, so that a
    ragged format is three arrays.

    Parameters
    ----------
    modes
        Site modes, then the two matrix modes; also as text, ``"layer out in"``.
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
        object.__setattr__(self, "modes", read_names("modes", self.modes))
        object.__setattr__(self, "sites", read_sizes("sites", self.sites))
        object.__setattr__(self, "ranks", read_sizes("ranks", self.ranks))
        for name in ("u", "s", "vh"):
            read_array(name, getattr(self, name))
        check_names(self.modes)
        width = sum(self.ranks)
        u, s, vh = (tuple(a.shape) for a in self.arrays.values())
        one_rank_per_site = len(self.ranks) == math.prod(self.sites)
        one_name_per_axis = len(self.modes) == len(self.sites) + 2
        matrices = len(u) == len(vh) == 2
        one_column_per_rank = u[1:] == s == vh[:1] == (width,)
        if not (one_rank_per_site and one_name_per_axis and matrices and one_column_per_rank):
            raise ArgumentError(
                f"{len(self.ranks)} ranks summing to {width} over the sites {self.sites} of"
                f" {' '.join(self.modes)} do not fit u {u}, s {s}, vh {vh}"
            )

    @property
    def _form(self) -> str:
        return brief_ranks(self.rank, per_site=True)

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
        (r,) = fresh(["r"], self.modes)
        out, in_ = self.modes[-2:]
        return Equation(((out, r), (r,), (r, in_)), (out, in_))

    @property
    def layout(self) -> dict[str, Any]:
        return {"sites": list(self.sites), "ranks": list(self.ranks)}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        sites, ranks = tuple(layout["sites"]), tuple(layout["ranks"])
        return cls(modes, sites, ranks, arrays["u"], arrays["s"], arrays["vh"])

    @classmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        sizes = read_shape(shape)
        modes = name_modes(len(sizes), names)
        if len(sizes) < 2:
            raise ArgumentError(f"matrices have two modes, got the sizes {sizes}")
        *sites, n_out, n_in = sizes
        each = [f"site {k}" for k in range(math.prod(sites))]
        ranks = ranks_within("matrix", each, rank, [min(n_out, n_in)] * len(each), least=0)
        width = sum(ranks)
        blanks = {
            "u": Blank((n_out, width)),
            "s": Blank((width,), np.repeat([1 / math.sqrt(max(1, r)) for r in ranks], ranks), True),
            "vh": Blank((width, n_in)),
        }
        return modes, blanks, {"sites": sites, "ranks": ranks}

    @property
    def shares_in(self) -> bool:
        return False

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return (0, *accumulate(self.ranks))

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        del shared_in  # independent SVDs share nothing
        part = slice(self._ends[site], self._ends[site + 1])
        root = namespace(self.s).sqrt(self.s[part])
        return self.u[:, part] * root[None, :], root[:, None] * self.vh[
            part, :
        ]  # (out, r), (r, in)

    def to_dense(self) -> Array:
        xp = namespace(self.u)
        return xp.reshape(xp.stack([self.matrix(i) for i in range(self.n_sites)]), self.shape)

    def to_network(self) -> Network:
        """The same tensor with an indicator ``(n, R)`` per site mode: which columns are whose."""
        return Network(_with_owners(self), (*self.owners, self.u, self.s, self.vh))

    @property
    def owners(self) -> tuple[Array, ...]:
        """1 where a column belongs to a row of a site mode: ``(n, R)`` for each."""
        return owners(self.sites, self.ranks, self.u)

    def _plus(self, other: Self) -> Self:
        """The columns of both tensors side by side within each site; no longer orthonormal."""
        xp = namespace(self.u, other.u)
        ranks = tuple(a + b for a, b in zip(self.ranks, other.ranks, strict=True))
        start, order = sum(self.ranks), []
        for site in range(self.n_sites):
            order += self.columns(site)
            order += (start + k for k in other.columns(site))
        u = xp.concat(promoted([self.u, other.u]), axis=1)  # (out, R + R')
        s = xp.concat(promoted([self.s, other.s]), axis=0)  # (R + R',)
        vh = xp.concat(promoted([self.vh, other.vh]), axis=0)  # (R + R', in)
        parts = take(u, 1, order), take(s, 0, order), take(vh, 0, order)
        return type(self)(self.modes, self.sites, ranks, *parts)

    def _restrict(self, position: int, rows: range) -> LowRank:
        k = position - len(self.sites)
        if k >= 0:
            arrays = restricted(self.equation, self.arrays, self.modes[position], rows)
            assert arrays is not None  # no split axes
            return self.with_arrays(arrays)
        chosen = np.take(np.arange(self.n_sites).reshape(self.sites), rows, axis=position)
        return self._sites(chosen, self.modes)

    def _squeeze(self, position: int) -> Format:
        """LowRank where a site mode goes, a network where a matrix mode does."""
        if position >= len(self.sites):
            return self.to_network()._squeeze(position)
        sites = self.sites[:position] + self.sites[position + 1 :]
        modes = self.modes[:position] + self.modes[position + 1 :]
        return LowRank(modes, sites, self.ranks, self.u, self.s, self.vh)

    def _permute(self, order: tuple[int, ...]) -> Format:
        """LowRank where the matrix modes stay in place, else a network."""
        n = len(self.sites)
        if order[n:] != (n, n + 1):
            return self.to_network()._permute(order)
        chosen = np.transpose(np.arange(self.n_sites).reshape(self.sites), order[:n])
        return self._sites(chosen, tuple(self.modes[k] for k in order))

    def _sites(self, chosen: np.ndarray, modes: tuple[str, ...]) -> LowRank:
        """Some sites, or all in another order, with their columns only."""
        sites = [int(site) for site in chosen.reshape(-1)]
        columns = [k for site in sites for k in self.columns(site)]
        ranks = tuple(self.ranks[site] for site in sites)
        parts = take(self.u, 1, columns), take(self.s, 0, columns), take(self.vh, 0, columns)
        return LowRank(modes, tuple(chosen.shape), ranks, *parts)

    def columns(self, site: int) -> range:
        """Positions of a site's columns."""
        return range(self._ends[site], self._ends[site + 1])


@products_of.register
def _product_of_a_site(fmt: LowRank) -> tuple[DrawnProduct, ...]:
    """The factors of one site; the site modes say that every site has its own."""
    (r,) = fresh(["r"], fmt.modes)
    *sites, out, in_ = fmt.modes
    sizes = {mode: str(n) for mode, n in zip(fmt.modes, fmt.shape, strict=True)}
    least, most = min(fmt.ranks, default=0), max(fmt.ranks, default=0)
    axes = {"u": (out, r), "s": (r,), "vh": (r, in_)}
    return (
        DrawnProduct(
            nodes=tuple(DrawnTensor(name, (*sites, *modes)) for name, modes in axes.items()),
            output=fmt.modes,
            sizes=sizes | {r: str(most) if least == most else f"{least} to {most}"},
            sites=frozenset(sites),
        ),
    )


@summand.register
def _(fmt: LowRank) -> Summand:
    return Summand(_with_owners(fmt), (fmt.u, fmt.s, fmt.vh), fmt.sites, fmt.ranks)


@entries_of.register
def _(fmt: LowRank, index: IndexColumns) -> Array:
    """The columns of its own site for every entry; sites of fewer are filled up with zeros."""
    *sites, rows, columns = index
    site = np.ravel_multi_index(sites, fmt.sites) if sites else np.zeros(len(rows), np.int64)
    ranks, ends = np.asarray(fmt.ranks), np.asarray(fmt._ends)
    place = np.arange(max(fmt.ranks, default=0))
    own = place[None, :] < ranks[site][:, None]  # (entry, r)
    where = np.where(own, ends[site][:, None] + place[None, :], 0)
    u, s, vh = promoted([fmt.u, fmt.s, fmt.vh])
    xp, width = namespace(u), max(1, u.shape[1])
    flat = lambda x: xp.reshape(x, (-1,))
    if 0 in own.shape:
        return xp.zeros((len(rows),), dtype=u.dtype, device=device(u))
    left = take(flat(u), 0, (rows[:, None] * width + where).reshape(-1))
    right = take(flat(vh), 0, (where * vh.shape[1] + columns[:, None]).reshape(-1))
    middle = take(s, 0, where.reshape(-1))
    kept = xp.asarray(own.reshape(-1), device=device(u))
    terms = xp.where(kept, left * middle * right, xp.zeros_like(left))
    return xp.sum(xp.reshape(terms, own.shape), axis=1)


def _with_owners(fmt: LowRank) -> Equation:
    (r,) = fresh(["r"], fmt.modes)
    return Equation((*((m, r) for m in fmt.modes[:-2]), *fmt.equation.terms), fmt.modes)
