"""Two models tensor by tensor: tuned minus base, lazily, in the coordinates of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np

from .._xp import quick_sum_of_squares
from ..errors import DataError, SiteError
from . import safetensors
from .dtypes import DTYPES
from .opening import Checkpoint
from .parts import Part
from .pieces import Overlap, Piece, Span, TensorIndex, spans
from .storage import Range

__all__ = ["Empty", "Grown", "Pair", "Reading"]

_MANTISSA_BITS = {"BF16": 7, "F16": 10}
_SMALLEST = {"BF16": -126, "F16": -14}  # exponents of normal numbers; subnormals share their ulp

Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Where a result is written: an uninitialised array of a shape and dtype."""


@dataclass(frozen=True)
class Reading:
    """How a paired tensor is read.

    Attributes
    ----------
    base
        Its name in the base model.
    tuned
        Its name in the tuned model, where it has the same shape; empty: see `pieces`.
    pieces
        What of the tuned model it is made of; they do not overlap.
    """

    base: str
    tuned: str = ""
    pieces: tuple[Piece, ...] = ()

    @property
    def tuned_names(self) -> tuple[str, ...]:
        """Names of the tuned model, each once."""
        return tuple(dict.fromkeys(piece.tensor for piece in self.pieces)) or (self.tuned,)

    def inside(self, wanted: Sequence[Span]) -> Iterator[tuple[Piece, Overlap]]:
        """Pieces that hold something of the wanted spans of the base tensor, and what."""
        low, high = wanted[0] if wanted else (0, 1)
        for piece in self.pieces:  # of hundreds of experts most lie elsewhere
            if not piece.block or (piece.block[0][0] < high and low < piece.block[0][1]):
                block = piece.inside(wanted)
                if block is not None:
                    yield piece, block


@dataclass(frozen=True)
class Grown:
    """A vocabulary with more rows in one model than in the other.

    Attributes
    ----------
    rows
        Rows that both have, which are compared.
    base_rows, tuned_rows
        Rows of each.
    """

    rows: int
    base_rows: int
    tuned_rows: int


class _Difference(NamedTuple):
    """One tile of a subtraction; all of it may be overwritten by the next one."""

    moved: np.ndarray
    before: np.ndarray
    after: np.ndarray
    code: str


class _OpenedPair(NamedTuple):
    """Base and tuned numbers of one block of a result, not yet read."""

    place: tuple[slice, ...] | None
    base: Part
    tuned: Part
    code: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """A base model and a tuned one, tensor by tensor; base names are the names.

    Parameters
    ----------
    base, tuned
        The two models.
    common
        Floating tensors that both hold whole.
    only_base, only_tuned
        Floating tensors in one of them, as that one writes their names.
    reshaped
        ``(name, base shape, tuned shape)`` where the shapes differ.
    tied
        ``(head, embedding)``: an output head that only one model stores, and the embedding that
        the other one uses in its place. Not in `common`; `delta` takes it.
    ignored
        Tensors that are not floating point in one of them.
    alike
        Base to tuned names of those in `ignored` that both models store alike, in shape and dtype.
    grown
        Vocabularies with more rows in one of them; `delta` takes the rows that both have.
    readings
        For every name in `common`, `tied` and `grown`, how it is read.
    doubts
        Why tensors of either side that look as if they had a partner were not paired.
    refused
        Why tensors of either side, whose codes are not read, are not paired.
    """

    base: Checkpoint
    tuned: Checkpoint
    common: tuple[str, ...]
    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    tied: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    alike: Mapping[str, str] = field(default_factory=dict[str, str])
    grown: Mapping[str, Grown] = field(default_factory=dict[str, Grown])
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    doubts: Mapping[str, str] = field(default_factory=dict[str, str])
    refused: Mapping[str, str] = field(default_factory=dict[str, str])

    def base_name(self, name: str) -> str:
        """Name of a paired tensor in the base model."""
        return self._reading(name).base

    def tuned_names(self, name: str) -> tuple[str, ...]:
        """Names in the tuned model of what a paired tensor is compared with: usually one."""
        return self._reading(name).tuned_names

    def delta(
        self, name: str, index: tuple[slice | int, ...] = (), *, empty: Empty = np.empty
    ) -> np.ndarray:
        """Tuned minus base, subtracted after widening, tile by tile.

        Parameters
        ----------
        name
            One of `common`, a head in `tied`, or of `grown` the rows that both have.
        index
            The part to read.
        empty
            ``empty(shape, dtype)`` gives the memory to write into, such as pinned memory.

        Returns
        -------
        ndarray
            float32; float64 if either model stores float64.

        Raises
        ------
        DataError
            If a value is NaN or infinite; names the tensor and the file.
        """
        out = self._room(name, index, empty)
        with _quiet():
            for step in self._steps(name, index, out):
                self._check(step.moved, name, index)
        return out

    def delta_and_rounding(
        self, name: str, index: tuple[slice | int, ...] = (), *, empty: Empty = np.empty
    ) -> tuple[np.ndarray, float]:
        """`delta` and `rounding` from one reading of both files; parameters as there."""
        out, total = self._room(name, index, empty), 0.0
        with _quiet():
            for step in self._steps(name, index, out):
                self._check(step.moved, name, index)
                total += _rounding(step)
        return out, total

    def ahead(self, name: str, index: tuple[slice | int, ...] = ()) -> Iterator[Range]:
        """What reading a delta will ask of a server; nothing where both models are on a disk."""
        reading = self._reading(name)
        if not reading.pieces:
            yield from self.base.ahead(reading.base, index)
            yield from self.tuned.ahead(reading.tuned, index)
            return
        for piece, block in reading.inside(spans(index, self.base.shape(reading.base))):
            yield from self.base.ahead(reading.base, block.base)
            yield from self.tuned.ahead(piece.tensor, block.tuned)

    def bytes_per_number(self, name: str) -> float:
        """What both files store for a number of a delta."""
        reading = self._reading(name)
        tuned = max(self.tuned.bytes_per_number(one) for one in reading.tuned_names)
        return self.base.bytes_per_number(reading.base) + tuned

    def energy(self, name: str, index: tuple[slice | int, ...] = ()) -> float:
        """Squared norm of `delta`, which is never in memory whole; parameters and errors as there.

        To about 1e-7 in float32.
        """
        total = 0.0
        with _quiet():
            for step in self._steps(name, index):
                self._check(step.moved, name, index)
                total += quick_sum_of_squares(step.moved)
        return total

    def known_delta(self, name: str, index: tuple[slice | int, ...] = ()) -> np.ndarray:
        """As `delta`, for a tensor that nobody asked for: nothing is refused.

        0 where both models hold the same infinity, or both NaN (a mask); elsewhere what is not
        finite stays so.
        """
        out = self._room(name, index, np.empty)
        with _quiet():
            for step in self._steps(name, index, out):
                _forgive(step)
        return out

    def known_energy(self, name: str, index: tuple[slice | int, ...] = ()) -> float | None:
        """Squared norm of `known_delta`, in tiles; None where it is not finite."""
        total = 0.0
        with _quiet():
            for step in self._steps(name, index):
                _forgive(step)
                if not _is_finite(step.moved):
                    return None
                total += quick_sum_of_squares(step.moved)
        return total

    def extra_energy(self, name: str) -> float | None:
        """Squared norm of the rows of a grown vocabulary that only one model has; None if NaN."""
        grown, reading = self.grown[name], self._reading(name)
        in_base = grown.base_rows > grown.tuned_rows
        model = self.base if in_base else self.tuned
        own = reading.base if in_base else reading.tuned_names[0]
        with _quiet():
            total = quick_sum_of_squares(model.read(own, (slice(grown.rows, None),)))
        return float(total) if np.isfinite(total) else None

    def identical(self, name: str) -> bool:
        """Whether a tensor in `alike` has the same bytes in both models."""
        old, new = self.base.entry(name), self.tuned.entry(self.alike[name])
        return bool(np.array_equal(safetensors.raw(old), safetensors.raw(new)))

    def rounding(self, name: str, index: tuple[slice | int, ...] = ()) -> float:
        r"""Squared error that storing the tuned tensor in half precision is expected to add.

        :math:`\sum ulp(w)^2 / 12` over the entries that training changed: an entry rounded to
        the nearest number has an error spread evenly over one unit in the last place. 0 for
        float32 and float64. For fp8 the scales are unknown to this estimate: 0 too.

        Parameters
        ----------
        name
            One of `common`, or a head in `tied`.
        index
            The part to read.
        """
        codes = {self.tuned.dtype(own) for own in self.tuned_names(name)}
        if codes.isdisjoint(_MANTISSA_BITS):
            return 0.0
        with _quiet():  # NaN and Inf are for `delta` to report
            return sum((_rounding(step) for step in self._steps(name, index)), 0.0)

    def _reading(self, name: str) -> Reading:
        if name not in self.readings:
            raise SiteError(
                f"{name!r} is not paired between {self.base.path} and {self.tuned.path}"
            )
        return self.readings[name]

    def _room(self, name: str, index: TensorIndex, empty: Empty) -> np.ndarray:
        """Memory for `delta`."""
        reading = self._reading(name)
        shape = np.broadcast_to(np.int8(0), self.base.shape(reading.base))[index].shape
        wide = [_wide(self.base, reading.base)]
        wide += [_wide(self.tuned, own) for own in reading.tuned_names]
        return empty(shape, np.result_type(*wide))

    def _steps(
        self, name: str, index: TensorIndex, out: np.ndarray | None = None
    ) -> Iterator[_Difference]:
        """Per tile: tuned minus base, written into ``out`` if given."""
        for place, base, tuned, code in self._parts(name, index):
            target = out
            if out is not None and place is not None:
                target = out.reshape(_lengths(name, self, index))[place]
            yield from _differences(base, tuned, target, code)

    def _parts(self, name: str, index: TensorIndex) -> Iterator[_OpenedPair]:
        reading = self._reading(name)
        if not reading.pieces:
            parts = self.base.part(reading.base, index), self.tuned.part(reading.tuned, index)
            yield _OpenedPair(None, *parts, self.tuned.dtype(reading.tuned))
            return
        wanted = spans(index, self.base.shape(reading.base))
        found = list(reading.inside(wanted))
        size = sum(_size(block.place) for _, block in found)
        if size != _size([slice(*span) for span in wanted]):
            raise SiteError(
                f"{name!r} is paired in part only between {self.base.path} and {self.tuned.path}"
            )
        for piece, block in found:
            yield _OpenedPair(
                block.place,
                self.base.part(reading.base, block.base),
                piece.turned(self.tuned.part(piece.tensor, block.tuned)),
                self.tuned.dtype(piece.tensor),
            )

    def _check(self, tile: np.ndarray, name: str, index: TensorIndex) -> None:
        if not _is_finite(tile):
            self._blame(name, index)

    def _blame(self, name: str, index: TensorIndex) -> NoReturn:
        reading = self._reading(name)
        read = [(self.base, reading.base, index)]
        if reading.pieces:
            wanted = spans(index, self.base.shape(reading.base))
            read += [(self.tuned, p.tensor, block.tuned) for p, block in reading.inside(wanted)]
        else:
            read.append((self.tuned, reading.tuned, index))
        for checkpoint, own, part in read:
            values = checkpoint.read(own, part)
            bad = values.size - int(np.isfinite(values).sum())
            if bad:
                raise DataError(
                    f"tensor {own!r} in {checkpoint.entry(own).file} has {bad} NaN or infinite "
                    f"values of {values.size}",
                    tip=f"leave it out with exclude={name.removesuffix('.weight')!r}, or repair "
                    "the file",
                )
        raise DataError(f"tensor {name!r}: tuned minus base is too large for its dtype")


def _quiet() -> np.errstate:
    return np.errstate(invalid="ignore", over="ignore")


def _wide(checkpoint: Checkpoint, name: str) -> np.dtype:
    """Dtype of the numbers that a tensor is read as."""
    kind = None if name in checkpoint.packed else DTYPES[checkpoint.dtype(name)].wide
    return np.dtype(np.float32) if kind is None else kind


def _lengths(name: str, both: Pair, index: TensorIndex) -> tuple[int, ...]:
    """Shape of a result with an axis of length 1 for every position of the index."""
    shape = both.base.shape(both.base_name(name))
    return tuple(stop - start for start, stop in spans(index, shape))


def _size(place: tuple[slice, ...] | list[slice]) -> int:
    return int(np.prod([s.stop - s.start for s in place], dtype=np.int64))


def _differences(
    base: Part, tuned: Part, out: np.ndarray | None, code: str
) -> Iterator[_Difference]:
    """Per tile: tuned minus base. Without ``out`` each is overwritten by the next."""
    old, new = base.scratch(), tuned.scratch()
    kind = np.result_type(base.dtype, tuned.dtype)
    difference = np.empty(old.size if out is None else 0, kind)
    for tile in base.walk():
        before, after = base.widened(tile, old), tuned.widened(tile, new)
        target = difference[: after.size].reshape(after.shape) if out is None else out[tile]
        np.subtract(after, before, out=target)
        yield _Difference(target, before, after, code)


def _is_finite(tile: np.ndarray) -> bool:
    """Whether all numbers are finite; makes no array, as `numpy.isfinite` does."""
    return not tile.size or bool(np.isfinite(tile.max()) and np.isfinite(tile.min()))


def _forgive(step: _Difference) -> None:
    """Set differences of equal infinities and of two NaN to 0."""
    if _is_finite(step.moved):
        return
    alike = step.before == step.after
    alike |= np.isnan(step.before) & np.isnan(step.after)
    step.moved[alike] = 0


def _rounding(step: _Difference) -> float:
    """Sum of ulp²/12 over the stored half-precision numbers that moved; writes over the tile."""
    if step.code not in _MANTISSA_BITS:
        return 0.0
    powers = step.after.view(np.uint32)  # the exponent bits alone: the power of two below a number
    np.bitwise_and(powers, np.uint32(0x7F800000), out=powers)
    np.maximum(powers, np.uint32((127 + _SMALLEST[step.code]) << 23), out=powers)
    moved = step.before if step.before.flags.writeable else np.empty_like(step.after)
    np.not_equal(step.moved, 0, out=moved)
    np.multiply(step.after, moved, out=step.after)
    return quick_sum_of_squares(step.after) * 4.0 ** -_MANTISSA_BITS[step.code] / 12
