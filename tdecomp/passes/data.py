"""The input of a decomposition, opened once: an array, a stack or a format behind one face."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from tdecomp._xp import Array
from tdecomp.errors import ArgumentError
from tdecomp.formats import Format
from tdecomp.passes.coordinates import Frame, Metric, format_frame, metric_frame
from tdecomp.passes.matrices import Matrix, each_of_format, each_of_slices
from tdecomp.passes.residual import measure
from tdecomp.passes.slices import Input, check_shape, dense, mode_names
from tdecomp.progress import Progress, silent
from tdecomp.stack import Stack

__all__ = ["Data", "open_data", "refuse_format"]

_G = TypeVar("_G")
Found = TypeVar("Found")


class Data(ABC, Generic[_G]):
    """What is decomposed.

    Attributes
    ----------
    given
        The array, stack or format itself.
    modes, shape
        Names and sizes of all modes, site modes first.
    keep
        Whether a dense array that was loaded, or the core of a format, stays in memory for the next
        step.
    """

    is_format: ClassVar[bool] = False

    def __init__(self, given: _G, modes: tuple[str, ...], shape: tuple[int, ...], keep: bool):
        self.given = given
        self.modes = modes
        self.shape = shape
        self.keep = keep
        self._dense: Array | None = None

    @property
    def size(self) -> int:
        """Numbers of the dense tensor."""
        return math.prod(self.shape)

    @property
    def n_sites(self) -> int:
        """Number of matrices."""
        return math.prod(self.shape[:-2])

    @abstractmethod
    def dense(self) -> Array:
        """The whole array in working precision, checked to be finite and within range."""

    @abstractmethod
    def coordinates(
        self, opened: Collection[str] = (), metric: Metric | None = None
    ) -> tuple[Array, Frame]:
        """A dense array, and the way back from it to the modes of the data.

        An array or a stack is loaded as it is, or turned into the coordinates of a metric. Of a
        format it is the core in orthonormal coordinates; modes in `opened` keep their size.
        """

    @abstractmethod
    def each(
        self,
        work: Callable[[int, Matrix], Found],
        metric: Metric | None = None,
        *,
        in_turn: bool = False,
    ) -> AbstractContextManager[Iterator[Found]]:
        """Context that has ``work(i, matrix)`` of all of them, in C order over the site modes.

        Unless they have to be taken in turn, `work` may run in several threads; see `each_slice`.
        """

    @abstractmethod
    def measure(
        self,
        tensor: Format,
        energies: Sequence[float] | None = None,
        progress: Progress = silent,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Squared residual and squared norm of every matrix; one number each for a format."""


class _Slices(Data[Array | Stack]):
    """An array, or a stack that is read when it is asked for."""

    def dense(self) -> Array:
        if self._dense is not None:
            return self._dense
        array = dense(self.given)
        if self.keep:
            self._dense = array
        return array

    def coordinates(
        self, opened: Collection[str] = (), metric: Metric | None = None
    ) -> tuple[Array, Frame]:
        del opened
        array = self.dense()
        frame = metric_frame(metric, self.modes, self.shape, array)
        return frame.into(array), frame

    def each(
        self,
        work: Callable[[int, Matrix], Found],
        metric: Metric | None = None,
        *,
        in_turn: bool = False,
    ) -> AbstractContextManager[Iterator[Found]]:
        return each_of_slices(self.given, self.modes, metric, work, in_turn=in_turn)

    def measure(
        self,
        tensor: Format,
        energies: Sequence[float] | None = None,
        progress: Progress = silent,
    ) -> tuple[np.ndarray, np.ndarray]:
        given = self.given if self._dense is None else self._dense
        return measure(given, tensor, energies, progress)


class _Factors(Data[Format]):
    """A tensor in factors, whose dense form is never made."""

    is_format = True

    def __init__(self, given: Format, modes: tuple[str, ...], shape: tuple[int, ...], keep: bool):
        super().__init__(given, modes, shape, keep)
        self._plain: dict[frozenset[str], tuple[Array, Frame]] = {}

    def dense(self) -> Array:
        raise AssertionError("the dense tensor of a format is never formed")

    def coordinates(
        self, opened: Collection[str] = (), metric: Metric | None = None
    ) -> tuple[Array, Frame]:
        key = frozenset(opened)
        if metric is None and key in self._plain:
            return self._plain[key]
        like = next(iter(self.given.arrays.values()))
        outer = metric_frame(metric, self.modes, self.shape, like)
        core, inner = format_frame(outer.down(self.given), opened)
        found = dense(core), outer.then(inner)
        if metric is None and self.keep:
            self._plain[key] = found
        return found

    def each(
        self,
        work: Callable[[int, Matrix], Found],
        metric: Metric | None = None,
        *,
        in_turn: bool = False,
    ) -> AbstractContextManager[Iterator[Found]]:
        del in_turn
        return nullcontext(each_of_format(self.given, metric, work))

    def measure(
        self,
        tensor: Format,
        energies: Sequence[float] | None = None,
        progress: Progress = silent,
    ) -> tuple[np.ndarray, np.ndarray]:
        del energies, progress
        core, frame = self.coordinates()
        residual, energy = measure(core, frame.down(tensor))
        return np.sum(residual, keepdims=True), np.sum(energy, keepdims=True)


def open_data(
    x: Input, names: str | Sequence[str] | None = None, *, keep: bool = False
) -> Data[Any]:
    """Check an input and give it a face; nothing is read.

    Parameters
    ----------
    x
        Array, `Stack` or format.
    names
        Mode names of an array.
    keep
        Whether a dense array, once loaded, stays in memory: for one input that is visited twice.

    Raises
    ------
    ArgumentError
        `names` for a stack or a format.
    DataError
        Neither of these, no modes, or an empty one.
    """
    check_shape(x)
    modes, shape = mode_names(x, names), tuple(int(n) for n in x.shape)
    if isinstance(x, Format):
        return _Factors(x, modes, shape, keep)
    return _Slices(x, modes, shape, keep)


def refuse_format(x: Data[Any], what: str) -> None:
    """Refuse an option that needs entries, where the data are factors."""
    if x.is_format:
        raise ArgumentError(
            f"{what} is for arrays, not for a {type(x.given).__name__}: give its to_dense()"
        )
