"""Coordinates of the long modes of a stack, from a few passes of skinny products over its slices.

Slices are visited one at a time, in any order, anywhere. With ``k = rank + 10`` columns a pass
costs ``2 k · numbers`` flops, and everything after it is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from tdecomp._threads import threads_for
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
    sketched_rows,
    sparse_sketch,
    still_to_win,
    truncated_svd,
)
from tdecomp.modes import name_modes
from tdecomp.passes.coordinates import Frame
from tdecomp.passes.pieces import is_cut_finely
from tdecomp.passes.slices import are_light, slices_at_once, sum_over
from tdecomp.passes.tree import TreeSum, added
from tdecomp.progress import Progress, part, silent
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
_WIDER = 4  # times the width: the sparse sketch of which the leading rows are kept
_STEPS = 1  # of the leading vectors of all products side by side
_PRODUCTS = 3  # of all slices: of this pass and the last, and side by side
_PASSES = 17  # at most
_UNSEEN = 1e-4  # share of the energy: rounding of sums of squares in float32
_SLACK = 4  # of what the directions outside a basis may hold
_START = 1 << 32  # what the random columns of the start are drawn by, beside the slices
_LEFT = 0.65  # of the progress, after each pass
_DEAR = 12  # times SETTLED: the excess at which a thrifty stream ends, some 3 times what is missed

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


def streamed(x: Array | Stack, ranks: Ranks, seed: int, progress: Progress = silent) -> Stream:
    """All passes over the slices of ``(..., out, in)``, or thrifty ones over those of a stack.

    Nobody knows how many there will be: each brings the progress a good third nearer to its end.

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
    width = OVERSAMPLES + max(rank or 0 for rank in ranks)
    products = math.prod(x.shape[:-2]) * width * max(x.shape[-2:])
    if isinstance(x, Stack):
        x.require(_numbers(x, width), f"a sketch {width} columns wide")
        stream = replace(stream, thrifty=x.has_room_for(_numbers(x, width + width // 2)))
    while not stream.done:
        left = _LEFT**stream.passes
        over = part(progress, 1 - left, 1 - _LEFT * left)
        seen = sum_over(x, stream._of_slice(), over)
        with nullcontext() if are_light(x) else threads_for(products):
            stream = stream.after(seen)
    return stream


def _numbers(x: Stack, width: int) -> int:
    """Held at once by the passes over a stack."""
    slices = slices_at_once(x) * math.prod(x.shape[-2:])
    skinny = width * max(x.shape[-2:])
    sketches = _WIDER * (1 + x.n_sites.bit_length())  # their sum so far, and the next
    return slices + (sketches + _PRODUCTS * x.n_sites) * skinny


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


@sendable
@dataclass(frozen=True)
class Seen:
    """What one pass has seen of some slices: states of different slices add up, in any order.

    Attributes
    ----------
    energies
        ``‖X_l‖²`` of every slice visited in the first pass, None in others.
    products
        Skinny products of the slices, where a pass needs each of them.
    total
        Their sum, where it needs no more.
    """

    energies: Mapping[int, float | None] = field(default_factory=dict)
    products: Mapping[int, Array] = field(default_factory=dict)
    total: TreeSum = field(default_factory=TreeSum)

    def __add__(self, other: Seen) -> Seen:
        if twice := self.energies.keys() & other.energies.keys():
            raise ArgumentError(f"slice {min(twice)} was visited twice in one pass")
        return Seen(
            {**self.energies, **other.energies},
            {**self.products, **other.products},
            self.total + other.total,
        )


@dataclass(frozen=True)
class Stream:
    """Where the passes over the slices of a stack stand.

    The first pass sketches: ``Q2`` spans the rows of ``Σ_l Ω_l X_l`` with random Ω ([halko2011]).
    Then by turns ``A_l = X_l Q2`` gives ``Q1``, the leading left singular vectors of all ``A_l``
    side by side, and ``B_l = Q1ᴴ X_l`` gives ``Q2`` and the core. Where only ``in`` has a rank, all
    ``A_l`` stand on top of each other, ``Q1`` has rows for every slice and the ``B_l`` are summed;
    where only ``out`` has one, the slices are turned.

    Each of these passes gives a core, and the last is enough when more are expected to save less
    than 1e-3 of the energy left out: by what the last two saved (`tdecomp.linalg.still_to_win`), or
    by the spectra (`tdecomp.linalg.excess`, the power being one less than the passes).

    A thrifty stream begins with the leading rows of a sparse sketch four times as wide
    ([martinsson2020]). Its bases, where both sides have a rank, are half as wide again, and some
    4e-3 of the energy are not worth a pass to it: three are the rule.

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

        def seen(pair: tuple[int, Array]) -> Seen:
            site, matrix = _checked_pair(pair)
            self._check(site, matrix)
            return work(site, detached(working(matrix)))

        return added(chain([Seen()], map(seen, slices)))

    def _of_slice(self) -> Callable[[int, Array], Seen]:
        """What this pass makes of a slice."""
        if self.step == "sketch":
            sketch = _sparse_sketch if self.thrifty else _sketch
            return partial(sketch, self.seed, self._sketch_width, self._turned)
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
        if missing := set(range(math.prod(self.shape[:-2]))) - seen.energies.keys():
            raise ArgumentError(f"slice {min(missing)} was not visited in this pass")
        stream = replace(self, passes=self.passes + 1)
        if self.step == "sketch":
            energies = tuple(seen.energies[site] or 0.0 for site in sorted(seen.energies))
            right = self._right_of(seen.total.value, energies)
            return replace(stream, step="left", right=right, energies=energies)
        parts = [seen.products[site] for site in sorted(seen.products)]
        if self.step == "left":
            return stream._after_left(parts)
        return stream._after_right(parts) if self._two_sided else stream._after_sum(seen.total)

    def _right_of(self, sketch: Array, energies: tuple[float, ...]) -> Array:
        """Orthonormal basis of the leading rows of the sum of all sketches."""
        if not math.isfinite(math.fsum(energies)) or not bool(_all_finite(sketch)):
            raise DataError("the array to decompose contains NaN or Inf")
        if not self.thrifty:
            return orthonormal(adjoint(sketch))
        width = self._width(0 if self._turned else 1)
        return sketched_rows(sketch, width, _drawn(self.seed, _START))

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

    @property
    def _sketch_width(self) -> int:
        width = self._width(0 if self._turned else 1)
        return _WIDER * width | 1 if self.thrifty else width

    def _after_left(self, parts: list[Array]) -> Stream:
        xp = namespace(*parts)
        if self._two_sided:
            left = _leading(_beside(parts), self._width(0), self._seen(0))
            core = xp.stack([adjoint(left) @ p for p in parts])  # (sites, k1, k2)
        else:
            core = xp.stack(parts)  # (sites, out, k2)
            tall = orthonormal(xp.reshape(core, (-1, core.shape[2])))
            left = xp.reshape(tall, core.shape)
        missed = self._has_missed([adjoint(p) for p in parts], 0 if self._turned else 1)
        return replace(self, left=left)._with(core, "right", missed)

    def _after_right(self, parts: list[Array]) -> Stream:
        across = _beside([adjoint(p) for p in parts])
        right = _leading(across, self._width(1), self._seen(1))
        core = namespace(*parts).stack([p @ right for p in parts])  # (sites, k1, k2)
        missed = self._has_missed(parts, 0)
        return replace(self, right=right)._with(core, "left", missed)

    def _seen(self, side: int) -> Array | None:
        """What the last basis of a side has of the products that the next one is made from.

        Those are on the basis of the other side, as the core of both is: nothing is multiplied.
        """
        if self.core is None:
            return None
        xp = namespace(self.core)
        core = xp.reshape(self.core, (-1, *self.core.shape[-2:]))  # (sites, k1, k2)
        turned = core if side else xp.conj(xp.permute_dims(core, (0, 2, 1)))
        return xp.reshape(turned, (-1, turned.shape[2]))

    def _after_sum(self, total: TreeSum) -> Stream:
        u, s, vh = truncated_svd(total.value, min(total.value.shape))  # of (k2, in)
        core = self.left @ (u * s)  # (sites, out, k2)
        return replace(self, right=adjoint(vh))._with(core, "left")

    def _with(self, core: Array, after: Literal["left", "right"], missed: bool = False) -> Stream:
        """The stream with the core ``(sites, ...)`` of its two bases: done, or before a step."""
        sides = {1: 0, 2: 1} if self._two_sided else {2: 0 if self._turned else 1}
        spectra = {side: to_numpy(singular_values(unfold(core, k))) for k, side in sides.items()}
        kept = min(float(np.sum(s[: self.ranks[side]] ** 2)) for side, s in spectra.items())
        step = "done" if self._is_settled(kept, spectra, missed) else after
        captured = sum_of_squares(core)
        if self._turned:
            core = namespace(core).permute_dims(core, (0, 2, 1))
        core = namespace(core).reshape(core, (*self.shape[:-2], *core.shape[1:]))
        return replace(
            self, step=step, core=core, captured=captured, kept=kept, won=kept - self.kept
        )

    def _has_missed(self, parts: list[Array], side: int) -> bool:
        """Whether the basis of a side, products ``(k, ...)`` with which these are, misses much.

        A dense sketch misses nothing, a sparse one may lose what meets in one of its rows. More is
        then outside than the directions there can hold if none is stronger than the weakest of the
        basis: only where that is next to nothing, elsewhere noise hides it.
        """
        if not self.thrifty or self.energy == 0:
            return False
        scale = 1 / math.sqrt(self.energy)
        gram: Any = sum(p @ adjoint(p) for p in (part * scale for part in parts))
        inside = to_numpy(namespace(gram).linalg.eigvalsh(gram)).astype(np.float64)
        outside = 1 - float(np.sum(inside))
        room = _SLACK * (self.shape[side - 2] - len(inside)) * float(inside[0])
        return outside > max(room, _UNSEEN)

    def _is_settled(self, kept: float, spectra: Mapping[int, np.ndarray], missed: bool) -> bool:
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
        if missed:
            return False
        enough = SETTLED
        if self._wide and power > 1:
            power, enough = power + (len(self.energies) > 1), _DEAR * SETTLED
        for side, s in spectra.items():
            rank, n = self.ranks[side] or 0, self.shape[side - 2]
            outside = left_out(self.energy, s, n, dtype)
            if excess(s, rank, outside, power, dtype, self._sketch_width) > enough:
                return False
        return True


@sendable
def _sketch(seed: int, width: int, turned: bool, site: int, given: Array) -> Seen:
    """``Ω_l X_l`` and ``‖X_l‖²``, by rows that stay in the cache for both."""
    matrix = given.T if turned else given
    n = matrix.shape[0]
    test = random_matrix(_drawn(seed, site), (width, n), matrix)
    step = max(_ROWS, 1 + _TILE // matrix.shape[1])
    total: Any = None
    energy = 0.0
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        part = test[:, rows] @ matrix[rows, :]
        total = part if total is None else total + part
        energy += quick_sum_of_squares(matrix[rows, :])
    return Seen({site: energy}, total=TreeSum.of(site, total))


@sendable
def _sparse_sketch(seed: int, width: int, turned: bool, site: int, given: Array) -> Seen:
    """The same with a sparse Ω_l."""
    sketch = sparse_sketch(given.T if turned else given, width, _drawn(seed, site))
    return Seen({site: quick_sum_of_squares(given)}, total=TreeSum.of(site, sketch))


def _drawn(seed: int, of: int) -> np.random.Generator:
    """What the random numbers of a slice are drawn from, or those of the start."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(of,)))


@sendable
def _on_right(right: Array, turned: bool, site: int, matrix: Array) -> Seen:
    """``X_l Q2``, ``(out, k2)``."""
    return Seen({site: None}, {site: (matrix.T if turned else matrix) @ right})


@sendable
def _on_left(left: Array | OfSlices[Array], turned: bool, site: int, given: Array) -> Seen:
    """``Q1ᴴ X_l``, or with rows of its own ``Q1_lᴴ X_l``, of which only the sum is asked."""
    matrix = given.T if turned else given
    if isinstance(left, OfSlices):
        return Seen({site: None}, total=TreeSum.of(site, adjoint(left[site]) @ matrix))
    return Seen({site: None}, {site: adjoint(left) @ matrix})


def _checked_pair(pair: tuple[int, Array]) -> tuple[int, Array]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ArgumentError("slices are visited as (position, matrix): enumerate them")
    return pair


def _leading(matrix: Array, width: int, seen: Array | None) -> Array:
    """Leading left singular vectors; of a wide matrix from a block Krylov space.

    That begins with what is `seen` already, ``matrixᴴ Q`` of some basis Q.
    """
    width = min(width, *matrix.shape)
    if matrix.shape[1] <= 2 * (width + OVERSAMPLES) or matrix.shape[0] <= 4 * (width + OVERSAMPLES):
        return left_basis(matrix, 0)[0][:, :width]
    rng = np.random.default_rng(0)
    *_, (q, b) = islice(krylov_steps(matrix, width + OVERSAMPLES, rng, seen), 1 + _STEPS)
    return q @ left_basis(b, 0)[0][:, :width]


def _beside(parts: list[Array]) -> Array:
    return namespace(*parts).concat(parts, axis=1)


def _all_finite(array: Array) -> Array:
    xp = namespace(array)
    return xp.all(xp.isfinite(array))


def _found(array: Array | None) -> Array:
    assert array is not None, "a stream that is not done"
    return array
