"""Tucker2 format: two compressed modes with one basis each, a full core over all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tdecomp._brief import brief_ranks
from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format
from tdecomp.formats.fields import read_array, read_names
from tdecomp.formats.network import Network
from tdecomp.formats.shaped import Blank, Blanks, Shaped, ranks_within, read_shape
from tdecomp.formats.slices import restricted
from tdecomp.formats.tucker import Tucker
from tdecomp.modes import Equation, check_names, name_modes, positions
from tdecomp.tasks import sendable

__all__ = ["Tucker2"]


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class Tucker2(Shaped, leaves=("core", "left", "right")):
    """``X[..., o, i] = Σ_rs left[o, r] · core[..., r, s] · right[i, s]``: LoTR's layout.

    Parameters
    ----------
    modes
        Names of all modes; also as text, ``"layer out in"``.
    core
        As the tensor, with the two compressed modes cut to their ranks.
    left, right
        ``(n, r)`` and ``(n, s)``: one basis for each compressed mode, shared over all other modes.
    compressed
        Names of the two compressed modes, in the order of `left` and `right`.

    Examples
    --------
    >>> import numpy as np
    >>> t = Tucker2(("layer", "out", "in"), np.ones((5, 1, 2)), np.ones((3, 1)), np.ones((4, 2)))
    >>> t.shape, t.rank, t.n_params
    ((5, 3, 4), (1, 2), 21)
    """

    modes: tuple[str, ...]
    core: Array
    left: Array
    right: Array
    compressed: tuple[str, str] = ("out", "in")

    def __post_init__(self):
        object.__setattr__(self, "modes", read_names("modes", self.modes))
        object.__setattr__(self, "compressed", read_names("compressed", self.compressed))
        for name in ("core", "left", "right"):
            read_array(name, getattr(self, name))
        if len(self.compressed) != 2:
            raise ArgumentError(f"compressed={self.compressed!r} must be two names of modes")
        check_names(self.modes)
        where = positions(self.modes, self.compressed)
        orders = len(self.core.shape), len(self.left.shape), len(self.right.shape)
        if orders != (len(self.modes), 2, 2) or self.rank != tuple(
            self.core.shape[k] for k in where
        ):
            raise ArgumentError(
                f"a Tucker2 core {tuple(self.core.shape)} over {' '.join(self.modes)} does not fit"
                f" the bases {tuple(self.left.shape)} and {tuple(self.right.shape)}"
                f" of {' and '.join(self.compressed)}"
            )

    @property
    def _form(self) -> str:
        return brief_ranks(self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.to_tucker().shape

    @property
    def rank(self) -> tuple[int, int]:
        """Widths of the two bases."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def arrays(self) -> dict[str, Array]:
        return self.to_tucker().arrays

    @property
    def equation(self) -> Equation:
        return self.to_tucker().equation

    @property
    def layout(self) -> dict[str, Any]:
        return {"compressed": list(self.compressed)}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        left, right = layout["compressed"]
        return cls(
            modes,
            arrays["core"],
            arrays[f"factor.{left}"],
            arrays[f"factor.{right}"],
            (left, right),
        )

    @classmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        """The last two modes are compressed."""
        sizes = read_shape(shape)
        modes = name_modes(len(sizes), names)
        if len(sizes) < 2:
            raise ArgumentError(f"a Tucker2 has two modes or more, got the sizes {sizes}")
        r, s = ranks_within("mode", modes[-2:], rank, sizes[-2:])
        blanks = {
            f"factor.{modes[-2]}": Blank((sizes[-2], r), 1 / math.sqrt(r)),
            f"factor.{modes[-1]}": Blank((sizes[-1], s), 1 / math.sqrt(s)),
            "core": Blank((*sizes[:-2], r, s)),
        }
        return modes, blanks, {"compressed": list(modes[-2:])}

    @property
    def shares_in(self) -> bool:
        return self.modes[-1] in self.compressed

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        return self.to_tucker()._pair(site, shared_in=shared_in)

    def to_dense(self) -> Array:
        return self.to_tucker().to_dense()

    def to_network(self) -> Network:
        return self.to_tucker().to_network()

    def _plus(self, other: Self) -> Self | None:
        return self._beside(other)

    def _restrict(self, position: int, rows: range) -> Tucker2:
        arrays = restricted(self.equation, self.arrays, self.modes[position], rows)
        assert arrays is not None  # no split axes
        return self.with_arrays(arrays)

    def _squeeze(self, position: int) -> Format:
        """Tucker2 where both bases stay, else Tucker with the one that is left."""
        if self.modes[position] in self.compressed:
            return self.to_tucker()._squeeze(position)
        modes = self.modes[:position] + self.modes[position + 1 :]
        core = namespace(self.core).squeeze(self.core, axis=position)
        return Tucker2(modes, core, self.left, self.right, self.compressed)

    def _permute(self, order: tuple[int, ...]) -> Tucker2:
        modes = tuple(self.modes[k] for k in order)
        core = namespace(self.core).permute_dims(self.core, order)
        return Tucker2(modes, core, self.left, self.right, self.compressed)

    def to_tucker(self) -> Tucker:
        """The same tensor as `Tucker`, exactly and without copying."""
        basis = dict(zip(self.compressed, (self.left, self.right), strict=True))
        return Tucker(self.modes, self.core, tuple(basis.get(m) for m in self.modes))
