"""What every decomposition returns: the factors, and how far they are from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tdecomp._xp import (
    Array,
    check_array,
    check_not_traced,
    detached,
    double,
    float64_scope,
    namespace,
    quick_sum_of_squares,
    scope_matters,
    sum_of_squares,
    to_numpy,
    working,
)
from tdecomp.decomposition._frame import Frame, format_frame
from tdecomp.errors import ArgumentError, DataError
from tdecomp.formats import Format
from tdecomp.stack import Stack

__all__ = [
    "Fit",
    "Fits",
    "Input",
    "Rounding",
    "Trace",
    "check_matrices",
    "check_shape",
    "dense",
    "in_float64",
    "make_fit",
    "measure",
    "raw_slices",
    "relative",
    "residual_of_pair",
    "slices",
]

Rounding = Callable[[Array], Array]
"""Applied to every factor before the error is measured: the precision it will be stored in."""

Input = Array | Stack | Format
"""What a decomposition takes: an array, a stack of slices read lazily, or a tensor as factors."""

_DIRECT_IN_DOUBLE = 1e-4  # below this, float32 products would round the residual itself
_ROWS = 1 << 18  # numbers of a matrix looked at together: 1 MiB of float32, so that they stay near
_WHOLE = 1 << 20  # numbers up to which the residual is formed at once, not site by site
_SQUARED = 1e150  # entries whose squares still fit float64, and the inverse of the smallest


@dataclass(frozen=True)
class Trace:
    """How an iterative algorithm went.

    Attributes
    ----------
    errors
        Relative error after each sweep, as the algorithm saw it (from captured energy).
    converged
        Whether the last sweep changed the error by less than `tol`.
    reason
        One phrase: why it stopped.
    """

    errors: tuple[float, ...] = ()
    converged: bool = True
    reason: str = "closed form"


@dataclass(frozen=True)
class Fit:
    """A decomposition and its true error.

    Attributes
    ----------
    tensor
        The factors, a format.
    error
        Relative Frobenius error ``‖X − X̂‖ / ‖X‖`` of `tensor` as returned; 0 for a zero `X`. With
        a metric or weights of the entries, in their norm.
    residual, energy
        Squared residual and squared norm of every matrix, in C order over the sites, float64; one
        number each where `X` is a format.
    spectra
        Singular values seen, by mode (or ``"sites"``: those kept, for independent SVDs).
    trace
        Sweeps of an iterative algorithm.
    error_method
        How `error` was obtained: ``"residual"`` (every entry of ``X − X̂`` was formed and summed),
        or ``"coordinates"`` (the same in orthonormal coordinates, where `X` is a format).
    error_plain
        The relative Frobenius error without the metric; None where none was given.
    svd
        Which singular value decompositions were used: ``"exact"``, or names of functions of
        `tdecomp.linalg`.
    passes
        Reads of the data where they were sketched, the last one for the error; else 2.
    """

    tensor: Format
    error: float
    residual: np.ndarray
    energy: np.ndarray
    spectra: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace = Trace()
    error_method: str = "residual"
    error_plain: float | None = None
    svd: str = "exact"
    passes: int = 2

    @property
    def n_params(self) -> int:
        """Stored numbers."""
        return self.tensor.n_params


@dataclass(frozen=True)
class Fits:
    """One `Fit` per stack of a model, and their total.

    Attributes
    ----------
    fits
        In the order of the stacks.
    error
        ``√Σ‖X − X̂‖² / √Σ‖X‖²`` over all of them.
    """

    fits: tuple[Fit, ...]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, i: int) -> Fit:
        return self.fits[i]

    @property
    def error(self) -> float:
        """Total relative error."""
        return relative(
            sum(float(f.residual.sum()) for f in self.fits),
            sum(float(f.energy.sum()) for f in self.fits),
        )

    @property
    def n_params(self) -> int:
        """Stored numbers over all fits."""
        return sum(f.n_params for f in self.fits)


def relative(residual: float, energy: float) -> float:
    """Relative error from squared residual and squared norm; 0 for a zero tensor."""
    return math.sqrt(residual / energy) if energy > 0 else 0.0


def check_shape(x: Input) -> None:
    """Refuse what is not an array, stack or format with at least one mode and none empty."""
    if not isinstance(x, Stack | Format):
        check_array(x)
        check_not_traced(x)
    if len(x.shape) < 1 or 0 in x.shape:
        raise DataError(
            f"cannot decompose an array of shape {tuple(x.shape)}: one or more modes, none empty"
        )


def check_matrices(x: Input, what: str) -> None:
    """Refuse what has no two modes for a matrix."""
    if len(x.shape) < 2:
        raise DataError(f"{what} needs two or more modes, got an array of shape {tuple(x.shape)}")


def in_float64(*xs: Input) -> AbstractContextManager[Any]:
    """Context in which steps on `xs` have the precision they ask for; see `float64_scope`."""
    if not scope_matters():
        return nullcontext()
    arrays: list[Array] = []
    for x in xs:
        if isinstance(x, Format):
            arrays += x.arrays.values()
        else:  # the library of a stack shows only in a slice
            arrays.append(x.slice(0) if isinstance(x, Stack) else x)
    return float64_scope(*arrays)


def dense(x: Array | Stack) -> Array:
    """The array behind `x` in working precision, checked to be finite and within range."""
    array = detached(working(x.dense() if isinstance(x, Stack) else x))
    xp = namespace(array)
    largest = float(xp.max(xp.abs(array)))
    if not math.isfinite(largest):
        raise DataError("the array to decompose contains NaN or Inf")
    if largest > _SQUARED or 0 < largest < 1 / _SQUARED:
        raise DataError(
            f"the largest entry, {largest:.3g}, has no square in float64: divide the array by it"
        )
    if largest * math.sqrt(math.prod(array.shape)) > float(xp.finfo(array.dtype).max):
        raise DataError(
            f"with entries up to {largest:.3g} the norm may not fit {array.dtype}: divide the array"
            " by that, or give it in float64"
        )
    return array


def slices(x: Array | Stack) -> Iterator[Array]:
    """The matrices of `x`, one at a time, in C order over the site modes."""
    if isinstance(x, Stack):
        yield from map(dense, x.slices())
    else:
        xp = namespace(x)
        matrices = xp.reshape(x, (-1, *x.shape[-2:]))
        yield from (dense(matrices[i, ...]) for i in range(matrices.shape[0]))


def raw_slices(x: Array | Stack) -> Iterator[Array]:
    """`slices` that nobody has looked at: NaN and Inf show only in what is computed from them."""
    if isinstance(x, Stack):
        yield from (detached(working(matrix)) for matrix in x.slices())
    else:
        xp = namespace(x)
        matrices = detached(xp.reshape(x, (-1, *x.shape[-2:])))
        yield from (working(matrices[i, ...]) for i in range(matrices.shape[0]))


def measure(
    x: Array | Stack, tensor: Format, energies: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Squared residual and squared norm of every matrix, formed directly; norms may be known.

    One matrix at a time, or at once for arrays of up to 10⁶ numbers. Differences are taken in the
    working precision and summed in float64; where the relative error is below 1e-4 the products
    are formed in float64 too. An array of order 1 is one row.
    """
    if not isinstance(x, Stack) and (math.prod(x.shape) <= _WHOLE or len(x.shape) < 2):
        return _measure_whole(dense(x), tensor)
    pairs = [
        residual_of_pair(matrix, *tensor.pair(i), None if energies is None else energies[i])
        for i, matrix in enumerate(raw_slices(x))
    ]  # one (residual², norm²) per site
    residual, energy = np.array(pairs, dtype=np.float64).T
    if not np.isfinite(energy).all():
        raise DataError("the array contains NaN or Inf")
    return residual, energy


def make_fit(
    x: Input,
    tensor: Format,
    rounding: Rounding | None,
    spectra: Mapping[str, Any],
    trace: Trace = Trace(),
    *,
    seen: tuple[Array, Frame] | None = None,
    in_metric: bool = False,
    svd: str = "exact",
    passes: int = 2,
    energies: Sequence[float] | None = None,
) -> Fit:
    """Round the arrays as they will be stored, then measure what is left of `x`.

    Parameters
    ----------
    seen
        The coordinates the error counts in, and their frame; `x` itself by default.
    in_metric
        Whether those are the coordinates of a metric, and the plain error is wanted too.
    energies
        Squared norm of every matrix, where they are known.
    """
    if rounding is not None:
        if isinstance(x, Format):
            raise ArgumentError("rounding needs an array or a stack: cast the arrays of a format")
        tensor = tensor.with_arrays({name: rounding(a) for name, a in tensor.arrays.items()})
    kept = {"spectra": spectra, "trace": trace, "svd": svd, "passes": passes}
    if isinstance(x, Format):
        assert seen is not None
        array, frame = seen
        residual, energy = (np.sum(e, keepdims=True) for e in measure(array, frame.down(tensor)))
        kept |= {"error_method": "coordinates"}
    elif in_metric:
        assert seen is not None
        residual, energy = measure(seen[0], seen[1].down(tensor))
    else:
        residual, energy = measure(x, tensor, energies)
    if in_metric:
        plain = _measured_plain(x, tensor)
        kept |= {"error_plain": relative(float(plain[0].sum()), float(plain[1].sum()))}
    error = relative(float(residual.sum()), float(energy.sum()))
    return Fit(tensor, error, residual, energy, **kept)


def _measured_plain(x: Input, tensor: Format) -> tuple[np.ndarray, np.ndarray]:
    """`measure`; for a format in orthonormal coordinates of its own, where `tensor` lies too."""
    if not isinstance(x, Format):
        return measure(x, tensor)
    core, frame = format_frame(x)
    return measure(core, frame.down(tensor))


def _measure_whole(x: Array, tensor: Format) -> tuple[np.ndarray, np.ndarray]:
    xp = namespace(x)

    def squares(a: Array) -> np.ndarray:
        wide = double(xp.abs(a)) ** 2
        sites = xp.reshape(wide, (-1, math.prod(a.shape[-2:])))
        return to_numpy(xp.sum(sites, axis=1))

    energy, residual = squares(x), squares(x - tensor.to_dense())
    if residual.sum() < _DIRECT_IN_DOUBLE**2 * energy.sum():
        wide = tensor.with_arrays({name: double(a) for name, a in tensor.arrays.items()})
        residual = squares(double(x) - wide.to_dense())
    return residual, energy


def residual_of_pair(
    matrix: Array, left: Array, right: Array, energy: float | None = None
) -> tuple[float, float]:
    """``‖M − L R‖²`` and ``‖M‖²``, as `measure` forms them, a few rows at a time."""
    n = matrix.shape[0]
    step = max(1, _ROWS // matrix.shape[1])
    tiles = [slice(i, min(i + step, n)) for i in range(0, n, step)]
    arrays = matrix, left, right
    plain = all(isinstance(a, np.ndarray) and a.dtype == matrix.dtype for a in arrays)
    room = np.empty((min(step, n), matrix.shape[1]), matrix.dtype) if plain else None
    residual = seen = 0.0
    for rows in tiles:
        tile = matrix[rows, :]
        if energy is None:
            seen += quick_sum_of_squares(tile)
        residual += quick_sum_of_squares(_rest(tile, left[rows, :], right, room))
    energy = seen if energy is None else energy
    if residual < _DIRECT_IN_DOUBLE**2 * energy:
        wide = double(right)
        residual = sum(
            sum_of_squares(double(matrix[rows, :]) - double(left[rows, :]) @ wide) for rows in tiles
        )
    return residual, energy


def _rest(tile: Array, left: Array, right: Array, room: np.ndarray | None) -> Array:
    """``tile − left right``, in `room` if given: new memory would cost more than the product."""
    if room is None:
        return tile - left @ right
    out = room[: tile.shape[0]]
    np.matmul(left, right, out=out)
    return np.subtract(tile, out, out=out)
