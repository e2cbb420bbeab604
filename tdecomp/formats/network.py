"""Network format: any einsum over named modes and the arrays of its terms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from array_api_compat import device

from tdecomp._brief import brief_list, brief_ranks
from tdecomp._plan import contract
from tdecomp._xp import Array, namespace
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import Factored, Format
from tdecomp.formats.equations import fresh, narrowest_cut, rename
from tdecomp.formats.fields import read_arrays
from tdecomp.formats.shaped import Blank, drawn, read_shape
from tdecomp.formats.slices import gathered, restricted
from tdecomp.modes import Axis, Equation, flatten, write_axis
from tdecomp.tasks import sendable
from tdecomp.tensor import promoted

__all__ = ["Network", "as_network", "through_shorter_side"]

_TERMS = 8  # that `repr` writes out


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class Network(Factored, leaves=("tensors",)):
    """Any tensor network: an equation and one array for each of its terms.

    Every other format converts to it exactly with `to_network`.

    Parameters
    ----------
    einsum
        The equation, over named modes; also as text, ``"out r, in r -> out in"``. A name may stand
        in any number of terms (a hyperedge), but once in each; an output axis may be split,
        ``(head hd)``.
    tensors
        One array per term.

    Attributes
    ----------
    modes
        Names of the dense axes; a split axis is written ``"(head hd)"``.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.modes import Equation
    >>> lotr = Equation.parse("out r, layer r s, s in -> layer out in")
    >>> t = Network(lotr, (np.ones((3, 2)), np.ones((5, 2, 2)), np.ones((2, 4))))
    >>> t.shape, t.rank, t.n_params
    ((5, 3, 4), (2, 2), 34)
    """

    einsum: Equation
    tensors: tuple[Array, ...]
    modes: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self):
        given: Any = self.einsum
        equation = Equation.parse(given) if isinstance(given, str) else given
        if not isinstance(equation, Equation):
            raise ArgumentError(f"a Network is an equation and its tensors, got {given!r} first")
        object.__setattr__(self, "einsum", equation)
        object.__setattr__(self, "tensors", read_arrays("tensors", self.tensors))
        object.__setattr__(self, "modes", tuple(write_axis(a) for a in self.equation.output))
        self.equation.sizes(self._shapes)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(a.shape) for a in self.tensors)

    @property
    def _form(self) -> str:
        equation = brief_list(str(self.equation).split(", "), most=_TERMS)
        return "; ".join(filter(None, (", ".join(equation), brief_ranks(self.rank))))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.equation.shape(self.equation.sizes(self._shapes))

    @property
    def rank(self) -> tuple[int, ...]:
        """Sizes of the names that are summed over, in the order they appear."""
        kept = flatten(self.equation.output)
        return tuple(n for name, n in self.equation.sizes(self._shapes).items() if name not in kept)

    @property
    def arrays(self) -> dict[str, Array]:
        return {str(k): a for k, a in enumerate(self.tensors)}

    @property
    def equation(self) -> Equation:
        return self.einsum

    @property
    def layout(self) -> dict[str, Any]:
        return {"equation": str(self.equation)}

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        del modes  # the output of the equation
        equation = Equation.parse(layout["equation"])
        return cls(equation, tuple(arrays[str(k)] for k in range(len(equation.terms))))

    @classmethod
    def random(
        cls,
        einsum: Equation | str,
        sizes: Mapping[str, int],
        *,
        random_state: int | np.random.Generator | None = None,
        dtype: Any = None,
        like: Array | None = None,
    ) -> Self:
        """A network of normal arrays, its entries of mean 0 and variance 1.

        Parameters
        ----------
        einsum
            The equation.
        sizes
            Size of every name in it.
        random_state, dtype, like
            As in `CP.random`.

        Examples
        --------
        >>> Network.random("out r, in r -> out in", {"out": 4, "in": 5, "r": 2})
        Network(out 4, in 5; out r, in r -> out in; rank 2; 18 numbers; f64)
        """
        equation = Equation.parse(einsum) if isinstance(einsum, str) else einsum
        names = dict.fromkeys(n for term in equation.terms for n in flatten(term))
        if missing := [n for n in names if n not in sizes]:
            raise ArgumentError(f"no size for {', '.join(missing)} of '{equation}'")
        each = dict(zip(names, read_shape([sizes[n] for n in names]), strict=True))
        rng, open_ranks = np.random.default_rng(random_state or 0), set(names)
        open_ranks -= set(flatten(equation.output))
        tensors = []
        for term in map(flatten, equation.terms):
            first = open_ranks & set(term)
            open_ranks -= first
            spread = 1 / math.sqrt(math.prod(each[n] for n in first))
            tensors.append(drawn(Blank(tuple(each[n] for n in term), spread), rng, dtype, like))
        return cls(equation, tuple(tensors))

    @property
    def shares_in(self) -> bool:
        here = self._without_units()
        output = here.equation.output
        return bool(output) and narrowest_cut(here.equation, here._shapes, output[-1]) is not None

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        """Cut where the network is narrowest, or the dense matrix and an identity."""
        here = stack = self._without_units()
        for i in reversed(np.unravel_index(site, self.shape[:-2])):
            here = here._at(int(i), len(here.modes) - 3)
        whole = stack if shared_in else here
        cut = narrowest_cut(whole.equation, whole._shapes, whole.equation.output[-1])
        sizes = here.equation.sizes(here._shapes)
        n_out, n_in = here.shape
        if cut is None or (
            not shared_in and math.prod(sizes[n] for n in cut[1]) >= min(n_out, n_in)
        ):
            return through_shorter_side(here.to_dense())
        return here._halves(*cut)

    def _without_units(self) -> Network:
        """The same tensor without the parts of size 1 of split axes, which tie nothing together."""
        sizes = self.equation.sizes(self._shapes)
        split = [axis for axis in self.equation.output if not isinstance(axis, str)]
        units = {n for axis in split for n in axis if sizes[n] == 1}
        units -= {axis[-1] for axis in split if units.issuperset(axis)}
        if not units:
            return self
        rest = lambda axes: tuple(left for axis in axes if (left := _less(axis, units)))
        terms, tensors = tuple(map(rest, self.equation.terms)), []
        for x, term in zip(self.tensors, terms, strict=True):
            shape = tuple(math.prod(sizes[n] for n in flatten((axis,))) for axis in term)
            tensors.append(namespace(x).reshape(x, shape))  # the axes of size 1 are gone
        return Network(Equation(terms, rest(self.equation.output)), tuple(tensors))

    def _at(self, index: int, position: int) -> Network:
        return self._restrict(position, range(index, index + 1))._squeeze(position)

    def _halves(self, right: tuple[int, ...], cut: tuple[str, ...]) -> tuple[Array, Array]:
        """Contract the two parts of a cut matrix: ``(out, r)`` and ``(r, in)``."""
        out, in_ = self.equation.output
        left = tuple(k for k in range(len(self.tensors)) if k not in right)
        across = (tuple(cut),) if cut else ()  # nothing runs across where the parts share no name
        u, v = self._part(left, (out, *across)), self._part(right, (*across, in_))
        return (u, v) if cut else (u[:, None], v[None, :])  # (out, r), (r, in)

    def _part(self, where: Sequence[int], output: tuple[Axis, ...]) -> Array:
        terms = tuple(self.equation.terms[k] for k in where)
        return contract(Equation(terms, output), [self.tensors[k] for k in where])

    def to_dense(self) -> Array:
        return contract(self.equation, self.tensors)

    def to_network(self) -> Network:
        return self

    def extended(self, matrix: Array, position: int) -> Network:
        """The product with ``matrix (r, n)`` along one output axis, as one more term."""
        axis = self.equation.output[position]
        inner = flatten((axis,))
        sizes = self.equation.sizes(self._shapes)
        ranks = {n: n for n in sizes} | dict(zip(inner, fresh(inner, sizes), strict=True))
        name = write_axis(axis)
        new = namespace(matrix).reshape(matrix, (matrix.shape[0], *(sizes[n] for n in inner)))
        terms = tuple(rename(term, ranks) for term in self.equation.terms)
        output = list(self.equation.output)
        output[position] = name
        equation = Equation((*terms, (name, *(ranks[n] for n in inner))), tuple(output))
        return Network(equation, tuple(promoted([*self.tensors, new])))

    def joined(self) -> Network:
        """The same network with every split axis ``(o1 o2)`` as one mode of that name.

        The arrays that carry its parts are contracted to one array. Where that would be larger
        than the dense tensor, all arrays are.
        """
        here = self
        for position, axis in enumerate(self.equation.output):
            if not isinstance(axis, str):
                here = here._joined_at(position)
                if here is None:
                    return Network(Equation((self.modes,), self.modes), (self.to_dense(),))
        return here

    def _joined_at(self, position: int) -> Network | None:
        output = self.equation.output
        axis, name = output[position], self.modes[position]
        apart = [k for k, term in enumerate(self.equation.terms) if not set(axis) & set(term)]
        carriers = [k for k in range(len(self.tensors)) if k not in apart]
        inside = {n for k in carriers for n in flatten(self.equation.terms[k])}
        needed = {n for k in apart for n in flatten(self.equation.terms[k])} | {*flatten(output)}
        others = sorted((inside & needed) - set(axis))
        sizes = self.equation.sizes(self._shapes)
        if math.prod(sizes[n] for n in (*axis, *others)) > math.prod(self.shape):
            return None
        terms = (*(self.equation.terms[k] for k in apart), (name, *others))
        tensors = (*(self.tensors[k] for k in apart), self._part(carriers, (axis, *others)))
        return Network(
            Equation(terms, (*output[:position], name, *output[position + 1 :])), tensors
        )

    def _plus(self, other: Self) -> Self | None:
        return self._beside(other)

    def _restrict(self, position: int, rows: range) -> Network:
        axis = self.equation.output[position]
        arrays = restricted(self.equation, self.arrays, axis, rows)
        if arrays is None:
            return Network(*gathered(self.equation, self.tensors, position, rows))
        return self.with_arrays(arrays)

    def _squeeze(self, position: int) -> Network:
        gone = flatten((self.equation.output[position],))
        terms, tensors = [], []
        for term, x in zip(self.equation.terms, self.tensors, strict=True):
            kept = [k for k, n in enumerate(term) if n not in gone]
            terms.append(tuple(term[k] for k in kept))
            shape = tuple(x.shape[k] for k in kept)
            tensors.append(namespace(x).reshape(x, shape))  # without the axes of size 1
        rest = (*self.equation.output[:position], *self.equation.output[position + 1 :])
        return Network(Equation(tuple(terms), rest), tuple(tensors))

    def _permute(self, order: tuple[int, ...]) -> Network:
        output = tuple(self.equation.output[k] for k in order)
        return Network(Equation(self.equation.terms, output), self.tensors)


def _number(value: Array) -> Network:
    """A number as a tensor without modes."""
    return Network(Equation(((),), ()), (value,))


Format._number = _number


def as_network(fmt: Format) -> Network:
    """`fmt.to_network()` by its type, which the base class of `Network` cannot name."""
    network = fmt.to_network()
    assert isinstance(network, Network)
    return network


def through_shorter_side(matrix: Array) -> tuple[Array, Array]:
    """Factors through the shorter side: ``(matrix, eye)`` or ``(eye, matrix)``."""
    n_out, n_in = matrix.shape
    eye = namespace(matrix).eye(min(n_out, n_in), dtype=matrix.dtype, device=device(matrix))
    return (matrix, eye) if n_in <= n_out else (eye, matrix)


def _less(axis: Axis, gone: Collection[str]) -> Axis:
    """An axis without some of its names; empty if none is left, and a plain name if one is."""
    left = tuple(n for n in flatten((axis,)) if n not in gone)
    return left[0] if len(left) == 1 else left
