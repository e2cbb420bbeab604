"""TT format: a chain of cores; with two modes on a core it is an MPO (tensor-train matrix)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from tdecomp._brief import brief_ranks
from tdecomp._plan import contract
from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Format, rows_at
from tdecomp.formats.equations import fresh
from tdecomp.formats.fields import read_arrays, read_axes, read_sizes
from tdecomp.formats.legs import name_legs, read_legs
from tdecomp.formats.network import Network
from tdecomp.formats.shaped import Blank, Blanks, Shaped, placed, ranks_within, read_shape
from tdecomp.formats.slices import restricted
from tdecomp.modes import Axis, Equation, check_names, flatten, write_axis
from tdecomp.tasks import sendable
from tdecomp.tensor import mode_product as multiply_array

__all__ = ["TT"]


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class TT(Shaped, leaves=("cores",)):
    """``X[i, j, ...] = cores[0][0, i, :] · cores[1][:, j, :] · ... · cores[d-1][:, k, 0]``.

    Parameters
    ----------
    axes
        Names of the modes that each core carries, in chain order: one name is a plain TT core, two
        names, ``("o1", "i1")``, an MPO core. Also as text, ``"out layer in"`` or
        ``"(o1 i1) (o2 i2)"``.
    cores
        Core ``k`` is ``(r_k, *sizes of axes[k], r_{k+1})`` with ``r_0 = r_d = 1``.
    output
        Axes of the dense tensor: the modes of the chain in any order; a tuple of names is one axis
        split over them, slowest first (C order). Empty: the modes in chain order.

    Attributes
    ----------
    modes
        Names of the dense axes; a split axis is written ``"(o1 o2)"``.

    Examples
    --------
    >>> import numpy as np
    >>> cores = np.ones((1, 2, 4, 3)), np.ones((3, 5, 6, 1))
    >>> t = TT((("o1", "i1"), ("o2", "i2")), cores, (("o1", "o2"), ("i1", "i2")))
    >>> t.modes, t.shape, t.rank, t.n_params
    (('(o1 o2)', '(i1 i2)'), (10, 24), (1, 3, 1), 114)
    """

    axes: tuple[tuple[str, ...], ...]
    cores: tuple[Array, ...]
    output: tuple[Axis, ...] = ()
    modes: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self):
        axes = tuple(flatten((axis,)) for axis in read_axes("axes", self.axes))
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "cores", read_arrays("cores", self.cores))
        output = read_axes("output", self.output) or flatten(axes)
        object.__setattr__(self, "output", output)
        check_names(flatten(axes))
        object.__setattr__(self, "modes", tuple(write_axis(a) for a in self.output))
        shapes = [tuple(c.shape) for c in self.cores]
        orders = [len(names) + 2 for names in self.axes]
        if not shapes or [len(s) for s in shapes] != orders:
            raise ArgumentError(f"a TT over {self.axes} cannot have cores of shapes {shapes}")
        left, right = [s[0] for s in shapes], [s[-1] for s in shapes]
        if left[1:] != right[:-1] or left[0] != 1 or right[-1] != 1:
            raise ArgumentError(
                f"TT cores {shapes} do not fit: neighbours share a bond, the outer bonds are 1"
            )
        if Counter(flatten(self.axes)) != Counter(flatten(self.output)):
            raise ArgumentError(
                f"the output {' '.join(self.modes)} does not fit a TT over {self.axes}:"
                " name every mode once"
            )

    @property
    def _form(self) -> str:
        return brief_ranks(self.rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.equation.shape(self.equation.sizes([tuple(c.shape) for c in self.cores]))

    @property
    def rank(self) -> tuple[int, ...]:
        """The bonds, ``d + 1`` of them, 1 at both ends."""
        return (*(c.shape[0] for c in self.cores), 1)

    @property
    def arrays(self) -> dict[str, Array]:
        return {f"core.{k}": core for k, core in enumerate(self.cores)}

    @property
    def equation(self) -> Equation:
        bonds = fresh([f"b{k}" for k in range(len(self.cores) + 1)], flatten(self.axes))
        chain = zip(bonds[:-1], self.axes, bonds[1:], strict=True)
        return Equation(tuple((a, *names, b) for a, names, b in chain), self.output)

    @property
    def layout(self) -> dict[str, Any]:
        return {
            "axes": [list(names) for names in self.axes],
            "output": [axis if isinstance(axis, str) else list(axis) for axis in self.output],
        }

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        del modes  # written in the layout, splits opened
        return cls(
            tuple(tuple(names) for names in layout["axes"]),
            tuple(arrays[f"core.{k}"] for k in range(len(layout["axes"]))),
            tuple(axis if isinstance(axis, str) else tuple(axis) for axis in layout["output"]),
        )

    @classmethod
    def _blanks(cls, shape: Sequence[Any], rank: Any, names: Any) -> Blanks:
        sizes = read_legs("shape", shape)
        axes, output = name_legs(len(sizes), len(sizes[0]), names)
        bonds = _bonds_within([math.prod(legs) for legs in sizes], rank)
        cores = {
            f"core.{k}": Blank((a, *legs, b), 1 / math.sqrt(b))
            for k, (a, legs, b) in enumerate(zip(bonds[:-1], sizes, bonds[1:], strict=True))
        }
        return tuple(map(write_axis, output)), cores, {"axes": axes, "output": output}

    @classmethod
    def eye(
        cls,
        sizes: Sequence[int],
        *,
        names: Any = None,
        dtype: Any = None,
        like: Array | None = None,
    ) -> Self:
        """The identity matrix as an MPO of bonds 1, a core ``(1, n, n, 1)`` for each size.

        `dtype` and `like` as in `random`; `names` are axes, by default ``"(o1 i1) (o2 i2) .."``.

        Examples
        --------
        >>> TT.eye((2, 3)), float(TT.eye((2, 3)).to_dense().sum())
        (TT((o1 o2) 6, (i1 i2) 6; rank 1,1,1; 13 numbers; f64), 6.0)
        """
        each = read_shape(sizes)
        axes, output = name_legs(len(each), 2, names)
        cores = tuple(placed(np.eye(n)[None, :, :, None], dtype, like) for n in each)
        return cls(axes, cores, output)

    @property
    def shares_in(self) -> bool:
        return self.to_network().shares_in

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        return self.to_network()._pair(site, shared_in=shared_in)

    def to_dense(self) -> Array:
        return contract(self.equation, self.cores)

    def to_network(self) -> Network:
        return Network(self.equation, self.cores)

    def _plus(self, other: Self) -> Self | None:
        return self._beside(other)

    def _restrict(self, position: int, rows: range) -> Format:
        arrays = restricted(self.equation, self.arrays, self.output[position], rows)
        if arrays is None:  # several rows of a split axis are not slices of its modes
            return self.to_network()._restrict(position, rows)
        return self.with_arrays(arrays)

    def _squeeze(self, position: int) -> Format:
        rest = (*self.output[:position], *self.output[position + 1 :])
        if not rest:
            return self.to_network()._squeeze(position)
        gone = flatten((self.output[position],))
        axes, cores = [], []
        for names, core in zip(self.axes, self.cores, strict=True):
            sizes = zip(names, core.shape[1:-1], strict=True)
            kept = [(name, n) for name, n in sizes if name not in gone]
            axes.append(tuple(name for name, _ in kept))
            shape = (core.shape[0], *(n for _, n in kept), core.shape[-1])
            cores.append(namespace(core).reshape(core, shape))
        return TT(*_absorbed(axes, cores), rest)

    def _permute(self, order: tuple[int, ...]) -> TT:
        return TT(self.axes, self.cores, tuple(self.output[k] for k in order))


def _bonds_within(sizes: Sequence[int], rank: Any) -> tuple[int, ...]:
    """All bonds, 1 at both ends; given without the ends, with them, or as one number."""
    d = len(sizes)
    if hasattr(rank, "__len__") and len(rank) == d + 1:
        entries = read_sizes("rank", rank)
        if (entries[0], entries[-1]) != (1, 1):
            raise ArgumentError(f"rank={rank!r}: the outer bonds of a TT are 1")
        rank = entries[1:-1]
    most = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, d)]
    names = [f"bond {k}" for k in range(1, d)]
    return (1, *ranks_within("train at", names, rank, most), 1)


@rows_at.register
def _(fmt: TT, index: Mapping[int, int]) -> Format:
    """All at once: one after the other takes time in the square of the modes."""
    rest = tuple(axis for k, axis in enumerate(fmt.output) if k not in index)
    if not rest:
        return rows_at.dispatch(Format)(fmt, index)
    sizes = fmt.equation.sizes([tuple(core.shape) for core in fmt.cores])
    places: dict[str, int] = {}
    for k, i in index.items():
        names = flatten((fmt.output[k],))
        places |= zip(names, map(int, np.unravel_index(i, [sizes[n] for n in names])), strict=True)
    axes, cores = [], []
    for names, core in zip(fmt.axes, fmt.cores, strict=True):
        axes.append(tuple(name for name in names if name not in places))
        rows = tuple(places.get(name, slice(None)) for name in names)
        cores.append(core[(slice(None), *rows, slice(None))])
    return TT(*_absorbed(axes, cores), rest)


def _absorbed(
    axes: list[tuple[str, ...]], cores: list[Array]
) -> tuple[tuple[tuple[str, ...], ...], tuple[Array, ...]]:
    """The chain with every core that carries no mode multiplied into a neighbour."""
    kept_axes, kept, carry = [], [], None  # carry: (bond, bond) waiting for the next core
    for names, core in zip(axes, cores, strict=True):
        if carry is not None:
            core = multiply_array(core, carry, 0)
            carry = None
        if names:
            kept_axes.append(names)
            kept.append(core)
        else:
            carry = core
    if carry is not None:
        kept[-1] = multiply_array(kept[-1], carry.T, kept[-1].ndim - 1)
    return tuple(kept_axes), tuple(kept)
