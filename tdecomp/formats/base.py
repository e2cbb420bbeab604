"""What every format states about itself; everything else is derived from it."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce, singledispatch
from typing import Any, ClassVar, Self

import numpy as np

from tdecomp._backends import backend_of
from tdecomp._brief import brief, brief_array, brief_count, brief_dtypes, brief_modes
from tdecomp._equality import ByValue
from tdecomp._xp import Array, check_held, find_dtype, is_followed, namespace, to_numpy, working
from tdecomp.drawing import Diagram, Drawable, DrawnProduct, Panel, numbered
from tdecomp.errors import ArgumentError
from tdecomp.formats import pairs, pytrees
from tdecomp.formats.at_indices import IndexColumns, entries_of_network, is_whole, read_indices
from tdecomp.formats.norms import MOST_FLOPS, norm_of_sites, orthogonal_norm
from tdecomp.modes import Equation, parse_modes, positions, words, write_axis
from tdecomp.tensor import promoted

__all__ = ["FORMATS", "Factored", "Format", "entries_of", "products_of", "rows_at", "summand"]

_FEW_SITES = 4096  # whose matrices are taken one by one

FORMATS: dict[str, type[Format]] = {}
"""Every format by the name that files carry; filled where the classes are made."""


class Format(ByValue, Drawable):
    """A tensor held as factors.

    A format names its modes and its arrays and says how they are contracted. The last two modes
    are the matrix modes; an index over the modes before them is a *site*.

    ``a + b``, ``a - b``, ``c * a``, ``-a`` and ``a[3, :, 1:4]`` give formats and never form the
    dense tensor; like everything here they are differentiable in the arrays. In jax a format is a
    pytree with its arrays as leaves: ``jax.jit``, ``grad`` and ``tree.map`` take and give formats
    (of one that was made before jax was imported, call `register_pytrees`).

    ``a == b`` is True where both are of one format with the same modes, ranks and numbers, array by
    array (library, device and dtype too); ``hash`` agrees with it. Other factors of the same tensor
    are another format: compare tensors by ``(a - b).norm()``. ``numpy.asarray(a)`` is the dense
    array on the host, as `to_dense` forms it or refuses to.
    """

    modes: tuple[str, ...]
    _leaves: ClassVar[tuple[str, ...]] = ()
    _sum: ClassVar[Callable[[tuple[Format, ...]], Format]]
    _number: ClassVar[Callable[[Array], Format]]
    __array_ufunc__ = None  # numpy scalars on the left leave the product to us
    __iter__ = None  # slices are written out: fmt[i]

    def __init_subclass__(cls, *, leaves: tuple[str, ...] = (), holds_sums: bool = False) -> None:
        """Enter a format in `FORMATS`.

        Parameters
        ----------
        leaves
            Fields of the dataclass that hold arrays, the leaves of the pytree; all others are
            names and numbers, hashable. None: an abstract class, which is not entered.
        holds_sums
            ``a + b`` makes one of these, ``cls((a, b))``, where neither format holds both.
        """
        super().__init_subclass__()
        cls._leaves = leaves
        if leaves:
            FORMATS[cls.__name__] = cls
        if holds_sums:
            Format._sum = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An empty object; where jax is loaded its class becomes a pytree.

        Sparse and quantised tensors, masked and structured arrays and the like are a `DataError`.
        """
        for given in (*args, *kwargs.values()):
            for array in given if isinstance(given, tuple | list) else (given,):
                check_held(array)
        pytrees.register(cls, cls._leaves)
        return super().__new__(cls)

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
        """The einsum from `arrays` to the dense tensor.

        To one site where ranks are ragged; for a sum of formats that of `to_network`.
        """

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

    def pair(self, site: int, *, shared_in: bool = False) -> tuple[Array, Array]:
        """Exact factors of one site's matrix: ``(out, r)`` and ``(r, in)``.

        Parameters
        ----------
        site
            Position in C order over the site modes.
        shared_in
            Return the common basis of the last mode as the second factor, the same for every
            site; only where `shares_in`. Otherwise the smaller of the possible ranks is chosen:
            of a Network or Sum that is nowhere narrower than the matrix, the dense matrix and an
            identity.
        """
        if not 0 <= site < self.n_sites:
            raise ArgumentError(f"no site {site}: this tensor has the sites 0-{self.n_sites - 1}")
        if shared_in and not self.shares_in:
            raise ArgumentError(
                f"the sites of this {type(self).__name__} have no common basis of the last mode"
            )
        return self._pair(site, shared_in=shared_in)

    @abstractmethod
    def _pair(self, site: int, *, shared_in: bool) -> tuple[Array, Array]:
        """`pair` of a site that exists, and of a basis that is shared where it is asked for."""

    def __repr__(self) -> str:
        """One line, from the shapes alone: modes and sizes, rank, numbers, dtype."""
        arrays = self.arrays.values()
        if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in arrays):  # jax's stand-ins
            return brief(type(self), " ".join(self.modes), ", ".join(map(brief_array, arrays)))
        return brief(
            type(self),
            brief_modes(self.modes, self.shape),
            self._form,
            brief_count(self.n_params),
            brief_dtypes(arrays),
        )

    def diagram(self) -> Diagram:
        """What `td.draw` draws: the arrays, their modes and ranks."""
        products = products_of(self)
        equation = f"{' + '.join(p.terms for p in products)} -> {' '.join(self.modes)}"
        notes = (equation, brief_count(self.n_params))
        return Diagram((Panel(title=type(self).__name__, products=products, notes=notes),))

    @property
    @abstractmethod
    def _form(self) -> str:
        """What `repr` says of the ranks, and of what else tells two tensors apart."""

    @property
    def n_params(self) -> int:
        """How many numbers are stored: every entry of every array."""
        return sum(math.prod(a.shape) for a in self.arrays.values())

    @property
    def n_sites(self) -> int:
        """Number of matrices: the product of the site modes' sizes."""
        if len(self.modes) < 2:
            raise ArgumentError(
                f"the modes '{' '.join(self.modes)}' hold no matrix: two are needed"
            )
        return math.prod(self.shape[:-2])

    def matrix(self, site: int) -> Array:
        """Dense matrix ``(out, in)`` of one site, without forming the others."""
        left, right = promoted(self.pair(site))
        return left @ right

    @abstractmethod
    def to_dense(self) -> Array:
        """The whole tensor, ``shape``."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The dense array as numpy takes it; of dtypes numpy has not, in float32."""
        if copy is False:
            raise ValueError("the dense array of a format has to be formed: leave out copy=False")
        dense = self.to_dense()
        host = to_numpy(dense if backend_of(dense).name == "numpy" else working(dense))
        host = host if dtype is None else host.astype(dtype, copy=False)
        return host.copy() if copy else host

    @abstractmethod
    def to_network(self) -> Factored:
        """The same tensor as an equation and its arrays, exactly: a `Network`."""

    def with_arrays(self, arrays: Mapping[str, Array]) -> Self:
        """The same format with other arrays of the same names, for example cast ones."""
        if set(arrays) != set(self.arrays):
            raise ArgumentError(f"expected the arrays {sorted(self.arrays)}, got {sorted(arrays)}")
        return self.build(self.modes, arrays, self.layout)

    def astype(self, dtype: Any) -> Self:
        """The same format with every array in another dtype: a name, or one of a library."""
        return self.with_arrays({name: _cast(x, dtype) for name, x in self.arrays.items()})

    # The algebra. What differs between formats is in the methods below, the rest is derived.

    @abstractmethod
    def _plus(self, other: Any) -> Self | None:
        """The sum with a tensor of one format, modes and shape; None: not in this format."""

    @abstractmethod
    def _scaled(self, factor: float | Array) -> Self:
        """The tensor times a number."""

    @abstractmethod
    def _summands(self) -> tuple[Factored, ...]:
        """Tensors, each one network, that add up to this one."""

    @abstractmethod
    def _restrict(self, position: int, rows: range) -> Format:
        """The slice that keeps `rows` of the mode at `position`."""

    @abstractmethod
    def _squeeze(self, position: int) -> Format:
        """The tensor without a mode of size 1."""

    @abstractmethod
    def _permute(self, order: tuple[int, ...]) -> Format:
        """The tensor with its modes in another order."""

    def __add__(self, other: Format) -> Format:
        """The sum, exactly: ranks add up, nothing is recompressed.

        In the same format for two tensors of one format (a TT of the same chain, a Tucker2 of the
        same two modes, a Network of the same equation), otherwise a `Sum`; so too for two Tucker
        tensors of many modes, whose common core would be mostly zeros.
        """
        if not isinstance(other, Format):
            return NotImplemented
        if self.modes != other.modes or self.shape != other.shape:
            raise ArgumentError(
                f"cannot add the modes {' '.join(other.modes)} of sizes {other.shape}"
                f" to {' '.join(self.modes)} of sizes {self.shape}"
            )
        total = self._plus(other) if type(self) is type(other) else None
        return Format._sum((self, other)) if total is None else total

    def __sub__(self, other: Format) -> Format:
        if not isinstance(other, Format):
            return NotImplemented
        return self + -other

    def __neg__(self) -> Self:
        return self * -1.0

    def __mul__(self, scalar: float | Array) -> Self:
        """The tensor times a number (or a 0-d array); one array carries it."""
        if isinstance(scalar, Format):
            raise ArgumentError("'*' scales by a number; for entries use tdecomp.formats.hadamard")
        factor: Any = scalar.item() if isinstance(scalar, np.generic) else scalar
        if getattr(factor, "ndim", 0):
            raise ArgumentError(
                f"'*' scales by a number, got an array of shape {tuple(factor.shape)}:"
                " use tdecomp.formats.mode_product or hadamard"
            )
        return self._scaled(factor)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float | Array) -> Self:
        return self * (1.0 / scalar)

    def inner(self, other: Format) -> Array:
        """Inner product ``Σ conj(self) · other`` over all entries, any two formats.

        Returns
        -------
        Array
            0-d, float64 (complex128 for complex arrays), in the arrays' library. A split axis
            meets a plain one of the same size; all other modes must agree by name.

        Notes
        -----
        Contracted along one plan over both networks, so that the cost is that of the factors, not
        of the dense tensors; two `LowRank` meet within each site only. Accumulated in float64; the
        absolute error is about 1e-16 times the product of the two norms (more, where the terms of
        one tensor cancel each other). For gradients in jax with x64 off, differentiate inside
        ``jax.enable_x64(True)``.
        """
        if not isinstance(other, Format):
            raise ArgumentError(f"expected a format, got a {type(other).__name__}")
        return pairs.inner([*map(summand, self._summands())], [*map(summand, other._summands())])

    def norm(self) -> Array:
        """Frobenius norm, 0-d float64, without forming the dense tensor.

        Notes
        -----
        By QR, so that where large terms cancel, as in ``(a - b).norm()`` for nearly equal ``a`` and
        ``b``, all above about 1e-15 of ``a.norm()`` is true ([oseledets2011] for trains). Where
        torch or jax trace or differentiate it, and for networks that QR would take more than some
        seconds for (a CP of rank 400), it is the square root of `inner` with itself, which is
        rounding below 1e-8 of ``a.norm()``. Its gradient does not exist at 0.
        """
        parts = [*map(summand, self._summands())]
        if any(is_followed(x) for part in parts for x in part.arrays):
            return pairs.norm(parts)
        found = orthogonal_norm(parts)
        if found is None and self._has_few_sites():
            found = norm_of_sites(self._pair(k, shared_in=False) for k in range(self.n_sites))
        return pairs.norm(parts) if found is None else found

    def _has_few_sites(self) -> bool:
        """Whether QR of the factors of every matrix is cheap."""
        if len(self.modes) < 2 or self.n_sites > _FEW_SITES:
            return False
        rank = self._pair(0, shared_in=False)[0].shape[1]
        return 2 * self.n_sites * sum(self.shape[-2:]) * rank**2 <= MOST_FLOPS

    def select(self, **index: int | slice) -> Format:
        """Slice along named modes: ``fmt.select(layer=3, out=slice(0, 8))``.

        An integer drops its mode, a slice keeps it. A split axis takes its written name,
        ``fmt.select(**{"(o1 o2)": 3})``; sliced, it keeps that name as one whole axis: the
        result is a `Network`.
        """
        where = positions(self.modes, index)
        return self._picked(dict(zip(where, index.values(), strict=True)))

    def __getitem__(self, index: int | slice | tuple) -> Format:
        """Slice by position, as numpy does with integers, slices and one ``...``."""
        chosen = index if isinstance(index, tuple) else (index,)
        if sum(i is Ellipsis for i in chosen) > 1 or len(chosen) > len(self.modes) + (
            Ellipsis in chosen
        ):
            raise ArgumentError(f"{len(chosen)} indices for the modes {' '.join(self.modes)}")
        whole: list[Any] = [i for i in chosen if is_whole(i)]
        if whole and len(whole) == len(chosen) == len(self.modes):
            return Format._number(self.entries([operator.index(i) for i in whole]))
        at = chosen.index(Ellipsis) if Ellipsis in chosen else len(chosen)
        tail = chosen[at + 1 :]
        ends = enumerate(tail, len(self.modes) - len(tail))
        return self._picked(dict(enumerate(chosen[:at])) | dict(ends))

    def entries(self, indices: Any) -> Array:
        """Single entries at index arrays, never forming more of the tensor.

        Parameters
        ----------
        indices
            Whole numbers ``(.., modes)``: the index of each entry in every mode, as one row.
            Negative ones count from the end.

        Returns
        -------
        Array
            ``(..)``: one number for each row.

        Notes
        -----
        A train takes a row and a matrix for each core and entry, so time grows with the number of
        modes; the last axis of the index array `numpy.argwhere` gives is that of the modes.

        Examples
        --------
        >>> from tdecomp.formats import CP
        >>> t = CP("out in", None, (np.arange(6.0).reshape(3, 2), np.eye(4, 2)))
        >>> t.entries([[0, 0], [2, 1], [-1, -1]]).tolist()
        [0.0, 5.0, 0.0]
        """
        if not self.modes:
            raise ArgumentError("a tensor without modes is the number that `to_dense` gives")
        found = read_indices(indices, self.modes, self.shape)
        index = tuple(np.moveaxis(found.reshape(-1, len(self.modes)), -1, 0))
        values = promoted([entries_of(part, index) for part in self._summands()])
        total = reduce(operator.add, values)
        return namespace(total).reshape(total, found.shape[:-1])

    def permute(self, modes: str | Sequence[str | int]) -> Format:
        """The same tensor with its modes in another order, by name or position.

        A `LowRank` whose matrix modes move becomes a `Network`, all others keep their format.
        """
        axes = [write_axis(a) for a in parse_modes(modes)] if isinstance(modes, str) else modes
        order = positions(self.modes, axes)
        if len(order) != len(self.modes):
            raise ArgumentError(
                f"permute needs all modes {' '.join(self.modes)}, got {' '.join(map(str, axes))}"
            )
        return self._permute(order)

    def _picked(self, chosen: Mapping[int, Any]) -> Format:
        """Slices of the modes at these positions; those with one index go."""
        fmt, shape = self, self.shape
        rows = {k: self._rows(k, shape[k], one) for k, one in chosen.items()}
        for k, kept in rows.items():
            if isinstance(kept, range) and kept != range(shape[k]):
                fmt = fmt._restrict(k, kept)
        index = {k: kept for k, kept in rows.items() if isinstance(kept, int)}
        return rows_at(fmt, index) if index else fmt

    def _rows(self, position: int, n: int, chosen: Any) -> range | int:
        """What one index or slice of a mode of size `n` picks."""
        name = self.modes[position]
        if isinstance(chosen, slice):
            rows = range(n)[chosen]
            if not rows:
                raise ArgumentError(f"{chosen} of the mode {name!r} of size {n} is empty")
            return rows
        if not is_whole(chosen):
            raise ArgumentError(
                f"no index {chosen!r} in the mode {name!r}: give a whole number, a slice or ...;"
                " for index arrays use entries"
            )
        i = operator.index(chosen)
        if not -n <= i < n:
            raise ArgumentError(f"no index {i} in the mode {name!r} of size {n}")
        return i % n


def _cast(x: Array, dtype: Any) -> Array:
    xp = namespace(x)
    wanted = find_dtype(xp, dtype)
    if xp.isdtype(x.dtype, "complex floating") and not xp.isdtype(wanted, "complex floating"):
        raise ArgumentError(f"astype({dtype!r}) would lose imaginary parts: give a complex dtype")
    return xp.astype(x, wanted)


class Factored(Format):
    """A format that is one network: every one but a sum of several."""

    def _scaled(self, factor: float | Array) -> Self:
        arrays = self.arrays
        last = next(reversed(arrays))
        return self.with_arrays(arrays | {last: arrays[last] * factor})

    def _summands(self) -> tuple[Factored, ...]:
        return (self,)

    def _beside(self, other: Self) -> Self | None:
        """The sum in blocks along every rank; None if that is not a network of the equation."""
        if self.equation != other.equation:
            return None
        mine, theirs = self.arrays, other.arrays
        blocks = pairs.block_sum(self.equation, [*mine.values()], [*theirs.values()])
        return None if blocks is None else self.with_arrays(dict(zip(mine, blocks, strict=True)))


@singledispatch
def summand(fmt: Factored) -> pairs.Summand:
    """The network of a format as `pairs` takes it."""
    network = fmt.to_network()
    return pairs.Summand(network.equation, tuple(network.arrays.values()))


@singledispatch
def products_of(fmt: Format) -> tuple[DrawnProduct, ...]:
    """What a picture shows of a format: its equation, arrays and sizes."""
    sizes = fmt.equation.sizes([tuple(a.shape) for a in fmt.arrays.values()])
    return (numbered(fmt.equation, sizes, tuple(fmt.arrays), _site_names(fmt.modes)),)


def _site_names(modes: tuple[str, ...]) -> frozenset[str]:
    """Names of the site modes, where the last two modes are those of a weight, or split."""
    if not all(mode in ("out", "in") or mode[0] == "(" for mode in modes[-2:]):
        return frozenset()
    return frozenset({*modes[:-2], *words(modes[:-2])})


@singledispatch
def rows_at(fmt: Format, index: Mapping[int, int]) -> Format:
    """The tensor at one index of each of the modes at these positions, which go."""
    for k in sorted(index, reverse=True):
        fmt = fmt._restrict(k, range(index[k], index[k] + 1))._squeeze(k)
    return fmt


@singledispatch
def entries_of(fmt: Factored, index: IndexColumns) -> Array:
    """Entries of one network at index columns that are within its modes: ``(entry,)``."""
    return entries_of_network(fmt.equation, list(fmt.arrays.values()), index)
