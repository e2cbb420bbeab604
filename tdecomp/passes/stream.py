"""Coordinates of the long modes of a stack, from a few passes of skinny products over its slices.

Slices are visited one at a time, in any order, anywhere. With ``k = rank + 10`` columns a pass
costs ``2 k · numbers`` flops, and everything after it is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np

from tdecomp._xp import (
    Array,
    adjoint,
    detached,
    namespace,
    quick_sum_of_squares,
    sum_of_squares,
    to_numpy,
    working,
)
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Tucker
from tdecomp.linalg import (
    SETTLED,
    excess,
    is_cheap,
    krylov_steps,
    left_basis,
    left_out,
    negligible,
    orthonormal,
    random_matrix,
    singular_values,
    still_to_win,
    truncated_svd,
)
from tdecomp.modes import name_modes
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.pieces import is_cut_finely
from tdecomp.passes.slices import each_slice, slices_at_once
from tdecomp.stack import Stack
from tdecomp.tasks import OfSlices, sendable
from tdecomp.tensor import unfold

__all__ = [
    "OVERSAMPLES",
    "Ranks",
    "Seen",
    "Stream",
    "streamed",
    "worth_sketching",
]

OVERSAMPLES = 10  # columns beyond the rank
FIRST_WIDTH = 32  # ranks seen by the first sketch for an error or a budget, doubled as needed
CLOSE = 1e-5  # share of the energy below which what a sketch leaves out has to be measured
_TILE = 1 << 21  # numbers of a slice that are sketched and squared together
_ROWS = 256  # of them at least
_STEPS = 2  # of the leading vectors of all products side by side
_PRODUCTS = 3  # of all slices: of this pass and the last, and side by side
_PASSES = 17  # at most

Ranks = tuple[int | None, int | None]
"""Of ``out`` and ``in``; None: that mode keeps its size and is not shared."""


def worth_sketching(shape: tuple[int, ...], ranks: Ranks) -> Ranks | None:
    """The ranks of those long modes whose exact basis would cost more than a few skinny products.

    None if there are none.
    """
    numbers = math.prod(shape)

    def worth(n: int, rank: int | None) -> int | None:
        return rank if rank and not is_cheap((n, numbers // n), rank + OVERSAMPLES) else None

    out, inp = (worth(n, rank) for n, rank in zip(shape[-2:], ranks, strict=True))
    return None if out is None and inp is None else (out, inp)


def streamed(x: Array | Stack, ranks: Ranks, seed: int) -> Stream:
    """All passes over the slices of ``(..., out, in)``, or thrifty ones over those of a stack.

    Raises
    ------
    ArgumentError
        A stack whose `max_memory` the sketches would exceed.
    DataError
        NaN or Inf, seen in the sketch.
    """
    if not isinstance(x, Stack) and None in ranks and is_cut_finely(x.shape):
        return _streamed_rows(x, ranks, seed)
    stream = Stream(tuple(int(n) for n in x.shape), ranks, seed)
    if isinstance(x, Stack):
        width = OVERSAMPLES + max(rank or 0 for rank in ranks)
        x.require(_numbers(x, width), f"a sketch {width} columns wide")
        stream = replace(stream, thrifty=x.has_room_for(_numbers(x, width + width // 2)))
    while not stream.done:
        with each_slice(x, stream._of_slice()) as found:
            stream = stream.after(Seen.of(found))
    return stream


def _numbers(x: Stack, width: int) -> int:
    """Held at once by the passes over a stack."""
    slices = slices_at_once(x) * math.prod(x.shape[-2:])
    return slices + _PRODUCTS * x.n_sites * width * max(x.shape[-2:])


def _streamed_rows(x: Array, ranks: Ranks, seed: int) -> Stream:
    """`streamed` for one long mode of an array whose slices are small: all of them as one.

    The basis is of the rows along that mode, whatever slices these are in.
    """
    xp, shape = namespace(x), tuple(int(n) for n in x.shape)
    turned = ranks[1] is None
    rows = xp.moveaxis(x, -2, -1) if turned else x
    flat = xp.reshape(rows, (-1, rows.shape[-1]))
    whole = Stream(tuple(flat.shape), (None, ranks[0] if turned else ranks[1]), seed)
    while not whole.done:
        whole = whole.after(whole.visit([(0, flat)]))
    core = xp.reshape(whole.core, (*rows.shape[:-1], -1))
    return replace(
        whole, shape=shape, ranks=ranks, core=xp.moveaxis(core, -1, -2) if turned else core
    )


@dataclass(frozen=True)
class Seen:
    """What one pass has seen of some slices: states of different slices add up, in any order.

    Attributes
    ----------
    products
        The skinny product of every slice visited.
    energies
        ``‖X_l‖²``, in the first pass.
    """

    products: Mapping[int, Array] = field(default_factory=dict)
    energies: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, slices: Iterable[tuple[int, Array, float | None]]) -> Seen:
        """From what was seen of each slice: its position, product and energy."""
        products, energies = {}, {}
        for site, product, energy in slices:
            products[site] = product
            if energy is not None:
                energies[site] = energy
        return cls(products, energies)

    def __add__(self, other: Seen) -> Seen:
        if twice := self.products.keys() & other.products.keys():
            raise ArgumentError(f"slice {min(twice)} was visited twice in one pass")
        return Seen({**self.products, **other.products}, {**self.energies, **other.energies})


@dataclass(frozen=True)
class Stream:
    """Where the passes over the slices of a stack stand.

    The first pass sketches: ``Q2`` spans the rows of ``Σ_l Ω_l X_l`` with random Ω
    ([halko2011]). Then by turns ``A_l = X_l Q2`` gives ``Q1``, the leading left singular vectors of
    all ``A_l`` side by side, and ``B_l = Q1ᴴ X_l`` gives ``Q2`` and the core. Where only ``in`` has
    a rank, all ``A_l`` stand on top of each other, ``Q1`` has rows for every slice and the ``B_l``
    are summed; where only ``out`` has one, the slices are turned.

    Each of these passes gives a core, and the last is enough when more are expected to save less
    than 1e-3 of the energy left out: by what the last two saved (`tdecomp.linalg.still_to_win`), or
    by the spectra (`tdecomp.linalg.excess`, the power being one less than the passes).

    The bases of a thrifty stream of two ranks are half as wide again, for fewer passes.

    Parameters
    ----------
    shape
        Of the stack, ``(..., out, in)``.
    ranks
        Of ``out`` and ``in``; None for a mode that keeps its size.
    seed
        Of the sketch. Ω is drawn for each slice by itself, from the seed and its position.
    thrifty
        Whether reading a slice costs as much as a product with it.

    Examples
    --------
    Slices visited in two places, in any order:

    >>> x = np.ones((4, 30, 20)) * np.arange(20.0)
    >>> stream = Stream(x.shape, (2, 2))
    >>> while not stream.done:
    ...     here, there = stream.visit([(3, x[3]), (0, x[0])]), stream.visit([(2, x[2]), (1, x[1])])
    ...     stream = stream.after(here + there)
    >>> stream.core.shape, stream.passes
    ((4, 12, 12), 3)

    What is left is a small format, for any decomposition:

    >>> from tdecomp.decomposition import tucker2
    >>> tucker2(stream.tensor, rank=1).tensor.shape
    (4, 30, 20)
    """

    shape: tuple[int, ...]
    ranks: Ranks
    seed: int = 0
    thrifty: bool = False
    step: Literal["sketch", "left", "right", "done"] = "sketch"
    left: Array | None = field(default=None, repr=False)
    right: Array | None = field(default=None, repr=False)
    core: Array | None = field(default=None, repr=False)
    energies: tuple[float, ...] = field(default=(), repr=False)
    captured: float = 0.0
    kept: float = 0.0
    won: float = 0.0
    passes: int = 0

    def __post_init__(self):
        for name, value in (("shape", self.shape), ("ranks", self.ranks)):
            if not isinstance(value, tuple):
                raise ArgumentError(f"{name} must be a tuple, not a {type(value).__name__}")
        if len(self.shape) < 2 or len(self.ranks) != 2 or self.ranks == (None, None):
            raise ArgumentError(
                f"a stream of {self.shape} with ranks {self.ranks} needs (..., out, in) and a rank"
                " of out, of in, or of both"
            )
        for name, n, rank in zip(("out", "in"), self.shape[-2:], self.ranks, strict=True):
            if rank is not None and not (isinstance(rank, int | np.integer) and 1 <= rank <= n):
                raise ArgumentError(f"rank {rank} of {name!r} must be 1 to its size {n}")

    @property
    def done(self) -> bool:
        """Whether `core` and `frame` are final."""
        return self.step == "done"

    @property
    def energy(self) -> float:
        """``‖X‖²``."""
        return math.fsum(self.energies)

    @property
    def outside(self) -> float:
        """``‖X‖² − ‖core‖²``, to about 1e-7 of ``‖X‖²``."""
        return max(0.0, self.energy - self.captured)

    @property
    def small(self) -> Array:
        """`core`, once done."""
        return _found(self.core)

    @property
    def frame(self) -> Frame:
        """Coordinates of `core`, once done."""
        out, inp = len(self.shape) - 2, len(self.shape) - 1
        bases = {inp: _found(self.right)} if self.ranks[1] is not None else {}
        if self.ranks[0] is not None:
            bases[out] = _found(self.right if self._turned else self.left)
        plain = None if self._turned else out  # of rows, the basis is of their conjugates
        lift = {k: q if k == plain else adjoint(q).T for k, q in bases.items()}
        return Frame(lift, {k: adjoint(q) for k, q in lift.items()})

    @property
    def tensor(self) -> Tucker:
        """What the coordinates keep of the tensor, once done: bases for the modes with a rank."""
        if self.core is None:
            raise ArgumentError(f"the stream is not done: after pass {self.passes} comes another")
        bases = tuple(self.frame.lift.get(k) for k in range(len(self.shape)))
        return Tucker(name_modes(len(self.shape), None), self.core, bases)

    def visit(self, slices: Iterable[tuple[int, Array]]) -> Seen:
        """One pass over some of the slices, given as ``(position in C order, matrix)``."""
        work = self._of_slice()

        def seen(pair: tuple[int, Array]) -> _Product:
            site, matrix = _checked_pair(pair)
            self._check(site, matrix)
            return work(site, detached(working(matrix)))

        return Seen.of(map(seen, slices))

    def _of_slice(self) -> Callable[[int, Array], _Product]:
        """What this pass makes of a slice."""
        if self.step == "sketch":
            return partial(_sketch, self.seed, self._width(0 if self._turned else 1), self._turned)
        if self.step == "left":
            return partial(_on_right, _found(self.right), self._turned)
        left: Any = self.left
        if not self._two_sided:
            left = OfSlices({i: left[i, ...] for i in range(left.shape[0])})
        return partial(_on_left, left, self._turned)

    def after(self, seen: Seen) -> Stream:
        """The stream once every slice has been visited."""
        if not isinstance(seen, Seen):
            raise ArgumentError(f"after takes what visit gave, not a {type(seen).__name__}")
        if missing := set(range(math.prod(self.shape[:-2]))) - seen.products.keys():
            raise ArgumentError(f"slice {min(missing)} was not visited in this pass")
        parts = [seen.products[site] for site in sorted(seen.products)]
        stream = replace(self, passes=self.passes + 1)
        if self.step == "sketch":
            energies = tuple(seen.energies[site] for site in sorted(seen.energies))
            return replace(stream, step="left", right=_sketched(parts, energies), energies=energies)
        return stream._after_left(parts) if self.step == "left" else stream._after_right(parts)

    def _check(self, site: int, matrix: Array) -> None:
        n_sites = math.prod(self.shape[:-2])
        if not 0 <= site < n_sites or tuple(matrix.shape) != self.shape[-2:]:
            raise ArgumentError(
                f"slice {site} of shape {tuple(matrix.shape)} does not belong to a stack of"
                f" {n_sites} slices {self.shape[-2:]}"
            )

    @property
    def _two_sided(self) -> bool:
        return None not in self.ranks

    @property
    def _turned(self) -> bool:
        return self.ranks[1] is None

    def _width(self, side: int) -> int:
        columns = (self.ranks[side] or 0) + OVERSAMPLES
        return min(columns + columns // 2 * self._wide, self.shape[side - 2])

    @property
    def _wide(self) -> bool:
        return self.thrifty and self._two_sided

    def _after_left(self, parts: list[Array]) -> Stream:
        xp = namespace(*parts)
        if self._two_sided:
            left = _leading(_beside(parts), self._width(0))
            core = xp.stack([adjoint(left) @ p for p in parts])  # (sites, k1, k2)
        else:
            core = xp.stack(parts)  # (sites, out, k2)
            tall = orthonormal(xp.reshape(core, (-1, core.shape[2])))
            left = xp.reshape(tall, core.shape)
        return replace(self, left=left)._with(core, "right")

    def _after_right(self, parts: list[Array]) -> Stream:
        xp = namespace(*parts)
        if self._two_sided:
            right = _leading(_beside([adjoint(p) for p in parts]), self._width(1))
            core = xp.stack([p @ right for p in parts])  # (sites, k1, k2)
        else:
            total = _sum(parts)  # (k2, in)
            u, s, vh = truncated_svd(total, min(total.shape))
            right = adjoint(vh)
            core = self.left @ (u * s)  # (sites, out, k2)
        return replace(self, right=right)._with(core, "left")

    def _with(self, core: Array, after: Literal["left", "right"]) -> Stream:
        """The stream with the core ``(sites, ...)`` of its two bases: done, or before a step."""
        sides = {1: 0, 2: 1} if self._two_sided else {2: 0 if self._turned else 1}
        spectra = {side: to_numpy(singular_values(unfold(core, k))) for k, side in sides.items()}
        kept = min(float(np.sum(s[: self.ranks[side]] ** 2)) for side, s in spectra.items())
        step = "done" if self._is_settled(kept, spectra) else after
        captured = sum_of_squares(core)
        if self._turned:
            core = namespace(core).permute_dims(core, (0, 2, 1))
        core = namespace(core).reshape(core, (*self.shape[:-2], *core.shape[1:]))
        return replace(
            self, step=step, core=core, captured=captured, kept=kept, won=kept - self.kept
        )

    def _is_settled(self, kept: float, spectra: Mapping[int, np.ndarray]) -> bool:
        """Whether another pass is not worth it."""
        assert self.left is not None
        power, dtype = self.passes - 1, self.left.dtype
        if self.passes >= _PASSES or kept == 0:
            return True
        won, lost = kept - self.kept, max(0.0, self.energy - kept)
        if power > (2 if self._wide else 3):
            ratio = won / self.won if min(won, self.won) > 0 else 0.0
            more = still_to_win(won, math.sqrt(ratio))  # they slow down
            if won <= negligible(dtype) * kept or more <= SETTLED * lost:
                return True
        for side, s in spectra.items():
            outside = left_out(self.energy, s, self.shape[side - 2], dtype)
            if excess(s, self.ranks[side] or 0, outside, power, dtype) > SETTLED:
                return False
        return True


_Product = tuple[int, Array, float | None]
"""Position of a slice, its product in a pass, and its energy in the first."""


@sendable
def _sketch(seed: int, width: int, turned: bool, site: int, given: Array) -> _Product:
    """``Ω_l X_l`` and ``‖X_l‖²``, by rows that stay in the cache for both."""
    matrix = given.T if turned else given
    n = matrix.shape[0]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(site,)))
    test = random_matrix(rng, (width, n), matrix)
    step = max(_ROWS, 1 + _TILE // matrix.shape[1])
    total: Any = None
    energy = 0.0
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        part = test[:, rows] @ matrix[rows, :]
        total = part if total is None else total + part
        energy += quick_sum_of_squares(matrix[rows, :])
    return site, total, energy


@sendable
def _on_right(right: Array, turned: bool, site: int, matrix: Array) -> _Product:
    """``X_l Q2``, ``(out, k2)``."""
    return site, (matrix.T if turned else matrix) @ right, None


@sendable
def _on_left(left: Array | OfSlices[Array], turned: bool, site: int, matrix: Array) -> _Product:
    """``Q1ᴴ X_l``, or with rows of its own ``Q1_lᴴ X_l``."""
    rows = left[site] if isinstance(left, OfSlices) else left
    return site, adjoint(rows) @ (matrix.T if turned else matrix), None


def _checked_pair(pair: tuple[int, Array]) -> tuple[int, Array]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ArgumentError("slices are visited as (position, matrix): enumerate them")
    return pair


def _sketched(parts: list[Array], energies: tuple[float, ...]) -> Array:
    """Orthonormal basis of the rows of the sum of all sketches."""
    xp = namespace(*parts)
    total = _sum(parts)
    if not math.isfinite(math.fsum(energies)) or not bool(xp.all(xp.isfinite(total))):
        raise DataError("the array to decompose contains NaN or Inf")
    return orthonormal(adjoint(total))


def _leading(matrix: Array, width: int) -> Array:
    """Leading left singular vectors; of a wide matrix from a block Krylov space of three steps."""
    width = min(width, *matrix.shape)
    if matrix.shape[1] <= 2 * (width + OVERSAMPLES) or matrix.shape[0] <= 4 * (width + OVERSAMPLES):
        return left_basis(matrix, 0)[0][:, :width]
    rng = np.random.default_rng(0)
    *_, (q, b) = islice(krylov_steps(matrix, width + OVERSAMPLES, rng), 1 + _STEPS)
    return q @ left_basis(b, 0)[0][:, :width]


def _beside(parts: list[Array]) -> Array:
    return namespace(*parts).concat(parts, axis=1)


def _sum(parts: list[Array]) -> Array:
    """In the order of the sites, whoever visited them."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _found(array: Array | None) -> Array:
    assert array is not None, "a stream that is not done"
    return array
