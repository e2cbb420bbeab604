"""CP format: a weighted sum of rank-one tensors, one factor matrix for every mode."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

from array_api_compat import device

from tdecomp._brief import brief_ranks
from tdecomp._plan import contract
from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import rows_at
from tdecomp.formats.equations import fresh
from tdecomp.formats.fields import read_array, read_arrays, read_names, read_sizes
from tdecomp.formats.network import Network
from tdecomp.formats.shaped import Blank, Blanks, Shaped, read_shape
from tdecomp.formats.slices import restricted
from tdecomp.modes import Equation, check_names, name_modes
from tdecomp.tasks import sendable

__all__ = ["CP"]


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class CP(Shaped, leaves=("weights", "factors")):
    """``X[i, j, ...] = Σ_r weights[r] · factors[0][i, r] · factors[1][j, r] · ...``.

    Parameters
    ----------
    modes
        Names of all modes; also as text, ``"layer out in"``.
    weights
        ``(R,)``; stored and counted, also where they are all one. None: ones.
    factors
        One ``(n, R)`` array per mode.

    Examples
    --------
    >>> import numpy as np
    >>> t = CP(("layer", "out", "in"), np.ones(2), (np.ones((5, 2)), np.eye(3, 2), np.eye(4, 2)))
    >>> t.shape, t.rank, t.n_params, str(t.equation)
    ((5, 3, 4), 2, 26, 'layer r, out r, in r, r -> layer out in')
    """

    modes: tuple[str, ...]
    weights: Array
    factors: tuple[Array, ...]

    def __post_init__(self):
        factors = read_arrays("factors", self.factors)
        object.__setattr__(self, "modes", read_names("modes", self.modes))
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "weights", _read_weights(self.weights, factors))
        check_names(self.modes)
        rank = tuple(self.weights.shape)
        widths = [tuple(f.shape[1:]) for f in self.factors]
        if len(rank) != 1 or len(self.modes) != len(widths) or any(w != rank for w in widths):
            raise ArgumentError(
                f"a CP tensor over {' '.join(self.modes)} cannot have weights {rank}"
                f" and factors {[tuple(f.shape) for f in self.factors]}: give one (n, R) factor per"
                " mode and R weights"
            )

    @property
    def _form(self) -> str:
        return brief_ranks(self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(f.shape[0] for f in self.factors)

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.weights.shape[0]

    @property
    def arrays(self) -> dict[str, Array]:
        factors = zip(self.modes, self.factors, strict=True)
        return {f"factor.{m}": f for m, f in factors} | {"weights": self.weights}

    @property
    def equation(self) -> Equation:
        (r,) = fresh(["r"], self.modes)
        return Equation((*((m, r) for m in self.modes), (r,)), self.modes)

    @property
    def layout(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        del layout
        return cls(modes, arrays["weights"], tuple(arrays[f"factor.{m}"] for m in modes))

    @classmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        sizes = read_shape(shape)
        modes = name_modes(len(sizes), names)
        (r,) = read_sizes("rank", [rank])
        if r < 1:
            raise ArgumentError(f"rank={rank!r} must be 1 or more")
        spreads = [1 / math.sqrt(r), *[1.0] * len(sizes)]
        factors = {
            f"factor.{m}": Blank((n, r), spread)
            for m, n, spread in zip(modes, sizes, spreads, strict=False)
        }
        return modes, factors | {"weights": Blank((r,), fixed=True)}, {}

    @property
    def shares_in(self) -> bool:
        return True

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        return self.to_network()._pair(site, shared_in=shared_in)

    def to_dense(self) -> Array:
        return contract(self.equation, list(self.arrays.values()))

    def to_network(self) -> Network:
        return Network(self.equation, tuple(self.arrays.values()))

    def _plus(self, other: Self) -> Self | None:
        return self._beside(other)

    def _restrict(self, position: int, rows: range) -> CP:
        arrays = restricted(self.equation, self.arrays, self.modes[position], rows)
        assert arrays is not None  # no split axes
        return self.with_arrays(arrays)

    def _squeeze(self, position: int) -> CP:
        weights = self.weights * self.factors[position][0, :]
        return CP(_without(self.modes, position), weights, _without(self.factors, position))

    def _permute(self, order: tuple[int, ...]) -> CP:
        modes = tuple(self.modes[k] for k in order)
        return CP(modes, self.weights, tuple(self.factors[k] for k in order))


@rows_at.register
def _(fmt: CP, index: Mapping[int, int]) -> CP:
    """All at once: the rows go into the weights."""
    rest = [k for k in range(len(fmt.modes)) if k not in index]
    weights = reduce(operator.mul, (fmt.factors[k][i, :] for k, i in index.items()), fmt.weights)
    return CP(tuple(fmt.modes[k] for k in rest), weights, tuple(fmt.factors[k] for k in rest))


def _read_weights(given: Any, factors: tuple[Array, ...]) -> Array:
    """The weights, or ones in the precision of the factors."""
    if given is not None:
        return read_array("weights", given)
    if not factors or len(factors[0].shape) != 2:
        raise ArgumentError("weights=None stands for ones: give one (n, R) factor per mode")
    xp, like = namespace(*factors), factors[0]
    return xp.ones(like.shape[1:], dtype=xp.result_type(*factors), device=device(like))


def _without(items: tuple, position: int) -> tuple:
    return items[:position] + items[position + 1 :]
