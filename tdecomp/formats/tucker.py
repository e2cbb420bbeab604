"""Tucker format: a core and a factor matrix for each compressed mode."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import numpy as np

from tdecomp._brief import brief_ranks
from tdecomp._plan import contract
from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.fields import read_array, read_arrays, read_names
from tdecomp.formats.network import Network, through_shorter_side
from tdecomp.formats.shaped import Blank, Blanks, Shaped, ranks_within, read_shape
from tdecomp.formats.slices import restricted
from tdecomp.modes import Equation, check_names, name_modes, positions, words
from tdecomp.tasks import sendable
from tdecomp.tensor import mode_product as multiply_array

__all__ = ["Tucker"]

_RANKS = "rstuvwxyz"  # then r1, s1, ...
_LARGE = 1 << 20  # numbers of a common core, from which on it may be
_SPARSE = 100  # times at most as large as the two cores


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class Tucker(Shaped, leaves=("core", "factors")):
    """``X[i, j, ...] = Σ core[r, s, ...] · factors[0][i, r] · factors[1][j, s] · ...``.

    Parameters
    ----------
    modes
        Names of all modes; also as text, ``"layer out in"``.
    core
        ``(r, s, ...)``; a mode without a factor has its full size here.
    factors
        One ``(n, r)`` array per mode, or None for a mode that is not compressed (nothing is stored
        for it).

    Examples
    --------
    >>> import numpy as np
    >>> out, in_ = np.ones((3, 1)), np.ones((4, 2))
    >>> t = Tucker(("layer", "out", "in"), np.ones((5, 1, 2)), (None, out, in_))
    >>> t.shape, t.rank, t.n_params, str(t.equation)
    ((5, 3, 4), (5, 1, 2), 21, 'out r, in s, layer r s -> layer out in')
    """

    modes: tuple[str, ...]
    core: Array
    factors: tuple[Array | None, ...]

    def __post_init__(self):
        object.__setattr__(self, "modes", read_names("modes", self.modes))
        read_array("core", self.core)
        factors = read_arrays("factors", self.factors, optional=True)
        object.__setattr__(self, "factors", factors)
        check_names(self.modes)
        ranks = tuple(self.core.shape)
        widths = tuple(
            r if f is None else f.shape[1] if len(f.shape) == 2 else None
            for f, r in zip(self.factors, ranks, strict=False)
        )
        if not len(self.modes) == len(self.factors) == len(ranks) or widths != ranks:
            raise ArgumentError(
                f"a Tucker tensor over {' '.join(self.modes)} cannot have a core {ranks}"
                f" and {len(self.factors)} factors of widths {widths}"
            )

    @property
    def _form(self) -> str:
        return brief_ranks(self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = zip(self.core.shape, self.factors, strict=True)
        return tuple(n if f is None else f.shape[0] for n, f in sizes)

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of the core, one entry per mode."""
        return tuple(self.core.shape)

    @property
    def arrays(self) -> dict[str, Array]:
        factors = zip(self.modes, self.factors, strict=True)
        return {f"factor.{m}": f for m, f in factors if f is not None} | {"core": self.core}

    @property
    def equation(self) -> Equation:
        ranks = (r + (str(k) if k else "") for k in count() for r in _RANKS)
        free = (r for r in ranks if r not in words(self.modes))
        inner = [
            m if f is None else next(free) for m, f in zip(self.modes, self.factors, strict=True)
        ]
        terms = [(m, r) for m, r in zip(self.modes, inner, strict=True) if m != r]
        return Equation((*terms, tuple(inner)), self.modes)

    @property
    def layout(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        del layout
        return cls(modes, arrays["core"], tuple(arrays.get(f"factor.{m}") for m in modes))

    @classmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        sizes = read_shape(shape)
        modes = name_modes(len(sizes), names)
        ranks = ranks_within("mode", modes, rank, sizes)
        factors = {
            f"factor.{m}": Blank((n, r), 1 / math.sqrt(r))
            for m, n, r in zip(modes, sizes, ranks, strict=True)
        }
        return modes, factors | {"core": Blank(ranks)}, {}

    @property
    def shares_in(self) -> bool:
        return self.factors[-1] is not None

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        core, (left, right) = self._site_core(site), self.factors[-2:]
        if right is None:
            return through_shorter_side(core) if left is None else (left, core)
        if left is None:
            return core, right.T  # (out, s), (s, in)
        if shared_in or core.shape[1] <= core.shape[0]:
            return multiply_array(core, left, 0), right.T  # (out, s), (s, in)
        return left, multiply_array(core, right, 1)  # (out, r), (r, in)

    def to_dense(self) -> Array:
        return contract(self.equation, list(self.arrays.values()))

    def to_network(self) -> Network:
        return Network(self.equation, tuple(self.arrays.values()))

    def opened(self, modes: Collection[str]) -> Tucker:
        """The same tensor with the factors of these modes multiplied into the core."""
        core, factors = self.core, list(self.factors)
        for k in positions(self.modes, modes):
            factor = factors[k]
            if factor is not None:
                core, factors[k] = multiply_array(core, factor, k), None
        return Tucker(self.modes, core, tuple(factors))

    def equally_opened(self, other: Tucker) -> tuple[Tucker, Tucker]:
        """Both tensors, with the modes opened that one of the two does not compress."""
        both = zip(self.modes, self.factors, other.factors, strict=True)
        full = [m for m, f, g in both if (f is None) != (g is None)]
        return self.opened(full), other.opened(full)

    def _plus(self, other: Tucker) -> Tucker | None:
        """Block-diagonal core over the ranks; None where that would be mostly zeros."""
        a, b = self.equally_opened(other)
        ranks = zip(a.rank, b.rank, a.factors, strict=True)
        both = math.prod(r if f is None else r + q for r, q, f in ranks)
        if both > max(_LARGE, _SPARSE * (math.prod(a.rank) + math.prod(b.rank))):
            return None
        return a._beside(b)

    def _restrict(self, position: int, rows: range) -> Tucker:
        arrays = restricted(self.equation, self.arrays, self.modes[position], rows)
        assert arrays is not None  # no split axes
        return self.with_arrays(arrays)

    def _squeeze(self, position: int) -> Tucker:
        modes = self.modes[:position] + self.modes[position + 1 :]
        factors = self.factors[:position] + self.factors[position + 1 :]
        core = self.opened([self.modes[position]]).core
        return Tucker(modes, namespace(core).squeeze(core, axis=position), factors)

    def _permute(self, order: tuple[int, ...]) -> Tucker:
        modes = tuple(self.modes[k] for k in order)
        core = namespace(self.core).permute_dims(self.core, order)
        return Tucker(modes, core, tuple(self.factors[k] for k in order))

    def _site_core(self, site: int) -> Array:
        """Core contracted with one row of every site mode's factor: ``(r_out, r_in)``."""
        xp = namespace(self.core)
        core = self.core
        index = np.unravel_index(site, self.shape[:-2])
        for i, factor in zip(index, self.factors[:-2], strict=True):
            if factor is None:
                core = core[int(i), ...]  # one mode less
            else:
                row = factor[int(i) : int(i) + 1, :]  # (1, r)
                core = xp.squeeze(multiply_array(core, row, 0), axis=0)
        return core
