"""Sum format: tensors of several formats that add up, each kept as it is."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Self

from array_api_compat import device

from tdecomp._brief import brief_list
from tdecomp._xp import Array, namespace
from tdecomp.drawing import DrawnProduct
from tdecomp.errors import ArgumentError
from tdecomp.formats.base import FORMATS, Factored, Format, products_of, rows_at
from tdecomp.formats.equations import fresh, rename
from tdecomp.formats.network import Network, as_network, through_shorter_side
from tdecomp.formats.pairs import BareNetwork, refined
from tdecomp.modes import Equation, flatten
from tdecomp.tasks import sendable
from tdecomp.tensor import promoted

__all__ = ["Sum"]

_PARTS = 4  # that `repr` names


@sendable
@dataclass(frozen=True, repr=False, eq=False)
class Sum(Format, leaves=("parts",), holds_sums=True):
    """``X = parts[0] + parts[1] + ...`` of any formats over the same modes.

    What ``a + b`` gives where no one format holds both without loss, such as a shared Tucker2 and
    an own `LowRank` correction of every matrix. Everything acts on the parts one by one.

    Parameters
    ----------
    parts
        The terms, of equal modes and shape; a term that is a sum itself is replaced by its parts.

    Attributes
    ----------
    modes
        Names of the dense axes, those of every part.

    Examples
    --------
    >>> import numpy as np
    >>> from tdecomp.formats import CP, LowRank
    >>> cp = CP(("out", "in"), np.ones(2), (np.eye(3, 2), np.eye(4, 2)))
    >>> svd = LowRank(("out", "in"), (), (1,), np.ones((3, 1)), np.ones(1), np.ones((1, 4)))
    >>> total = cp + svd
    >>> [type(part).__name__ for part in total.parts], total.n_params, float(total.to_dense().sum())
    (['CP', 'LowRank'], 24, 14.0)
    """

    parts: tuple[Format, ...]
    modes: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self):
        given: Any = self.parts
        if not isinstance(given, tuple | list) or not all(isinstance(p, Format) for p in given):
            raise ArgumentError(f"the parts of a Sum must be a tuple of formats, got {given!r}")
        object.__setattr__(self, "parts", tuple(q for part in given for q in part._summands()))
        if not self.parts:
            raise ArgumentError("a Sum has one part or more")
        first = self.parts[0]
        object.__setattr__(self, "modes", first.modes)
        for part in self.parts:
            if part.modes != first.modes or part.shape != first.shape:
                raise ArgumentError(
                    f"a Sum over {' '.join(first.modes)} of sizes {first.shape} cannot have a part"
                    f" over {' '.join(part.modes)} of sizes {part.shape}"
                )
        _split_sizes(self.parts)

    @property
    def _form(self) -> str:
        """Names and ranks of the parts."""
        parts = [f"{type(part).__name__} of {part._form}" for part in self.parts]
        return " + ".join(brief_list(parts, most=_PARTS))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def rank(self) -> tuple[Any, ...]:
        """Rank of every part, as that format counts it."""
        return tuple(part.rank for part in self.parts)

    @property
    def arrays(self) -> dict[str, Array]:
        return {
            f"{k}.{name}": array
            for k, part in enumerate(self.parts)
            for name, array in part.arrays.items()
        }

    @property
    def equation(self) -> Equation:
        """That of `to_network`; the arrays of a sum have no common einsum."""
        return self.to_network().equation

    @property
    def layout(self) -> dict[str, Any]:
        return {
            "parts": [
                {"format": type(p).__name__, "modes": list(p.modes), "layout": p.layout}
                for p in self.parts
            ]
        }

    @classmethod
    def build(cls, modes: tuple[str, ...], arrays: Mapping[str, Array], layout: Mapping) -> Self:
        del modes  # those of the parts
        own: list[dict[str, Array]] = [{} for _ in layout["parts"]]
        for key, array in arrays.items():
            k, _, name = key.partition(".")
            own[int(k)][name] = array
        return cls(
            tuple(
                _part_class(row["format"]).build(tuple(row["modes"]), mine, row["layout"])
                for row, mine in zip(layout["parts"], own, strict=True)
            )
        )

    @property
    def shares_in(self) -> bool:
        return all(part.shares_in for part in self.parts)

    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        """Those of the parts side by side, or the dense matrix and an identity."""
        pairs = [part._pair(site, shared_in=shared_in) for part in self.parts]
        if not shared_in and sum(left.shape[1] for left, _ in pairs) >= min(self.shape[-2:]):
            matrices = promoted([part.matrix(site) for part in self.parts])
            return through_shorter_side(reduce(operator.add, matrices))
        lefts, rights = (promoted(side) for side in zip(*pairs, strict=True))
        xp = namespace(*lefts)
        return xp.concat(lefts, axis=1), xp.concat(rights, axis=0)  # (out, Σ r), (Σ r, in)

    def to_dense(self) -> Array:
        return reduce(operator.add, promoted([part.to_dense() for part in self.parts]))

    def to_network(self) -> Network:
        """The same tensor as one network, exactly: a name runs over the parts.

        Every array gets an axis ``t`` over the parts. At its own ``t`` stand its numbers; at every
        other a part is the constant 1, so that the network at ``t`` is the part ``t``. It stores as
        many copies of every array as there are parts.
        """
        pairs = _one_split([as_network(part) for part in self.parts])
        terms, arrays, output = [], [], pairs[0][0].output
        kept = flatten(output)
        (t,) = fresh(["t"], {n for equation, _ in pairs for n in _all_names(equation)})
        taken = {*kept, t}
        for k, (equation, tensors) in enumerate(pairs):
            ranks = [n for n in _all_names(equation) if n not in kept]
            own = dict(zip(ranks, fresh(ranks, taken), strict=True)) | {n: n for n in kept}
            taken |= set(own.values())
            for term, x in zip(equation.terms, tensors, strict=True):
                summed = [a for a, n in enumerate(term, 1) if n not in kept]
                terms.append((t, *rename(term, own)))
                arrays.append(_beside_ones(x, k, len(pairs), summed))
        return Network(Equation(tuple(terms), output), tuple(promoted(arrays)))

    def _plus(self, other: Self) -> Self:
        return type(self)((*self.parts, *other.parts))

    def _scaled(self, factor: float | Array) -> Self:
        return type(self)(tuple(part._scaled(factor) for part in self.parts))

    def _restrict(self, position: int, rows: range) -> Sum:
        return Sum(tuple(part._restrict(position, rows) for part in self.parts))

    def _squeeze(self, position: int) -> Sum:
        return Sum(tuple(part._squeeze(position) for part in self.parts))

    def _permute(self, order: tuple[int, ...]) -> Sum:
        return Sum(tuple(part._permute(order) for part in self.parts))

    def _summands(self) -> tuple[Factored, ...]:
        return tuple(one for part in self.parts for one in part._summands())


@products_of.register
def _products_of_parts(fmt: Sum) -> tuple[DrawnProduct, ...]:
    """Those of every part, one after the other."""
    found: list[DrawnProduct] = []
    for k, part in enumerate(fmt.parts):
        first, *rest = products_of(part)
        found += [replace(first, sign="+" if k else first.sign), *rest]
    return tuple(found)


@rows_at.register
def _(fmt: Sum, index: Mapping[int, int]) -> Sum:
    return Sum(tuple(rows_at(part, index) for part in fmt.parts))


def _part_class(name: str) -> type[Format]:
    """A format by name that can be a part: parts are never sums themselves."""
    if name == Sum.__name__:
        raise ArgumentError("a part of a Sum cannot be a Sum: give the parts of both")
    return FORMATS[name]


def _all_names(equation: Equation) -> list[str]:
    return list(dict.fromkeys(n for term in equation.terms for n in flatten(term)))


def _beside_ones(x: Array, k: int, n: int, summed: list[int]) -> Array:
    """`x` at position `k` of a new first axis of size `n`, and a constant 1 at the others.

    The constant is 1 where every axis in `summed` (counted with the new one) is at 0, else 0, so
    that the sums over ranks have one term. An empty rank is widened by a zero.
    """
    xp = namespace(x)
    for axis in summed:
        if x.shape[axis - 1] == 0:
            shape = (*x.shape[: axis - 1], 1, *x.shape[axis:])
            x = xp.zeros(shape, dtype=x.dtype, device=device(x))
    ones = xp.ones((1, *x.shape), dtype=x.dtype, device=device(x))  # (1, *x.shape)
    for axis in summed:
        first = ones[(slice(None),) * axis + (slice(0, 1), ...)]
        rest = ones[(slice(None),) * axis + (slice(1, None), ...)]
        ones = xp.concat([first, xp.zeros_like(rest)], axis=axis)
    own = xp.expand_dims(x, axis=0)  # (1, *x.shape)
    return xp.concat([own if i == k else ones for i in range(n)], axis=0)  # (n, *x.shape)


def _one_split(networks: list[Network]) -> list[BareNetwork]:
    """The networks with every axis split in all of them that is split in one."""
    pairs: list[BareNetwork] = [(network.equation, network.tensors) for network in networks]
    for a in list(pairs):
        pairs = [refined(b, a) for b in pairs]
    return [_renamed(pair, pairs) for pair in pairs]


def _renamed(pair: BareNetwork, pairs: list[BareNetwork]) -> BareNetwork:
    """The network with the names that its split axes have in the first of `pairs` that has them."""
    equation, arrays = pair
    target = flatten(pairs[0][0].output)
    mine = flatten(equation.output)
    if mine == target:
        return pair
    names = dict(zip(mine, target, strict=True))
    ranks = [n for n in _all_names(equation) if n not in names]
    names |= dict(zip(ranks, fresh(ranks, target), strict=True))
    terms = tuple(rename(term, names) for term in equation.terms)
    return Equation(terms, pairs[0][0].output), arrays


def _split_sizes(parts: tuple[Format, ...]) -> None:
    """Refuse parts that split one axis in different ways: no network holds both."""
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        if not any(mode.startswith("(") for mode in part.modes):
            return
        network = as_network(part)
        sizes = network.equation.sizes([tuple(a.shape) for a in network.tensors])
        for mode, axis in zip(part.modes, network.equation.output, strict=True):
            if not isinstance(axis, str):
                split = tuple(sizes[n] for n in axis)
                if found.setdefault(mode, split) != split:
                    raise ArgumentError(
                        f"{mode} is split in {found[mode]} and in {split}, so the two cannot be"
                        " added: split both in the same way"
                    )
